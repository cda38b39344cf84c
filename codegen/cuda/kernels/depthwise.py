"""Depthwise convolution on channels-last images, the parameters of kernels/depthwise.py; weights are float32 [taps][channels]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal
from sparsec.codegen.cuda import epilogue
from sparsec.codegen.cuda.launch import Launch
from sparsec.codegen.cuda.windows import Place, window_launch
from sparsec.codegen.kernels import depthwise as processor
from sparsec.codegen.kernels.window import Window
from sparsec.codegen.program import Decision, Signature
from sparsec.codegen.twins import decoded_twin, forget
from sparsec.op_view import view
from sparsec.target import Target


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """As of the processor's family, channels last."""
    assert p["layout"] == "cl", "images lie channels last on a GPU"
    assert p["decode"] is None, "weights are decoded when the model is lowered"
    return processor.signature(p, target)


def launch(p: Mapping[str, Any], target: Target) -> Launch:
    """A thread for each run of channels of each output pixel."""
    return window_launch(Window.of(p), p["channels"], p["batch"])


def build(p: Mapping[str, Any], k: Any) -> None:
    """Sum over the taps in float32, then bias, residual and activation."""
    T = k.T
    place = Place(k, Window.of(p), p["channels"], p["batch"])
    with T.If(place.there), T.Then():
        total = k.local(place.width)
        with T.serial(0, place.width) as lane:
            k.store(total, lane, k.load(k.arg("bias"), place.channel + lane) if p["bias"] else T.float32(0))

        def step(tap: Any, line: Any, column: Any, inside: Any, at: Any) -> None:
            with T.If(inside), T.Then():
                x = place.read("x", at)
                w = place.read("weight", tap * p["channels"] + place.channel)
                with T.serial(0, place.width) as lane:
                    k.store(total, lane, total[lane] + k.load(x, lane) * k.load(w, lane))

        place.taps(step)
        if p["residual"]:
            residual = place.read("residual", place.at)
            with T.serial(0, place.width) as lane:
                k.store(total, lane, total[lane] + k.load(residual, lane))
        place.write("out", lambda lane: epilogue.activation(k, p["activation"], p["act_params"], total[lane]))


def lower_depthwise(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::Conv with group = channels = filters, weights decoded now."""
    twin = decoded_twin(node)
    if twin is None:
        return processor.lower_depthwise(node, low)
    try:
        if node in low.plan:
            low.plan[twin] = low.plan[node]
        if (refusal := processor.lower_depthwise(twin, low)) is not None:
            return refusal
        low.rename(twin.outputs[0], node.outputs[0])
        why = f"GPU kernels of depthwise convolutions multiply float32, not {view(node).scheme}"
        low.program.decisions[node.name or ""] = Decision((), decoded=True, reason=why)
        return None
    finally:
        forget(twin)
