"""A sparse 1x1 convolution and the depthwise convolution that reads its result, by blocks of channels, in planes.

MobileNets widen an image six times before they filter it: what lies between the two convolutions is larger than a level-2 cache,
and writing and reading it takes longer than both products. A channel of the second convolution needs the same channel of the first
only, so a unit is a block of channels (`block` of them, which divides their number): the first convolution (spmm.py, a band of rows
for each block) leaves it in scratch, the second (depthwise.py) reads it there, with zeros around every image if it can be (`frame`). Threads share nothing but the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels import depthwise, spmm
from sparsec.codegen.kernels.frames import Frame, clear
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target

FIRST, SECOND = "first_", "second_"


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: those of spmm.py, those of depthwise.py but x; out: out; work: a block of channels, the scratch of both."""
    first, second = spmm.signature(p["first"], target), depthwise.signature(p["second"], target)
    ins, work = [], [Arg("between", "float32", _between(p), "work")]
    for prefix, made in ((FIRST, first), (SECOND, second)):
        for arg in made.args:
            named = replace(arg, name=prefix + arg.name)
            if arg.role == "work":
                work.append(named)
            elif arg.role == "in" and (prefix, arg.name) != (SECOND, "x"):
                ins.append(named)
    out = next(arg for arg in second.args if arg.role == "out")
    return Signature((*ins, out, *work), p["first"]["n"] // p["block"], first.cost + second.cost)


def _between(p: Mapping[str, Any]) -> int:
    """Elements of a block of channels between the two convolutions."""
    framed = _frame(p)
    return int(framed.size(p["block"]) if framed else p["block"] * p["first"]["pixels"])


def _frame(p: Mapping[str, Any]) -> Frame | None:
    return Frame(**p["first"]["frame"]) if p["first"].get("frame") else None


def build(p: Mapping[str, Any], k: Any) -> None:
    """Write the loop over blocks, with the nests of both kernels in it."""
    T, first, second = k.T, p["first"], p["second"]
    channels, framed = p["block"], _frame(p)
    plane = framed.plane if framed else first["pixels"]
    of_block = spmm.signature(first, k.target).units // first["bands"]
    of_channels = depthwise.signature(second, k.target).units // second["channels"] * channels
    if framed:
        clear(k, k.arg("between"), framed, channels)
    with T.serial(k.lo, k.hi) as block:
        between = _Shifted(k.arg("between"), bind(k, block * (channels * plane)))

        def part(prefix: str, given: Mapping[str, Any], units: int, block: Any = block) -> _Part:
            return _Part(k, prefix, given, bind(k, block * units), bind(k, (block + 1) * units))

        spmm.build(first, part(FIRST, {"y": between}, of_block))
        depthwise.build(second, part(SECOND, {"x": between, "out": k.arg("out")}, of_channels))


class _Shifted:
    """A part of an array that is held elsewhere: element `first` of the array is the first of `held`."""

    def __init__(self, held: Any, first: Any) -> None:
        self.held, self.first = held, first

    def __getitem__(self, index: Any) -> Any:
        return self.held[index - self.first]


class _Part:
    """The builder as one of the two kernels sees it: arguments by their own names, its own range of units."""

    def __init__(self, k: Any, prefix: str, given: Mapping[str, Any], lo: Any, hi: Any) -> None:
        self._k, self._prefix, self._given = k, prefix, given
        self.lo, self.hi = lo, hi

    def __getattr__(self, name: str) -> Any:
        return getattr(self._k, name)

    def arg(self, name: str) -> Any:
        return self._given[name] if name in self._given else self._k.arg(self._prefix + name)

    def load(self, buffer: Any, index: Any, lanes: int = 1) -> Any:
        if isinstance(buffer, _Shifted):
            return self._k.load(buffer.held, index - buffer.first, lanes)
        return self._k.load(buffer, index, lanes)

    def store(self, buffer: Any, index: Any, value: Any, lanes: int = 1) -> None:
        if isinstance(buffer, _Shifted):
            buffer, index = buffer.held, index - buffer.first
        self._k.store(buffer, index, value, lanes)
