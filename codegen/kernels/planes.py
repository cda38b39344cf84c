"""Sliding windows over images in `row` order (NCHW): the loop nest of depthwise convolution and pooling, vectorised over columns.

A unit is a strip of output rows of one plane (one channel of one image). Its input rows are first copied into a small scratch
image that stays in the level-1 cache: padding becomes ordinary elements there, and the columns of a strided window are sorted
by phase, so that the taps of neighbouring outputs are neighbours in memory. The computation has no branches and no strided loads.

Vectors that pass the end of a row spill into the next row of the tile, which is stored after it; the last row of a tile is
stored exactly. Nothing outside the strip is written and nothing outside the planes is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

from sparsec.codegen.kernels.plane_tiles import Hooks, Tiles
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
    phases = w.strides[1]
    reach = max(out_w, lanes) + ((w.kernel[1] - 1) * w.dilations[1]) // phases
    pitch = max(reach, (w.size[1] - 1 + w.pads[1]) // phases + 1)
    if pitch * phases % 1024 == 0:  # lines must not share their cache sets
        pitch += 16

    def lines(count: int) -> int:
        return (count - 1) * w.strides[0] + (w.kernel[0] - 1) * w.dilations[0] + 1

    fit = rows
    while fit + rows <= out_h and lines(fit + rows) * phases * pitch * 4 <= _SCRATCH_BYTES:
        fit += rows
    strips = max(ceil(out_h / fit), min(ceil(_WANTED_UNITS / planes), out_h // rows))
    strips = max(1, min(strips, out_h // rows))
    most_lines = lines(ceil(out_h / strips))
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


def copy_run(k: Any, src: Any, s: Any, dst: Any, d: Any, count: int) -> None:
    """Copy `count` neighbouring elements; the last vector overlaps the one before."""
    lanes = k.lanes
    while lanes > count:
        lanes //= 2
    whole = count // lanes
    if whole <= 8:
        for i in range(whole):
            k.store(dst, d + i * lanes, k.load(src, s + i * lanes, lanes), lanes)
    else:
        with k.T.serial(0, whole) as i:
            k.store(dst, d + i * lanes, k.load(src, s + i * lanes, lanes), lanes)
    if count % lanes:
        at = count - lanes
        k.store(dst, d + at, k.load(src, s + at, lanes), lanes)


def fill_run(k: Any, dst: Any, d: Any, count: int, value: float) -> None:
    """Set `count` neighbouring elements; the last vector overlaps the one before."""
    lanes = k.lanes
    while lanes > count:
        lanes //= 2
    with k.T.serial(0, count // lanes) as i:
        k.store(dst, d + i * lanes, k.f32(value, lanes), lanes)
    if count % lanes:
        k.store(dst, d + (count - lanes), k.f32(value, lanes), lanes)


class _Planes(Tiles):
    """The strips of the planes."""

    def __init__(self, k: Any, w: Window, channels: int, batch: int, hooks: Hooks) -> None:
        self.t = t = tiling(w, channels * batch, k.target)
        super().__init__(k, w, channels, hooks, lanes=t.lanes, rows=t.rows, vectors=t.vectors, units=t.strips)
        self.scratch = k.arg("scratch")

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
            self._fill(T.bind(plane * (height * width) - self.k.first("x")), first, place)
        if not compute:
            return
        line = w.strides[0] * t.line
        target = T.bind(plane * (out_h * out_w))
        self.plane(channel, lambda row, x: place + row * line + x, first, rows, target)

    # --- the scratch image ---

    def _fill(self, source: Any, first: Any, place: Any) -> None:
        """Bring the input rows of a strip that starts at output row `first` into the scratch image at `place`."""
        T, k, w, t = self.k.T, self.k, self.w, self.t
        height, width = w.size
        if t.strips == 1:  # rows outside the image hold the padding since the kernel began
            lo, hi = w.pads[0], min(t.lines, w.pads[0] + height)
            if lo < hi:
                with T.serial(lo, hi) as line:
                    self._copy_line(T.bind(source + (line - w.pads[0]) * width), T.bind(place + line * t.line))
            return
        with T.serial(0, t.lines) as line:
            y = T.bind(first * w.strides[0] - w.pads[0] + line)
            with T.If(T.And(y >= 0, y < height)):
                with T.Then():
                    self._copy_line(T.bind(source + y * width), T.bind(place + line * t.line))
                with T.Else():
                    fill_run(k, self.scratch, place + line * t.line, t.line, self.hooks.pad)

    def _copy_line(self, s: Any, d: Any) -> None:
        """One row of the image to its line of scratch: column i goes to padded column i + pad, that to (phase, index)."""
        T, k, w, t = self.k.T, self.k, self.w, self.t
        x, width, pad = k.arg("x"), w.size[1], w.pads[1]

        def place(i: Any, column: int) -> Any:  # `i` and `column` have the same phase
            return d + (column + pad) % t.phases * t.pitch + (i + pad) // t.phases

        if t.phases == 1:
            copy_run(k, x, s, self.scratch, d + pad, width)
            return
        lanes = k.lanes
        while lanes > 1 and 2 * lanes > width:
            lanes //= 2
        if t.phases != 2 or lanes < 2:
            for phase in range(min(t.phases, width)):
                with T.serial(0, ceil((width - phase) / t.phases)) as i:
                    k.store(self.scratch, place(phase, phase) + i, k.load(x, s + (i * t.phases + phase)))
            return
        # All places of a phase differ by the same amount: the vectors of even and of odd columns.
        even, odd = place(0, 0), place(1, 1)
        blocks = width // (2 * lanes)

        def sort(i: Any) -> None:  # i is even
            a = T.bind(k.load(x, s + i, lanes))
            b = T.bind(k.load(x, s + i + lanes, lanes))
            k.store(self.scratch, even + i // 2, T.Shuffle([a, b], list(range(0, 2 * lanes, 2))), lanes)
            k.store(self.scratch, odd + i // 2, T.Shuffle([a, b], list(range(1, 2 * lanes, 2))), lanes)

        for block in range(blocks):
            sort(block * 2 * lanes)
        if width % (2 * lanes) > 1:
            sort((width - 2 * lanes) // 2 * 2)
        if width % 2:
            k.store(self.scratch, place(width - 1, width - 1), k.load(x, s + (width - 1)))

    # --- what a tile reads ---

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
