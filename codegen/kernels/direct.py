"""Dense float32 convolution on channels-last images as implicit matrix multiplication: no receptive field is ever copied.

A tile of MR neighbouring output pixels x NR filters accumulates in registers. Row m of the left matrix is the receptive field of
pixel m, read where it lies: the values of one tap, and of a whole kernel row where pixels are packed, are neighbours in
memory, and those of the next pixel follow at a constant distance. Where the window reaches outside the image, the
input rows of a part of the image are first copied to scratch with zeros around them (once a part and thread, not once a tap).

K is ordered (kernel row, kernel column, channel) and cut into runs, so that the chunk of a panel of weights stays in the level-2
cache while all tiles of the part pass over it (Goto and van de Geijn, 2008); partial sums wait in the output. Units are (image,
part of its rows, panel of filters). Few-channel images in row order are interleaved while they are copied to scratch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from sparsec.codegen.isa.epilogue import activation_cost, apply_activation
from sparsec.codegen.isa.memory import prefetch
from sparsec.codegen.isa.pieces import pieces
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels.last_tile import with_size
from sparsec.codegen.kernels.padded import copy_padded
from sparsec.codegen.kernels.window import Window
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target

Array = np.ndarray[Any, Any]

# Bytes of the chunk of a panel of weights, and of a part's scratch: together they leave room in a level-2 cache of 1 MB.
_CHUNK_BYTES, _SCRATCH_BYTES = 160 * 1024, 400 * 1024
# Weights up to this size stay in a level-2 cache while the parts of the image pass.
_WEIGHT_BYTES = 512 * 1024
# Smallest unit, in multiplications, that is worth waking a thread for.
_UNIT_MACS = 250_000
# Threads are not equally fast, so small units end together more often: loss by one unit in `count`. (AVX-512, 4 threads: of 1.0
# and 2.0 this took less time, 1x1 convolutions to few filters 0.75 of that with 8 units; one thread is as fast.)
_UNEVEN = 2.0
# Steps of K that are unrolled, and how many steps ahead wide vectors of weights are fetched.
_UNROLL, _AHEAD = 4, 16
# Images in row order with at most so many channels are interleaved on the way to scratch.
MOST_PLANES = 4
# A costlier activation is applied in a pass of its own over the tile in cache: the accumulators would not stay in registers.
_CHEAP_ACTIVATION = 5


@dataclass(frozen=True)
class Blocking:
    """Sizes that follow from the parameters; see the module's docstring."""

    mr: int  # pixels of a tile; the tiles after the first `wide` of a row have one less
    wide: int
    tiles: int  # of a row
    nr: int
    panels: int
    rows: int  # output rows of a part
    parts: int  # of an image
    padded: bool  # whether input rows pass through scratch
    pixel: int  # distances in elements of pixels and of lines, where they are read
    line: int
    lines: int  # of scratch
    runs: int  # values that lie together, `run` of them each; `joined`: whole kernel rows
    run: int
    joined: bool
    together: int  # runs of a chunk


def blocking(p: Mapping[str, Any], target: Target) -> Blocking:
    """Block sizes of a convolution (a pure function of the parameters)."""
    w, c, n = Window.of(p), p["channels"], p["filters"]
    lanes, registers, (out_h, out_w) = target.lanes, target.vector_registers, w.out
    vectors = ceil(n / lanes)
    nv = ceil(vectors / ceil(vectors / (3 if lanes >= 8 else 4)))
    # All accumulators, one row of weights and one broadcast pixel must fit the register file.
    tiles = ceil(out_w / min(14, (registers - 1 - nv) // nv))
    mr = ceil(out_w / tiles)
    nr, panels = nv * lanes, ceil(n / (nv * lanes))
    padded = p["x"] == "row" or not (w.clean(0) and w.clean(1))
    # Pixels at a large power of two would crowd into few cache sets.
    pixel = c + (16 if padded and c % 256 == 0 else 0)
    columns = (out_w - 1) * w.strides[1] + (w.kernel[1] - 1) * w.dilations[1] + 1
    line = pixel * columns if padded else c * w.size[1]

    def lines(rows: int) -> int:
        return (rows - 1) * w.strides[0] + (w.kernel[0] - 1) * w.dilations[0] + 1

    rows = _part_rows(p, w, panels, lambda r: lines(r) * line * 4 if padded else 0)
    joined = w.dilations[1] == 1 and pixel == c
    length, count = (w.kernel[1] * c, w.kernel[0]) if joined else (c, w.kernel[0] * w.kernel[1])
    most = _CHUNK_BYTES // (4 * nr)
    pieces = next((q for q in range(1, 65) if length % q == 0 and length // q <= most), 1)
    run, runs = length // pieces, count * pieces
    together = max((g for g in range(1, count + 1) if count % g == 0 and g * run <= most), default=1)
    return Blocking(
        mr, out_w - tiles * (mr - 1), tiles, nr, panels, rows, ceil(out_h / rows), padded, pixel, line,
        lines(rows) if padded else 0, runs, run, joined, together if pieces == 1 else 1,
    )  # fmt: skip


def _part_rows(p: Mapping[str, Any], w: Window, panels: int, scratch: Any) -> int:
    """Output rows of a part: units split evenly over 2, 4 and 8 threads, and the scratch stays in cache."""
    out_h, batch = w.out[0], p["batch"]
    macs = out_h * w.out[1] * p["filters"] * w.kernel[0] * w.kernel[1] * p["channels"]
    most = max(1, batch * macs // _UNIT_MACS)
    weights = 4 * macs // (out_h * w.out[1])

    def cost(rows: int) -> float:
        parts = ceil(out_h / rows)
        count = batch * parts * panels
        waste = parts * rows / out_h + (0.02 * (w.kernel[0] - 1) / rows if scratch(1) else 0.0)
        waste += (16 if weights > _WEIGHT_BYTES else 4) / (rows * w.out[1])  # every part reads all weights
        spread = sum(ceil(count / t) * t / count for t in (2, 4, 8)) / 3
        cache = 0.2 if scratch(rows) > _SCRATCH_BYTES else 0.0
        return float(waste * (spread + _UNEVEN / count) + cache + 0.003 * parts + (0.5 if count > most else 0.0))

    return min(range(out_h, 0, -1), key=cost)


def pack(weight: Array, p: Mapping[str, Any], target: Target) -> Array:
    """W[N, C * taps] in ONNX order (channel, tap) -> panels [K][NR], K in the order (tap, channel); padded with zeros."""
    t, w = blocking(p, target), Window.of(p)
    n, taps = weight.shape[0], w.kernel[0] * w.kernel[1]
    physical = np.zeros((t.panels * t.nr, taps, p["channels"]), np.float32)
    physical[:n] = weight.reshape(n, p["channels"], taps).transpose(0, 2, 1)
    return physical.reshape(t.panels, t.nr, -1).transpose(0, 2, 1)


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: x, b (see pack), bias? [N], residual? like out; out: out [batch, OH, OW, N]; work: padded rows of the image.

    `pitch` is the distance of output pixels, N or more.
    """
    t, w = blocking(p, target), Window.of(p)
    n, c, taps = p["filters"], p["channels"], w.kernel[0] * w.kernel[1]
    pixels = p["batch"] * w.out[0] * w.out[1]
    results = (pixels - 1) * p["pitch"] + n
    args = [Arg("x", "float32", p["batch"] * w.size[0] * w.size[1] * c, "in")]
    args.append(Arg("b", "float32", t.panels * t.nr * taps * c, "in"))
    if p["bias"]:
        args.append(Arg("bias", "float32", n, "in"))
    if p["residual"]:
        args.append(Arg("residual", "float32", results, "in"))
    args.append(Arg("out", "float32", results, "out"))
    if t.padded:
        args.append(Arg("scratch", "float32", t.lines * t.line, "work"))
    cost = pixels * n * (2 * taps * c + 2 + activation_cost(p["act"]))
    return Signature(tuple(args), units=p["batch"] * t.parts * t.panels, cost=cost)


def build(p: Mapping[str, Any], k: Any) -> None:
    """Write the loop nest (see the module's docstring)."""
    _Direct(p, k).write()


class _Direct:
    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.p, self.k, self.T = p, k, k.T
        self.t, self.w = blocking(p, k.target), Window.of(p)
        self.lanes: int = k.lanes
        self.depth = p["channels"] * self.w.kernel[0] * self.w.kernel[1]

    def write(self) -> None:
        """Part by part, panel by panel, chunk by chunk of K, tile by tile."""
        T, t, k = self.T, self.t, self.k
        with T.serial(T.truncdiv(k.lo, t.panels), T.truncdiv(k.hi + (t.panels - 1), t.panels)) as part:
            first = bind(k, T.max(k.lo - part * t.panels, 0))
            last = bind(k, T.min(k.hi - part * t.panels, t.panels))
            image = bind(k, T.truncdiv(part, t.parts))
            row0 = bind(k, (part - image * t.parts) * t.rows)
            row1 = bind(k, T.min(row0 + t.rows, self.w.out[0]))
            if t.padded:
                w = self.w
                lines = (row1 - row0 - 1) * w.strides[0] + ((w.kernel[0] - 1) * w.dilations[0] + 1)
                top = bind(k, row0 * w.strides[0] - w.pads[0])
                copy_padded(k, self.p, image, top, bind(k, lines), pixel=t.pixel, line=t.line)
            with T.serial(first, last) as panel:
                with_size(
                    k, panel, self.p["filters"], t.nr, lambda columns: self._panel(image, row0, row1, panel, columns)
                )

    # --- the product ---

    def _panel(self, image: Any, row0: Any, row1: Any, panel: Any, columns: int) -> None:
        T, k, t, w = self.T, self.k, self.t, self.w
        source = k.arg("scratch" if t.padded else "x")
        narrow = t.tiles - t.wide
        with T.serial(0, t.runs // t.together) as chunk, T.serial(row0, row1) as y:
            base = 0 if t.padded else image * (w.size[0] * t.line)
            line = bind(k, (y - (row0 if t.padded else 0)) * (w.strides[0] * t.line) + base)
            out = bind(k, ((image * w.out[0] + y) * w.out[1]) * self.p["pitch"] + panel * t.nr)
            for first, count, size in ((0, t.wide, t.mr), (t.wide * t.mr, narrow, t.mr - 1)):
                if count:
                    with T.serial(0, count) as i:
                        x = bind(k, i * size + first)
                        at = bind(k, line + x * (w.strides[1] * t.pixel))
                        self._tile(source, chunk, panel, at, bind(k, out + x * self.p["pitch"]), size, columns)

    def _tile(self, source: Any, chunk: Any, panel: Any, at: Any, out: Any, pixels: int, columns: int) -> None:
        T, k, p, t, lanes = self.T, self.k, self.p, self.t, self.lanes
        c, n, chunks = k.arg("out"), p["pitch"], t.runs // t.together
        vectors = ceil(columns / lanes)
        acc = k.local(pixels * vectors * lanes)
        stores = [
            (i, j * lanes + start, (i * vectors + j) * lanes + start, width)
            for i in range(pixels)
            for j in range(vectors)
            for start, width in pieces(min(columns - j * lanes, lanes), lanes)
        ]

        def zero() -> None:
            for slot in range(pixels * vectors):
                k.store(acc, slot * lanes, k.f32(0.0, lanes), lanes)

        def finish() -> None:
            cheap = activation_cost(p["act"]) <= _CHEAP_ACTIVATION
            for i, j, slot, width in stores:
                value, to = k.load(acc, slot, width), out + (i * n + j)
                if p["bias"]:
                    value = value + k.load(k.arg("bias"), panel * t.nr + j, width)
                if p["residual"]:
                    value = value + k.load(k.arg("residual"), to, width)
                if cheap:
                    value = apply_activation(k, p["act"], p["act_params"], value, width)
                k.store(c, to, value, width)
            if not cheap:
                with T.serial(0, pixels) as i:
                    for _, j, _, width in [piece for piece in stores if piece[0] == 0]:
                        to = out + i * n + j
                        value = apply_activation(k, p["act"], p["act_params"], k.load(c, to, width), width)
                        k.store(c, to, value, width)

        if chunks == 1:
            zero()
            self._multiply(source, chunk, panel, at, acc, pixels, vectors)
            finish()
            return
        with T.If(chunk == 0):
            with T.Then():
                zero()
            with T.Else():
                for i, j, slot, width in stores:
                    k.store(acc, slot, k.load(c, out + (i * n + j), width), width)
        self._multiply(source, chunk, panel, at, acc, pixels, vectors)
        with T.If(chunk == chunks - 1):
            with T.Then():
                finish()
            with T.Else():
                for i, j, slot, width in stores:
                    k.store(c, out + (i * n + j), k.load(acc, slot, width), width)

    def _multiply(self, source: Any, chunk: Any, panel: Any, at: Any, acc: Any, pixels: int, vectors: int) -> None:
        """acc += the chunk's part of the receptive fields times its part of the panel."""
        T, k, t, w, lanes = self.T, self.k, self.t, self.w, self.lanes
        b, distance = k.arg("b"), w.strides[1] * t.pixel
        b0 = bind(k, panel * (self.depth * t.nr) + chunk * (t.together * t.run * t.nr))
        kernel_w = 1 if t.joined else w.kernel[1]
        pieces = t.runs // (w.kernel[0] * kernel_w)

        ahead = _AHEAD * t.nr if lanes >= 16 else 0

        def step(a: Any, weights: Any, kk: Any) -> None:
            for j in range(vectors if ahead else 0):
                prefetch(k, b, weights + kk * t.nr + (ahead + j * lanes))
            row = [bind(k, k.load(b, weights + kk * t.nr + j * lanes, lanes)) for j in range(vectors)]
            for i in range(pixels):
                value = k.splat(k.load(source, a + (i * distance) + kk), lanes)
                for j in range(vectors):
                    slot = (i * vectors + j) * lanes
                    k.store(acc, slot, k.load(acc, slot, lanes) + value * row[j], lanes)

        def run(index: Any, weights: Any) -> None:
            tap, piece = T.truncdiv(index, pieces), T.truncmod(index, pieces)
            kh, kw = T.truncdiv(tap, kernel_w), T.truncmod(tap, kernel_w)
            offset = kh * (w.dilations[0] * t.line) + kw * (w.dilations[1] * t.pixel) + piece * t.run
            a = bind(k, at + offset)
            whole = t.run // _UNROLL
            if whole > 1:
                with T.serial(0, whole) as q:
                    for u in range(_UNROLL):
                        step(a, weights, q * _UNROLL + u)
            for kk in range(whole * _UNROLL if whole > 1 else 0, t.run):
                step(a, weights, T.int32(kk))

        if t.together == 1:
            run(chunk, b0)
        else:
            with T.serial(0, t.together) as r:
                run(bind(k, chunk * t.together + r), bind(k, b0 + r * (t.run * t.nr)))
