"""Sliding windows over images in `row` order (NCHW): the loop nest of depthwise convolution and pooling, vectorised over columns.

A unit is a strip of output rows of one plane (one channel of one image). Its input rows are first copied into a small scratch
image that stays in the level-1 cache (strips.py).

Vectors that pass the end of a row spill into the next row of the tile, which is stored after it; the last row of a tile is
stored exactly. Nothing outside the strip is written and nothing outside the planes is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

from sparsec.codegen.kernels.plane_tiles import Hooks, Tiles
from sparsec.codegen.kernels.strips import Filler, fill_run, lines
from sparsec.codegen.kernels.strips import pitch as line_pitch
from sparsec.codegen.kernels.window import Window
from sparsec.codegen.program import Arg
from sparsec.target import Target

# Bytes of scratch a strip may need: it shares a level-1 cache of 32 KB with the rows that are read and written.
_SCRATCH_BYTES = 16 * 1024
# Units worth having, so that up to 8 threads share few planes evenly.
_WANTED_UNITS = 16
# Strips that are filled before they are computed, if all of them take half of the scratch.
_DEPTH = 8


@dataclass(frozen=True)
class Tiling:
    """How a plane is cut: register tiles of `rows` x `vectors` vectors of `lanes` columns, strips of output rows.

    A line of scratch is `phases` runs of `pitch` elements; a strip has `lines` of them. Small strips are filled `depth` at a
    time before they are computed: vectors that were stored in other pieces just before would stall the loads.
    """

    lanes: int
    rows: int
    vectors: int
    strips: int
    phases: int
    pitch: int
    lines: int
    depth: int

    @property
    def line(self) -> int:
        """Elements of one line of scratch."""
        return self.phases * self.pitch

    @property
    def scratch(self) -> int:
        """Elements of the scratch of one strip."""
        return self.lines * self.line


def tiling(w: Window, planes: int, target: Target) -> Tiling:
    """Tile and strip sizes for `planes` planes under window `w`."""
    (out_h, out_w), lanes = w.out, target.lanes
    while lanes > 1 and out_w <= lanes // 2:
        lanes //= 2
    most = 8 if target.vector_registers > 16 else 4
    rows = ceil(out_h / ceil(out_h / most))
    vectors = max(1, min(4, 8 // rows, out_w // lanes))
    phases, pitch = w.strides[1], line_pitch(w, max(out_w, lanes))
    fit = rows
    while fit + rows <= out_h and lines(w, fit + rows) * phases * pitch * 4 <= _SCRATCH_BYTES:
        fit += rows
    strips = max(ceil(out_h / fit), min(ceil(_WANTED_UNITS / planes), out_h // rows))
    strips = max(1, min(strips, out_h // rows))
    most_lines = lines(w, ceil(out_h / strips))
    depth = max(1, min(_DEPTH, _SCRATCH_BYTES // (8 * most_lines * phases * pitch)))
    return Tiling(lanes, rows, vectors, strips, phases, pitch, most_lines, depth)


def scratch_argument(w: Window, planes: int, target: Target) -> Arg:
    """The work argument `scratch` of `emit_planes`."""
    t = tiling(w, planes, target)
    return Arg("scratch", "float32", t.depth * t.scratch, "work")


def plane_units(w: Window, planes: int, target: Target) -> int:
    """Number of units of `emit_planes`."""
    return planes * tiling(w, planes, target).strips


def emit_planes(k: Any, w: Window, channels: int, batch: int, hooks: Hooks) -> None:
    """The whole loop nest over the units [k.lo, k.hi); reads argument `x`, writes argument `out`, works in `scratch`."""
    _Planes(k, w, channels, batch, hooks).write()


class _Planes(Tiles):
    """The strips of the planes."""

    def __init__(self, k: Any, w: Window, channels: int, batch: int, hooks: Hooks) -> None:
        self.t = t = tiling(w, channels * batch, k.target)
        super().__init__(k, w, channels, hooks, lanes=t.lanes, rows=t.rows, vectors=t.vectors, units=t.strips)
        self.scratch = k.arg("scratch")
        self.filler = Filler(k, w, pitch=t.pitch, lines=t.lines, whole=t.strips == 1, pad=hooks.pad)

    def write(self) -> None:
        fill_run(self.k, self.scratch, 0, self.t.depth * self.t.scratch, self.hooks.pad)
        super().write()

    def span(self, begin: Any, end: Any) -> None:
        T, depth = self.k.T, self.t.depth
        if depth == 1:
            with T.serial(begin, end) as unit:
                self._unit(unit, 0, True, True)
            return
        with T.serial(0, T.truncdiv(end - begin + (depth - 1), depth)) as group:
            first = T.bind(begin + group * depth)
            count = T.bind(T.min(end - first, depth))
            with T.serial(0, count) as i:
                self._unit(first + i, i, True, False)
            with T.serial(0, count) as i:
                self._unit(first + i, i, False, True)

    def _unit(self, unit: Any, slot: Any, fill: bool, compute: bool) -> None:
        """Fill or compute the strip in scratch image number `slot`."""
        T, w, t = self.T, self.w, self.t
        (height, width), (out_h, out_w) = w.size, w.out
        place = T.bind(slot * t.scratch) if t.depth > 1 else 0
        plane = T.bind(T.truncdiv(unit, t.strips)) if t.strips > 1 else unit
        channel = T.bind(T.truncmod(plane, self.channels))
        first: Any = 0
        rows: Any = out_h
        if t.strips > 1:
            strip = T.bind(unit - plane * t.strips)
            first = T.bind(T.truncdiv(strip * out_h, t.strips))
            rows = T.bind(T.truncdiv((strip + 1) * out_h, t.strips) - first)
        if fill:
            self.filler.fill(T.bind(plane * (height * width) - self.k.first("x")), first, place)
        if not compute:
            return
        line = w.strides[0] * t.line
        target = T.bind(plane * (out_h * out_w))
        self.plane(channel, lambda row, x: place + row * line + x, first, rows, target)

    def values(self, origin: Any) -> Callable[[int, int, int], Any]:
        t, n = self.t, self.lanes

        def value(line: int, kw: int, v: int) -> Any:
            column = kw * self.w.dilations[1]
            place = column % t.phases * t.pitch + column // t.phases
            return self.k.load(self.scratch, origin + (line * t.line + place + v * n), n)

        return value

    def products(self, channel: Any, weights: list[Any] | None, origin: Any) -> None:
        if self.unrolled:
            super().products(channel, weights, origin)
            return
        T, k, w, t, n = self.T, self.k, self.w, self.t, self.lanes
        with T.serial(0, w.kernel[0]) as kh, T.serial(0, w.kernel[1]) as kw:
            column = kw * w.dilations[1]
            if t.phases > 1:
                column = T.truncmod(column, t.phases) * t.pitch + T.truncdiv(column, t.phases)
            base = T.bind(origin + kh * (w.dilations[0] * t.line) + column)
            weight = None
            if self.hooks.weight is not None:
                weight = T.bind(k.splat(self.hooks.weight(channel, kh * w.kernel[1] + kw), n))
            for i in range(t.rows):
                for v in range(t.vectors):
                    self.step(i, v, k.load(self.scratch, base + i * w.strides[0] * t.line + v * n, n), weight)
