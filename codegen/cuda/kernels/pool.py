"""Max and average pooling of channels-last images, the parameters of kernels/pool.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsec.codegen.cuda.launch import Launch
from sparsec.codegen.cuda.windows import Place, window_launch
from sparsec.codegen.kernels import pool as processor
from sparsec.codegen.kernels.window import Window
from sparsec.codegen.program import Signature
from sparsec.target import Target


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """As of the processor's family, channels last."""
    assert p["layout"] == "cl", "images lie channels last on a GPU"
    return processor.signature(p, target)


def launch(p: Mapping[str, Any], target: Target) -> Launch:
    """A thread for each run of channels of each output pixel."""
    return window_launch(Window.of(p), p["channels"], p["batch"])


def build(p: Mapping[str, Any], k: Any) -> None:
    """The maximum, or the sum over the number of pixels that count."""
    T, w, largest = k.T, Window.of(p), p["op"] == "max"
    place = Place(k, w, p["channels"], p["batch"])
    with T.If(place.there), T.Then():
        total, count = k.local(place.width), k.local(1, "int32")
        k.store(count, 0, T.int32(0))
        with T.serial(0, place.width) as lane:
            k.store(total, lane, T.float32(float("-inf") if largest else 0.0))

        def step(tap: Any, line: Any, column: Any, inside: Any, at: Any) -> None:
            counts = inside
            if p["count_pads"]:  # those of the padding too, but not what ceil_mode adds beyond it
                counts = T.And(line < w.size[0] + w.pads_end[0], column < w.size[1] + w.pads_end[1])
            with T.If(counts), T.Then():
                k.store(count, 0, count[0] + 1)
            with T.If(inside), T.Then():
                x = place.read("x", at)
                with T.serial(0, place.width) as lane:
                    value = k.load(x, lane)
                    value = k.device("float32", "spc_maximum", total[lane], value) if largest else total[lane] + value
                    k.store(total, lane, value)

        place.taps(step)
        factor = None if largest else k.let(T.float32(1) / T.Cast("float32", T.max(1, count[0])), "float32")
        place.write("out", lambda lane: total[lane] if factor is None else total[lane] * factor)
