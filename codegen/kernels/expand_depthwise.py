"""A sparse 1x1 convolution and the depthwise convolution that reads its result, by blocks of channels, in planes.

MobileNets widen an image six times before they filter it: what lies between the two convolutions is larger than a level-2 cache,
and writing and reading it takes longer than both products. A channel of the second convolution needs the same channel of the first
only, so a unit is a block of channels (`block` of them, which divides their number): the first convolution (spmm.py, a band of rows
for each block) leaves it in scratch, the second (depthwise.py) reads it there. Where the images allow it (`frame`, frames.py) they have
zeros around them there, and a strip of them, which stays in a level-1 cache, is computed at a time. Threads share nothing but the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels import depthwise, spmm
from sparsec.codegen.kernels.frames import Frame, clear_lines, clear_margins, move_on
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
    framed = Frame.of(p["first"])
    return int(framed.size(p["block"]) if framed else p["block"] * p["first"]["pixels"])


def build(p: Mapping[str, Any], k: Any) -> None:
    """Write the loop over blocks, with the nests of both kernels in it."""
    T, first, second, framed = k.T, p["first"], p["second"], Frame.of(p["first"])
    channels, buffer = p["block"], k.arg("between")
    of_block = spmm.signature(first, k.target).units // first["bands"]
    of_channels = depthwise.signature(second, k.target).units // second["channels"] * channels
    if framed is None:
        with T.serial(k.lo, k.hi) as block:
            held = bind(k, block * (channels * first["pixels"]))
            base = bind(k, block * of_block)
            spmm.build(first, _Part(k, FIRST, base, bind(k, base + of_block), "y", held))
            base = bind(k, block * of_channels)
            depthwise.build(second, _Part(k, SECOND, base, bind(k, base + of_channels), "x", held))
        return
    clear_margins(k, buffer, framed, channels)
    with T.serial(k.lo, k.hi) as block, T.serial(0, framed.strips) as strip:
        held, base = bind(k, block * (channels * framed.plane)), bind(k, block * of_block)
        clear_lines(k, buffer, framed, channels, strip)
        lo, hi = (bind(k, base + T.truncdiv(row * of_block, framed.height)) for row in framed.span(T, strip))
        at = bind(k, held + strip * (framed.advance * framed.pitch))
        spmm.build(first, _Part(k, FIRST, lo, hi, "y", at))
        base = bind(k, block * of_channels)
        depthwise.build(second, _Part(k, SECOND, base, bind(k, base + of_channels), "x", held, strip))
        if framed.lines > framed.advance and framed.strips > 1:
            with T.If(strip < framed.strips - 1), T.Then():
                move_on(k, buffer, framed, channels)


class _Part:
    """The builder as one of the two kernels sees it: arguments by their own names, but for `shared`, which is what lies between and holds
    the elements from `first` on; its own range of units; the strip of a frame."""

    def __init__(self, k: Any, prefix: str, lo: Any, hi: Any, shared: str, first: Any, strip: Any = 0) -> None:
        self._k, self._prefix, self._shared, self._first = k, prefix, shared, first
        self.lo, self.hi, self.strip = lo, hi, strip

    def __getattr__(self, name: str) -> Any:
        return getattr(self._k, name)

    def arg(self, name: str) -> Any:
        if name == self._shared:
            return self._k.arg("between")
        return self._k.arg(name if name == "out" else self._prefix + name)

    def first(self, name: str) -> Any:
        return self._first if name == self._shared else self._k.T.int32(0)
