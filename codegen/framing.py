"""Has convolutions in planes leave zeros around their images where a depthwise convolution reads them: it need not copy them then."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from sparsec.codegen.context import Lowering
from sparsec.codegen.kernels import depthwise, planar
from sparsec.codegen.kernels.frames import frame
from sparsec.codegen.kernels.window import Window
from sparsec.codegen.program import KernelSpec, Signature, Step


def frame_images(low: Lowering) -> None:
    """Give the buffer between planar.py and depthwise.py a frame, where nothing else reads it."""
    program, target = low.program, low.target
    uses = Counter(ref.buffer for step in program.steps for ref in step.refs)
    makers = {step.refs[-1].buffer: at for at, step in enumerate(program.steps) if step.spec.family == "planar"}
    for at, step in enumerate(program.steps):
        p, between = step.spec.params, step.refs[0].buffer
        if step.spec.family != "depthwise" or p["layout"] != "row" or between not in makers:
            continue
        maker = program.steps[makers[between]]
        image = maker.spec.params["batch"] * maker.spec.params["filters"] * p["size"][0] * p["size"][1]
        if between.kind != "arena" or uses[between] > 2 or between.size != image:
            continue
        framed = frame(Window.of(p), target)
        if framed is None:
            continue
        between.size = framed.size(p["batch"] * p["channels"])
        given = {"frame": framed.params()}
        first, second = {**maker.spec.params, **given}, {**p, **given}
        program.steps[makers[between]] = _again(maker, first, planar.signature(first, target))
        program.steps[at] = _again(step, second, depthwise.signature(second, target))


def _again(step: Step, params: dict[str, Any], signature: Signature) -> Step:
    return replace(step, spec=KernelSpec(step.spec.family, params), signature=signature)
