"""Sliding windows over channels-last images: geometry from ONNX attributes, and the loop nest of depthwise convolution and pooling.

The nest runs over output rows (the units), tiles of output pixels held in registers, and vectors of channels. Padding is
never copied: rows clip the range of vertical taps at run time, and the tiles that touch the left or right border are
written out with each pixel's own horizontal taps, known when the kernel is built. A 1-D window is a 2-D one of height 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil, prod
from typing import Any

import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal
from sparsec.codegen.isa.pieces import pieces
from sparsec.codegen.layouts import Choice, multiply_time
from sparsec.target import Target

# A row of the tile table: first tile, number of tiles, first output pixel, pixels a tile, whether all taps are in bounds.
TileGroup = tuple[int, int, int, int, bool]

MAX_EDGE_TAPS = 2048  # border tiles are written out: a bound on code size
BLOCK_VECTORS = 16  # channel vectors of a block: what weights are decoded for at a time
MAX_TAP_UNROLL = 64  # wider windows loop over horizontal taps
ROW_SPLIT = 16  # images of fewer rows are split into about this many units


@dataclass(frozen=True)
class Window:
    """A 2-D window: everything is (vertical, horizontal); `pads` are those at the begin and at the end of each axis."""

    size: tuple[int, int]
    out: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int]
    pads_end: tuple[int, int]

    @staticmethod
    def of(p: Mapping[str, Any]) -> Window:
        """The window of kernel parameters made by `params`."""
        return Window(*(tuple(p[f]) for f in ("size", "out", "kernel", "strides", "dilations", "pads", "pads_end")))

    def params(self) -> dict[str, list[int]]:
        """JSON-able form."""
        return {
            "size": list(self.size),
            "out": list(self.out),
            "kernel": list(self.kernel),
            "strides": list(self.strides),
            "dilations": list(self.dilations),
            "pads": list(self.pads),
            "pads_end": list(self.pads_end),
        }

    def taps(self, axis: int, index: int) -> range:
        """The taps of output `index` that fall inside the image."""
        first = index * self.strides[axis] - self.pads[axis]
        step = self.dilations[axis]
        lo = max(0, -(first // step))
        hi = min(self.kernel[axis], -((first - self.size[axis]) // step))
        return range(lo, max(lo, hi))

    @property
    def crops(self) -> bool:
        """Whether a padding is negative."""
        return min(self.pads + self.pads_end) < 0

    def clean(self, axis: int) -> bool:
        """Whether no output of this axis reaches into the padding."""
        whole = range(self.kernel[axis])
        return self.taps(axis, 0) == whole and self.taps(axis, self.out[axis] - 1) == whole


def read_window(node: ir.Node, low: Lowering, kernel: Sequence[int] | None = None) -> Window | Refusal:
    """The window of a Conv or pooling node; refuses other ranks than (N, C, W) and (N, C, H, W).

    `kernel` is the shape of a convolution's weight; a pooling node names its own.
    """
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None
    shape, out = low.shape(source), low.shape(result)
    rank = len(shape) - 2
    if rank not in (1, 2):
        return Refusal(f"{rank}-D windows are not supported, only 1-D and 2-D")
    size = shape[2:]

    def ints(name: str, default: Sequence[int]) -> list[int]:
        attribute = node.attributes.get(name)
        return list(default) if attribute is None else [int(v) for v in attribute.as_ints()]

    taps = ints("kernel_shape", kernel or ())
    strides, dilations = ints("strides", [1] * rank), ints("dilations", [1] * rank)
    pads = ints("pads", [0] * (2 * rank))
    auto = node.attributes.get("auto_pad")
    mode = auto.as_string() if auto is not None else "NOTSET"
    if mode == "VALID":
        pads = [0] * (2 * rank)
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            max(0, (o - 1) * s + (k - 1) * d + 1 - i)
            for o, s, k, d, i in zip(out[2:], strides, taps, dilations, size, strict=True)
        ]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = small + large if mode == "SAME_UPPER" else large + small

    def pair(values: Sequence[int], fill: int) -> tuple[int, int]:
        return (fill, values[0]) if len(values) == 1 else (values[0], values[1])

    return Window(
        pair(size, 1),
        pair(out[2:], 1),
        pair(taps, 1),
        pair(strides, 1),
        pair(dilations, 1),
        pair(pads[:rank], 0),
        pair(pads[rank:], 0),
    )


def window_choice(low: Lowering, w: Window, shape: Sequence[int], results: int) -> Choice:
    """Estimated times of a sliding window over an input of `shape` in both layouts (row order: planes.py)."""
    macs, lanes = w.kernel[0] * w.kernel[1] * results, low.target.lanes
    cl = multiply_time(low, macs, 0.35 * min(1.0, shape[1] / lanes))
    if w.crops:
        return Choice({"cl": cl})
    width = w.out[1]
    filled = width / (ceil(width / lanes) * lanes) if width < lanes else 1.0
    return Choice({"row": multiply_time(low, macs, 0.35 * max(filled, 1.0 / lanes)) + 0.1 * prod(shape), "cl": cl})


def tile_groups(w: Window, widest: int) -> list[TileGroup]:
    """Cut a row of output pixels into tiles of about equal width, at most `widest`; equal neighbours form one group."""
    pixels = w.out[1]
    count = -(-pixels // widest)
    small, larger = divmod(pixels, count)
    whole = range(w.kernel[1])
    tiles, at = [], 0
    for index in range(count):
        width = small + (index < larger)
        tiles.append((at, width, all(w.taps(1, x) == whole for x in (at, at + width - 1))))
        at += width
    groups: list[TileGroup] = []
    for (width, clean), run in groupby(tiles, key=lambda t: (t[1], t[2])):
        members = list(run)
        first = groups[-1][0] + groups[-1][1] if groups else 0
        if clean:
            groups.append((first, len(members), members[0][0], width, True))
        else:  # each border tile has taps of its own
            groups.extend((first + i, 1, m[0], width, False) for i, m in enumerate(members))
    return groups


def segments(w: Window, batch: int, tiles: int) -> int:
    """Units a row: more than one where there are too few rows to go round the threads."""
    rows = batch * w.out[0]
    return 1 if rows >= ROW_SPLIT // 2 else min(tiles, -(-ROW_SPLIT // rows))


@dataclass(frozen=True)
class Row:
    """Run-time values of one output row: its image, the input row of its first tap, the range of taps inside the image."""

    image: Any
    top: Any
    lo: Any
    hi: Any


@dataclass(frozen=True)
class Hooks:
    """What the nest computes. Values are float32 vectors of `lanes` channels, starting at channel `c`.

    prepare(block): code before the work on a block of channels (None: nothing to do).
    start(c, lanes): the accumulator's first value.
    weight(tap, c, offset, lanes): the weight of a tap, `offset` being the channel inside the block (None: no weights).
    step(accumulator, x, weight, lanes): the accumulator after one tap.
    finish(accumulator, row, taps, x, at, lanes): what is stored at element `at` of `out` for output column `x`, `taps` of
    whose columns are inside the image (both are int where they are known when the kernel is built).
    """

    start: Callable[[Any, int], Any]
    step: Callable[[Any, Any, Any, int], Any]
    finish: Callable[[Any, Row, Any, Any, Any, int], Any]
    weight: Callable[[Any, Any, Any, int], Any] | None = None
    prepare: Callable[[Any], None] | None = None


@dataclass(frozen=True)
class Tiling:
    """Register tile of `pixels` output pixels at most and `vectors` channel vectors; channels go in `blocks` of `block`.

    `block` is a multiple of the vector width. The last block starts early when the channels do not fill it, and recomputes
    what it shares with the one before: no narrow tails.
    """

    pixels: int
    vectors: int
    block: int
    blocks: int


def choose_tiling(w: Window, channels: int, target: Target) -> Tiling:
    """As many pixels as registers allow beside one row of weights; several vectors where the image is narrow."""
    registers, lanes = target.vector_registers, target.lanes
    room = registers - min(w.kernel[1], registers // 4) - 2
    widest = max(4, min(room, 8 if registers <= 16 else 14))
    pixels = -(-w.out[1] // -(-w.out[1] // widest))
    vectors = max(1, min(4, 8 // pixels, channels // lanes))
    blocks = -(-channels // (BLOCK_VECTORS * lanes))
    block = -(-channels // (blocks * lanes)) * lanes
    return Tiling(pixels, vectors, block, -(-channels // block))


def first_channel(tiling: Tiling, channels: int, block: int) -> int:
    """The channel a block starts at."""
    return max(0, min(block * tiling.block, channels - tiling.block))


def window_units(w: Window, channels: int, batch: int, target: Target) -> int:
    """Number of units of `emit_window`."""
    groups = tile_groups(w, choose_tiling(w, channels, target).pixels)
    return batch * w.out[0] * segments(w, batch, groups[-1][0] + groups[-1][1])


def emit_window(k: Any, w: Window, channels: int, batch: int, hooks: Hooks) -> None:
    """The whole loop nest over the units [k.lo, k.hi); reads argument `x`, writes argument `out`."""
    T = k.T
    tiling = choose_tiling(w, channels, k.target)
    with T.serial(0, tiling.blocks) as block:
        if hooks.prepare is not None:
            hooks.prepare(block)
        first = T.bind(T.min(block * tiling.block, max(0, channels - tiling.block)))
        _Nest(k, w, channels, batch, hooks, tiling, first).rows()


class _Nest:
    """The rows, tiles and vectors of one block of channels."""

    def __init__(self, k: Any, w: Window, channels: int, batch: int, hooks: Hooks, tiling: Tiling, first: Any) -> None:
        self.k, self.w, self.channels, self.hooks, self.tiling, self.first = k, w, channels, hooks, tiling, first
        self.groups = tile_groups(w, tiling.pixels)
        self.tiles = self.groups[-1][0] + self.groups[-1][1]
        self.segments = segments(w, batch, self.tiles)
        border = sum(g[3] * w.kernel[1] for g in self.groups if not g[4])
        self.written_out = border <= MAX_EDGE_TAPS and w.kernel[1] <= MAX_TAP_UNROLL
        self.pieces = [] if channels >= k.lanes else pieces(channels, k.lanes)
        # One buffer a vector width: LLVM keeps a buffer in registers only if it is always accessed alike.
        widths = sorted({n for _, n in self.pieces} or {k.lanes})
        self.acc = {n: k.local(tiling.pixels * tiling.vectors * n) for n in widths}

    def rows(self) -> None:
        """All units of the call."""
        T, w, k = self.k.T, self.w, self.k
        (height, width), (out_h, out_w) = w.size, w.out
        with T.serial(k.lo, k.hi) as unit:
            line = T.bind(T.truncdiv(unit, self.segments)) if self.segments > 1 else unit
            image = T.bind(T.truncdiv(line, out_h))
            top = T.bind((line - image * out_h) * w.strides[0] - w.pads[0])
            if w.clean(0):
                row = Row(image, top, 0, w.kernel[0])
            else:
                step = w.dilations[0]
                lo = T.bind(T.max(0, T.truncdiv(step - 1 - top, step)))
                row = Row(image, top, lo, T.bind(T.min(w.kernel[0], T.truncdiv(height - top + step - 1, step))))
            source = T.bind((image * height + top) * (width * self.channels))
            target = T.bind(line * (out_w * self.channels))
            part: list[Any] = []
            if self.segments > 1:
                seg = unit - line * self.segments
                part = [T.bind(T.truncdiv((seg + i) * self.tiles, self.segments)) for i in (0, 1)]
            for group in self.groups:
                self._tiles(group, part, row, source, target)

    def _tiles(self, group: TileGroup, part: list[Any], row: Row, source: Any, target: Any) -> None:
        T = self.k.T
        at, count, pixel, size, clean = group
        begin, end = (T.max(part[0], at), T.min(part[1], at + count)) if part else (at, at + count)
        with T.serial(begin, end) as t:
            x = pixel if count == 1 else T.bind((t - at) * size + pixel)
            if clean or self.written_out:
                self._vectors(lambda offset, n, v: self._tile(row, source, target, x, size, offset, n, v))
            else:
                with T.serial(0, size) as i:
                    self._vectors(lambda offset, n, v: self._pixel(row, source, target, x + i, offset, n, v))

    def _vectors(self, body: Callable[[Any, int, int], None]) -> None:
        """body(first channel inside the block, lanes, vectors) for all channels of the block."""
        T, k, tiling = self.k.T, self.k, self.tiling
        for offset, n in self.pieces:
            body(offset, n, 1)
        if not self.pieces:
            chunk, width = k.lanes * tiling.vectors, min(tiling.block, self.channels)
            with T.serial(0, -(-width // chunk)) as i:
                body(T.bind(T.min(i * chunk, width - chunk)), k.lanes, tiling.vectors)

    def _weight(self, kh: Any, kw: Any, offset: Any, n: int) -> Any:
        if self.hooks.weight is None:
            return None
        return self.k.T.bind(self.hooks.weight(kh * self.w.kernel[1] + kw, self.first + offset, offset, n))

    def _taps(self, row: Row, body: Callable[[Any], None]) -> None:
        if isinstance(row.hi, int) and row.hi == 1:
            body(0)
            return
        with self.k.T.serial(row.lo, row.hi) as kh:
            body(kh)

    def _tile(self, row: Row, source: Any, target: Any, x: Any, size: int, offset: Any, n: int, vectors: int) -> None:
        """Output pixels [x, x + size) of a row; taps outside the image are left out when the kernel is built."""
        k, w, hooks, T = self.k, self.w, self.hooks, self.k.T
        acc, data = self.acc[n], k.arg("x")
        c = T.bind(self.first + offset)
        whole = range(w.kernel[1])
        taps = [w.taps(1, x + i) if isinstance(x, int) else whole for i in range(size)]
        for i in range(size):
            for v in range(vectors):
                k.store(acc, (i * vectors + v) * n, hooks.start(c + v * n, n), n)
        left = x * w.strides[1] - w.pads[1]

        def step(i: int, v: int, value: Any, weight: Any) -> None:
            at = (i * vectors + v) * n
            k.store(acc, at, hooks.step(k.load(acc, at, n), value, weight, n), n)

        def unrolled(kh: Any) -> None:
            line = T.bind(source + (kh * (w.dilations[0] * w.size[1]) + left) * self.channels + c)
            users: dict[int, list[tuple[int, int]]] = {}
            for i, kws in enumerate(taps):
                for kw in kws:
                    users.setdefault(i * w.strides[1] + kw * w.dilations[1], []).append((i, kw))
            for v in range(vectors):
                weights = {kw: self._weight(kh, kw, offset + v * n, n) for kw in whole if any(kw in t for t in taps)}
                for column in sorted(users):  # every input pixel is loaded once and used by all outputs it reaches
                    value = T.bind(k.load(data, line + column * self.channels + v * n, n))
                    for i, kw in users[column]:
                        step(i, v, value, weights[kw])

        def looped(kh: Any) -> None:
            line = T.bind(source + (kh * (w.dilations[0] * w.size[1]) + left) * self.channels + c)
            with T.serial(0, w.kernel[1]) as kw:
                for v in range(vectors):
                    weight = self._weight(kh, kw, offset + v * n, n)
                    for i in range(size):
                        column = i * w.strides[1] + kw * w.dilations[1]
                        step(i, v, k.load(data, line + column * self.channels + v * n, n), weight)

        self._taps(row, unrolled if w.kernel[1] <= MAX_TAP_UNROLL else looped)
        for i in range(size):
            for v in range(vectors):
                at = T.bind(target + (x + i) * self.channels + c + v * n)
                value = k.load(acc, (i * vectors + v) * n, n)
                k.store(k.arg("out"), at, hooks.finish(value, row, len(taps[i]), x + i, at, n), n)

    def _pixel(self, row: Row, source: Any, target: Any, x: Any, offset: Any, n: int, vectors: int) -> None:
        """Output pixel x of a row, its taps clipped at run time: for borders too wide to be written out."""
        k, w, hooks, T = self.k, self.w, self.hooks, self.k.T
        acc, data, step = self.acc[n], k.arg("x"), w.dilations[1]
        c = T.bind(self.first + offset)
        left = T.bind(x * w.strides[1] - w.pads[1])
        lo = T.bind(T.max(0, T.truncdiv(step - 1 - left, step)))
        hi = T.bind(T.min(w.kernel[1], T.truncdiv(w.size[1] - left + step - 1, step)))
        for v in range(vectors):
            k.store(acc, v * n, hooks.start(c + v * n, n), n)

        def taps(kh: Any) -> None:
            line = T.bind(source + (kh * (w.dilations[0] * w.size[1]) + left) * self.channels + c)
            with T.serial(lo, hi) as kw:
                for v in range(vectors):
                    value = k.load(data, line + kw * (step * self.channels) + v * n, n)
                    weight = self._weight(kh, kw, offset + v * n, n)
                    k.store(acc, v * n, hooks.step(k.load(acc, v * n, n), value, weight, n), n)

        self._taps(row, taps)
        for v in range(vectors):
            at = T.bind(target + x * self.channels + c + v * n)
            k.store(k.arg("out"), at, hooks.finish(k.load(acc, v * n, n), row, hi - lo, x, at, n), n)
