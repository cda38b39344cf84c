"""Convolution of groups of few filters on channels-last images: a thread computes up to 4 filters of one group for a pixel.

Tensor cores multiply 16 filters at a time and would mostly multiply nothing. Weights are halves [taps][channels of a group][filters], so
that threads side by side read neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd, prod
from typing import Any

from sparsec.codegen.cuda import epilogue
from sparsec.codegen.cuda.launch import Launch
from sparsec.codegen.cuda.windows import Place, window_launch
from sparsec.codegen.kernels.window import Window
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: x [batch, H, W, C], weight (p["dtype"]), bias? [filters], residual? like out; out [batch, H', W', filters]."""
    w = Window.of(p)
    taps, inputs = prod(w.kernel), p["channels"] // p["groups"]
    size = p["batch"] * prod(w.out) * p["filters"]
    args = [
        Arg("x", "float32", p["batch"] * prod(w.size) * p["channels"], "in"),
        Arg("weight", p["dtype"], taps * inputs * p["filters"], "in"),
        *epilogue.arguments(p, p["filters"], size),
        Arg("out", "float32", size, "out"),
    ]
    return Signature(tuple(args), units=1, cost=2 * size * taps * inputs)


def _width(p: Mapping[str, Any]) -> int:
    """Filters of a thread, all of one group."""
    return gcd(p["filters"] // p["groups"], 4)


def launch(p: Mapping[str, Any], target: Target) -> Launch:
    """A thread for each run of filters of each output pixel."""
    return window_launch(Window.of(p), p["filters"], p["batch"], _width(p))


def build(p: Mapping[str, Any], k: Any) -> None:
    """Sums over taps and channels in float32, then bias, residual and activation."""
    T, width, filters = k.T, _width(p), p["filters"]
    inputs = p["channels"] // p["groups"]
    place = Place(k, Window.of(p), filters, p["batch"], width)
    with T.If(place.there), T.Then():
        total = k.local(width)
        for lane in range(width):
            k.store(total, lane, k.f32(0.0))
        first = k.let(T.truncdiv(place.channel, filters // p["groups"]) * inputs)

        def step(tap: Any, line: Any, column: Any, inside: Any, at: Any) -> None:
            rows, columns = place.w.size
            with T.If(inside), T.Then():
                start = k.let(((place.image * rows + line) * columns + column) * p["channels"] + first)
                with T.serial(0, inputs) as channel:
                    value = k.let(k.load(k.arg("x"), start + channel), "float32")
                    weight = k.let((tap * inputs + channel) * filters + place.channel)
                    for lane in range(width):
                        k.store(total, lane, total[lane] + value * k.load(k.arg("weight"), weight + lane))

        place.taps(step)
        for lane in range(width):
            index = place.at + lane
            k.store(k.arg("out"), index, epilogue.finish(k, p, total[lane], place.channel + lane, index))
