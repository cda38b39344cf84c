"""Dense float32 convolution with windows of 3 x 3 pixels at stride 1, by Winograd's minimal filtering F(2x2, 3x3): 16 multiplications
for four outputs where the definition takes 36.

A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015: Y = A^T [(G g G^T) . (B^T d B)] A for tiles d of 4 x 4 inputs
that overlap by two, with B and A of 0 and +-1, so that errors stay those of a few additions. Over channels the product in the middle is
16 matrix products [tiles, C] x [C, N]. Images lie channels last: transforms work on vectors of channels, or of filters.

A unit is (image, part of its rows of tiles, panel of filters). A part's input rows go to scratch with zeros around them and their tiles
are transformed once for all panels that a thread has of it; then for each panel 16 products into `products`, and from there the outputs.
An infinite input makes NaN of all outputs of the tiles that see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from sparsec.codegen.isa.epilogue import activation_cost, apply_activation
from sparsec.codegen.isa.pieces import pieces
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels.last_tile import with_size
from sparsec.codegen.kernels.padded import copy_padded
from sparsec.codegen.kernels.window import Window
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target

Array = np.ndarray[Any, Any]

# What a part's transformed tiles may take of a level-2 cache.
_NEAR_BYTES = 480 * 1024
# Steps of a product that are unrolled.
_UNROLL = 2
# Fewer outputs of an image would read the weights, 16/9 of their size, too often for what is saved; fewer channels and filters
# leave too little between the transforms.
_FEWEST_PIXELS, _FEWEST_CHANNELS = 128, 32
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
# Rows of B^T: which two rows of a tile are added, and with which sign the second.
_PAIRS = ((0, 2, -1), (1, 2, 1), (2, 1, -1), (1, 3, -1))


def applies(w: Window, channels: int, filters: int) -> bool:
    """Whether a convolution has the shape for it and is large enough to gain."""
    unit = w.kernel == (3, 3) and set(w.strides) == {1} and set(w.dilations) == {1} and not w.crops
    return unit and w.out[0] * w.out[1] >= _FEWEST_PIXELS and min(channels, filters) >= _FEWEST_CHANNELS


@dataclass(frozen=True)
class Blocking:
    """Sizes that follow from the parameters; see the module's docstring."""

    across: int  # tiles of a row
    down: int  # rows of tiles
    rows: int  # of tiles in a part
    parts: int  # of an image
    nr: int
    panels: int
    mr: int  # tiles of a register block
    pixel: int  # distances in scratch, in elements
    line: int

    @property
    def tiles(self) -> int:
        """Of a part."""
        return self.rows * self.across


def blocking(p: Mapping[str, Any], target: Target) -> Blocking:
    """Block sizes of a convolution (a pure function of the parameters)."""
    w, c, lanes = Window.of(p), p["channels"], target.lanes
    across, down = ceil(w.out[1] / 2), ceil(w.out[0] / 2)
    vectors = ceil(p["filters"] / lanes)
    nv = ceil(vectors / ceil(vectors / (3 if lanes >= 8 else 4)))
    panels = ceil(p["filters"] / (nv * lanes))
    rows = _part_rows(p["batch"], down, across, panels, c)
    parts = ceil(down / rows)
    most = min((target.vector_registers - 1 - nv) // nv, (down - (parts - 1) * rows) * across)
    mr = ceil(rows * across / ceil(rows * across / most))
    pixel = c + (16 if c % 256 == 0 else 0)  # pixels at a large power of two would crowd into few cache sets
    return Blocking(across, down, rows, parts, nv * lanes, panels, mr, pixel, pixel * (2 * across + 2))


def _part_rows(batch: int, down: int, across: int, panels: int, channels: int) -> int:
    """Rows of tiles of a part: they fit the cache, threads share units evenly, and weights are read seldom."""

    def cost(rows: int) -> float:
        count = batch * ceil(down / rows) * panels
        spread = sum(ceil(count / t) * t / count for t in (2, 4, 8)) / 3
        near = rows * across * 16 * channels * 4 <= _NEAR_BYTES
        return spread + 3 / (rows * across) + (0.0 if near else 0.2) + 0.1 * (ceil(down / rows) * rows / down - 1)

    return min(range(down, 0, -1), key=cost)


def pack(weight: Array, p: Mapping[str, Any], target: Target) -> Array:
    """W[N, C * 9] in ONNX order (channel, tap) -> G g G^T in panels [panel][16][C][NR], padded with zeros."""
    t, (n, c) = blocking(p, target), (len(weight), p["channels"])
    padded = np.zeros((t.panels * t.nr, c, 3, 3))
    padded[:n] = weight.reshape(n, c, 3, 3)
    turned = (_G @ padded @ _G.T).reshape(t.panels, t.nr, c, 16)
    return np.ascontiguousarray(turned.transpose(0, 3, 2, 1), np.float32)


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: x, b (see pack), bias? [N], residual? like out; out: out [batch, OH, OW, N]; work: padded rows, tiles [16][tiles][C], products
    [16][tiles][NR].

    `pitch` is the distance of output pixels, N or more.
    """
    t, w, n, c = blocking(p, target), Window.of(p), p["filters"], p["channels"]
    pixels = p["batch"] * w.out[0] * w.out[1]
    results = (pixels - 1) * p["pitch"] + n
    args = [Arg("x", "float32", p["batch"] * w.size[0] * w.size[1] * c, "in")]
    args.append(Arg("b", "float32", t.panels * t.nr * 16 * c, "in"))
    if p["bias"]:
        args.append(Arg("bias", "float32", n, "in"))
    if p["residual"]:
        args.append(Arg("residual", "float32", results, "in"))
    args.append(Arg("out", "float32", results, "out"))
    args.append(Arg("scratch", "float32", (2 * t.rows + 2) * t.line, "work"))
    args.append(Arg("tiles", "float32", 16 * t.tiles * c, "work"))
    args.append(Arg("products", "float32", 16 * t.tiles * t.nr, "work"))
    transforms = p["batch"] * t.down * t.across * (32 * c + 24 * n)
    multiplied = p["batch"] * t.down * t.across * 16 * 2 * c * n
    cost = multiplied + transforms + pixels * n * (2 + activation_cost(p["act"]))
    return Signature(tuple(args), units=p["batch"] * t.parts * t.panels, cost=cost)


def build(p: Mapping[str, Any], k: Any) -> None:
    """Write the loop nest (see the module's docstring)."""
    _Winograd(p, k).write()


class _Winograd:
    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.p, self.k, self.T = p, k, k.T
        self.t, self.w = blocking(p, k.target), Window.of(p)
        self.lanes: int = k.lanes

    def write(self) -> None:
        """Part by part, panel by panel."""
        T, t, k = self.T, self.t, self.k
        with T.serial(T.truncdiv(k.lo, t.panels), T.truncdiv(k.hi + (t.panels - 1), t.panels)) as part:
            first = bind(k, T.max(k.lo - part * t.panels, 0))
            last = bind(k, T.min(k.hi - part * t.panels, t.panels))
            image = bind(k, T.truncdiv(part, t.parts))
            row0 = bind(k, (part - image * t.parts) * t.rows)
            rows = bind(k, T.min(t.rows, t.down - row0))
            top = bind(k, row0 * 2 - self.w.pads[0])
            copy_padded(k, self.p, image, top, bind(k, rows * 2 + 2), pixel=t.pixel, line=t.line)
            self._transform(rows)
            with T.serial(first, last) as panel:
                with_size(
                    k, panel, self.p["filters"], t.nr, lambda columns: self._panel(image, row0, rows, panel, columns)
                )

    def _transform(self, rows: Any) -> None:
        """tiles = B^T d B of every tile of the part."""
        T, k, t, c, lanes = self.T, self.k, self.t, self.p["channels"], self.lanes
        with T.serial(0, rows) as row, T.serial(0, t.across) as column:
            source = bind(k, row * (2 * t.line) + column * (2 * t.pixel))
            to = bind(k, (row * t.across + column) * c)
            if whole := c // lanes:
                with T.serial(0, whole) as i:
                    self._transform_vector(source + i * lanes, to + i * lanes, lanes)
            for start, width in pieces(c % lanes, lanes):
                self._transform_vector(source + (whole * lanes + start), to + (whole * lanes + start), width)

    def _transform_vector(self, source: Any, to: Any, width: int) -> None:
        """Of `width` channels of a tile. Row by row of the result: few vectors are needed at a time."""
        k, t, scratch = self.k, self.t, self.k.arg("scratch")

        def pair(a: Any, b: Any, sign: int) -> Any:
            return a + b if sign > 0 else a - b

        for i, (a, b, sign) in enumerate(_PAIRS):
            at = [source + (a * t.line + j * t.pixel) for j in range(4)]
            other = [source + (b * t.line + j * t.pixel) for j in range(4)]
            line = [
                bind(k, pair(k.load(scratch, u, width), k.load(scratch, v, width), sign))
                for u, v in zip(at, other, strict=True)
            ]
            for j, (left, right, turn) in enumerate(_PAIRS):
                place = to + (i * 4 + j) * (t.tiles * self.p["channels"])
                k.store(k.arg("tiles"), place, pair(line[left], line[right], turn), width)

    def _panel(self, image: Any, row0: Any, rows: Any, panel: Any, columns: int) -> None:
        """products = tiles times the panel's weights, 16 times; outputs."""
        T, k, t, c = self.T, self.k, self.t, self.p["channels"]
        count = bind(k, rows * t.across)
        with T.serial(0, 16) as position:
            weights = bind(k, (panel * 16 + position) * (c * t.nr))
            with T.serial(0, bind(k, T.truncdiv(count + (t.mr - 1), t.mr))) as group:
                # the last block may do tiles of the one before again
                tile = bind(k, T.min(group * t.mr, count - t.mr))
                at = bind(k, (position * t.tiles + tile) * c)
                self._multiply(at, weights, bind(k, (position * t.tiles + tile) * t.nr), columns)
        with T.serial(0, rows) as row:
            y = bind(k, (row0 + row) * 2)
            line = bind(k, (image * self.w.out[0] + y) * self.w.out[1])
            whole = self.w.out[1] // 2
            with T.serial(0, whole) as column:
                self._outputs(row * t.across + column, panel, y, line + column * 2, 2, columns)
            if self.w.out[1] % 2:
                self._outputs(row * t.across + whole, panel, y, line + whole * 2, 1, columns)

    def _multiply(self, at: Any, weights: Any, to: Any, columns: int) -> None:
        """products of `mr` tiles, all channels, one of the 16 places."""
        T, k, t, c, lanes = self.T, self.k, self.t, self.p["channels"], self.lanes
        vectors = ceil(columns / lanes)
        acc = k.local(t.mr * vectors * lanes)
        for slot in range(t.mr * vectors):
            k.store(acc, slot * lanes, k.f32(0.0, lanes), lanes)

        def step(channel: Any) -> None:
            row = [bind(k, k.load(k.arg("b"), weights + channel * t.nr + j * lanes, lanes)) for j in range(vectors)]
            for i in range(t.mr):
                value = k.splat(k.load(k.arg("tiles"), at + i * c + channel), lanes)
                for j in range(vectors):
                    slot = (i * vectors + j) * lanes
                    k.store(acc, slot, k.load(acc, slot, lanes) + value * row[j], lanes)

        with T.serial(0, c // _UNROLL) as i:
            for u in range(_UNROLL):
                step(i * _UNROLL + u)
        for channel in range(c // _UNROLL * _UNROLL, c):
            step(T.int32(channel))
        for i in range(t.mr):
            for j in range(vectors):
                value = k.load(acc, (i * vectors + j) * lanes, lanes)
                k.store(k.arg("products"), to + (i * t.nr + j * lanes), value, lanes)

    def _outputs(self, tile: Any, panel: Any, y: Any, pixel: Any, across: int, columns: int) -> None:
        """Outputs [2, across] of a tile from its products; the second row where the image has one."""
        T, k, t, lanes = self.T, self.k, self.t, self.lanes
        source = bind(k, tile * t.nr)
        out = bind(k, pixel * self.p["pitch"] + panel * t.nr)
        below = self.w.out[1] * self.p["pitch"]
        for start in range(0, ceil(columns / lanes)):

            def product(i: int, j: int, at: int = start * lanes) -> Any:
                return k.load(k.arg("products"), source + ((i * 4 + j) * (t.tiles * t.nr) + at), lanes)

            upper = [bind(k, product(0, j) + product(1, j) + product(2, j)) for j in range(4)]
            lower = [bind(k, product(1, j) - product(2, j) - product(3, j)) for j in range(4)]
            self._store(upper, out, panel, start * lanes, across, columns)
            if self.w.out[0] % 2:
                with T.If(y + 1 < self.w.out[0]), T.Then():
                    self._store(lower, bind(k, out + below), panel, start * lanes, across, columns)
            else:
                self._store(lower, bind(k, out + below), panel, start * lanes, across, columns)

    def _store(self, row: list[Any], out: Any, panel: Any, first: int, across: int, columns: int) -> None:
        """Finish and store one row of a tile's outputs from its four sums."""
        k, p, lanes = self.k, self.p, self.lanes
        both = [row[0] + row[1] + row[2], row[1] - row[2] - row[3]][:across]
        for x, sums in enumerate(both):
            held = k.local(lanes)
            k.store(held, 0, sums, lanes)
            for start, width in pieces(min(columns - first, lanes), lanes):
                value, to = k.load(held, start, width), out + (x * p["pitch"] + first + start)
                if p["bias"]:
                    value = value + k.load(k.arg("bias"), panel * self.t.nr + (first + start), width)
                if p["residual"]:
                    value = value + k.load(k.arg("residual"), to, width)
                value = apply_activation(k, p["act"], p["act_params"], value, width)
                k.store(k.arg("out"), to, value, width)
