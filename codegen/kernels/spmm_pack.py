"""Activations for spmm.py: a chunk of columns of one tile of pixels, brought into the panel [column][pitch] of the work space.

Sources (an image is the channels of one group):
`planes` x[image][K][pixel] (NCHW, pointwise convolution), `tokens` x[pixel][K] (linear layers, or channels last), and
`window` x[image][channel][row][column] of a convolution, whose receptive fields become columns (channel, tap). Lanes of a tile
past the last pixel hold any finite value that is in x, or zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

from sparsec.codegen.isa.memory import prefetch
from sparsec.codegen.isa.pieces import pieces
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels.spmm_bytes import Rounding
from sparsec.codegen.kernels.spmm_plan import TileKind

Loader = Callable[[int], Any]


def transpose(k: Any, load4: Loader) -> list[Any]:
    """Four vectors: element c of each of `lanes` quadruples; load4(r) is the float32x4 of row r (r < lanes)."""
    T, lanes = k.T, k.lanes
    groups = lanes // 4
    # vector g holds rows g, g + 4, g + 8 ... in its 128-bit lanes
    rows = []
    for g in range(4):
        quads = [load4(g + 4 * part) for part in range(groups)]
        joined = quads[0] if groups == 1 else T.Shuffle(quads, [T.int32(i) for i in range(lanes)])
        rows.append(bind(k, joined))

    def mix(a: Any, b: Any, order: tuple[int, int, int, int]) -> Any:
        # `order` picks inside each 128-bit lane: 0 to 3 of a, 4 to 7 of b
        index = [part * 4 + o if o < 4 else lanes + part * 4 + o - 4 for part in range(groups) for o in order]
        return bind(k, T.Shuffle([a, b], [T.int32(i) for i in index]))

    low = [mix(rows[0], rows[1], (0, 4, 1, 5)), mix(rows[2], rows[3], (0, 4, 1, 5))]
    high = [mix(rows[0], rows[1], (2, 6, 3, 7)), mix(rows[2], rows[3], (2, 6, 3, 7))]
    return [
        mix(low[0], low[1], (0, 1, 4, 5)), mix(low[0], low[1], (2, 3, 6, 7)),
        mix(high[0], high[1], (0, 1, 4, 5)), mix(high[0], high[1], (2, 3, 6, 7)),
    ]  # fmt: skip


class Packer:
    """Emits the packing of one chunk for one tile."""

    def __init__(
        self, p: Mapping[str, Any], k: Any, pitch: int, rounding: Rounding | None = None, panel: str = "panel"
    ) -> None:
        self.p, self.k, self.T, self.pitch, self.lanes = p, k, k.T, pitch, k.lanes
        self.rounding, self.panel = rounding, panel
        self.origin: Any = 0

    def write(self, image: Any, pixel: Any, kind: TileKind, first: Any, columns: Any, origin: Any) -> None:
        """Columns [first, first + columns) of the tile of `kind` at `pixel` of image number `image`, from panel[origin] on."""
        self.origin = bind(self.k, origin)
        if self.rounding is not None:
            self._rounded(self.rounding, pixel, kind, first, columns)
            return
        {"planes": self._planes, "tokens": self._tokens, "window": self._window}[self.p["source"]](
            image, pixel, kind, first, columns
        )

    def _planes(self, image: Any, pixel: Any, kind: TileKind, first: Any, columns: Any) -> None:
        k, p, T, lanes = self.k, self.p, self.T, self.lanes
        x, panel, size = k.arg("x"), k.arg(self.panel), p["pixels"]
        start = bind(k, (image * p["k"] + first) * size + pixel)
        with T.serial(0, columns) as c:
            source, dest = bind(k, start + c * size), bind(k, self.origin + c * self.pitch)
            self._ask(kind, source)
            for v in range(kind.vectors):
                count = kind.tail if kind.tail and v == kind.vectors - 1 else lanes
                if count < lanes:
                    k.store(panel, dest + v * lanes, k.f32(0.0, lanes), lanes)
                for at, width in pieces(count, lanes):
                    k.store(panel, dest + v * lanes + at, k.load(x, source + v * lanes + at, width), width)

    def ask(self, image: Any, pixel: Any, kind: TileKind) -> None:
        """Ask for what the next tile reads of all columns, where they are multiplied in place."""
        p = self.p
        start = bind(self.k, image * (p["k"] * p["pixels"]) + pixel)
        with self.T.serial(0, p["k"]) as c:
            self._ask(kind, bind(self.k, start + c * p["pixels"]))

    def _ask(self, kind: TileKind, source: Any) -> None:
        """Runs as short as a tile, one for each channel, are not foreseen by the hardware."""
        if kind.count > 1:
            for at in range(0, kind.vectors * self.lanes, 16):
                prefetch(self.k, self.k.arg("x"), source + (kind.vectors * self.lanes + at))

    def _token(self, kind: TileKind, v: int, row: int) -> int:
        """The token of a lane; lanes behind the last one repeat it."""
        index: int = v * self.lanes + row
        if kind.tail and v == kind.vectors - 1:
            index = min(index, (kind.vectors - 1) * self.lanes + kind.tail - 1)
        return index

    def _rounded(self, rounding: Rounding, pixel: Any, kind: TileKind, first: Any, columns: Any) -> None:
        """Slots [first, first + columns) of tokens, four inputs at a time."""
        k, T, lanes, slots, depth = self.k, self.T, self.lanes, len(rounding.slots), self.p["values"]["cols"]
        x, whole = k.arg("x"), depth // 4
        four0, fours = bind(k, T.truncdiv(first, slots)), bind(k, T.truncdiv(columns, slots))
        for v in range(kind.vectors):
            rows = [self._token(kind, v, row) * depth for row in range(lanes)]
            with T.serial(0, T.min(fours, whole - four0)) as four:
                source = bind(k, pixel * depth + (four0 + four) * 4)
                dest = bind(k, self.origin + four * (slots * self.pitch) + v * lanes)

                def load4(row: int, source: Any = source, rows: list[int] = rows) -> Any:
                    return k.load(x, source + rows[row], 4)

                rounding.four(transpose(k, load4), T.int32(v * lanes), dest)
            if rest := depth % 4:
                with T.If(four0 + fours > whole), T.Then():
                    source = bind(k, pixel * depth + whole * 4)
                    values = [k.local(lanes) for _ in range(4)]
                    for column, value in enumerate(values):
                        k.store(value, 0, k.f32(0.0, lanes), lanes)
                        for row in range(lanes if column < rest else 0):
                            k.store(value, row, k.load(x, source + rows[row] + column))
                    dest = bind(k, self.origin + (whole - four0) * (slots * self.pitch) + v * lanes)
                    rounding.four([k.load(value, 0, lanes) for value in values], T.int32(v * lanes), dest)

    def _tokens(self, image: Any, pixel: Any, kind: TileKind, first: Any, columns: Any) -> None:
        k, p, T, lanes = self.k, self.p, self.T, self.lanes
        x, panel, depth = k.arg("x"), k.arg(self.panel), p["k"]

        def token(v: int, row: int) -> int:
            return self._token(kind, v, row) * int(depth)

        for v in range(kind.vectors):
            start = bind(k, pixel * depth + first)
            with T.serial(0, T.truncdiv(columns, 4)) as block:
                source = bind(k, start + block * 4)
                dest = bind(k, self.origin + block * (4 * self.pitch) + v * lanes)

                def load4(row: int, source: Any = source, v: int = v) -> Any:
                    return k.load(x, source + token(v, row), 4)

                for c, value in enumerate(transpose(k, load4)):
                    k.store(panel, dest + c * self.pitch, value, lanes)
            with T.serial(T.truncdiv(columns, 4) * 4, columns) as c:
                for row in range(lanes):
                    k.store(panel, self.origin + c * self.pitch + v * lanes + row, k.load(x, start + c + token(v, row)))

    # --- convolution ---

    def _window(self, image: Any, pixel: Any, kind: TileKind, first: Any, columns: Any) -> None:
        """Two steps: the image rows the tile needs, zero padded and split by column phase; then a shifted copy per tap."""
        k, p, T, lanes = self.k, self.p, self.T, self.lanes
        w = p["window"]
        g = stage_shape(p, lanes, self.pitch)
        taps = w["kh"] * w["kw"]
        x, stage, panel = k.arg("x"), k.arg("stage"), k.arg(self.panel)
        channel0 = bind(k, T.truncdiv(first, taps))
        channels = bind(k, T.truncdiv(columns, taps))
        pixels = kind.vectors * lanes if not kind.tail else (kind.vectors - 1) * lanes + kind.tail
        oy0 = bind(k, T.truncdiv(pixel, w["ow"]))
        oy1 = bind(k, T.truncdiv(pixel + (pixels - 1), w["ow"]) + 1)
        ox0 = bind(k, pixel - oy0 * w["ow"])
        rows = bind(k, (oy1 - oy0 - 1) * g.row_step + g.extra_rows + 1)
        with T.serial(0, channels) as c:
            plane = bind(k, (image * w["c"] + channel0 + c) * (w["ih"] * w["iw"]))
            with T.serial(0, rows) as r:
                y = bind(k, oy0 * w["sh"] - w["pt"] + r * g.y_step)
                dest = bind(k, c * g.channel + r * g.row)
                with T.If(T.And(y >= 0, y < w["ih"])):
                    with T.Then():
                        self._stage_row(x, plane + y * w["iw"], stage, dest, g)
                    with T.Else():
                        for at in range(0, g.row, lanes):
                            k.store(stage, dest + at, k.f32(0.0, lanes), lanes)
        count = ceil(w["ow"] / lanes)
        with T.serial(0, channels) as c, T.serial(0, w["kh"]) as ky:
            base = bind(k, c * g.channel + ky * (w["dh"] * g.row))
            for kx in range(w["kw"]):
                shift = kx * w["dw"] // w["sw"]
                phase = g.phases.index(kx * w["dw"] % w["sw"])
                dest = bind(k, self.origin + ((c * w["kh"] + ky) * w["kw"] + kx) * self.pitch)
                source = bind(k, base + phase * g.phase + shift + ox0)
                for j in range(count):  # the first image row starts inside; what is copied too much is overwritten
                    k.store(panel, dest + j * lanes, k.load(stage, source + j * lanes, lanes), lanes)
                source2 = bind(k, base + phase * g.phase + shift)
                with T.serial(1, oy1 - oy0) as r:
                    to = bind(k, dest + (r * w["ow"] - ox0))
                    at = bind(k, source2 + r * (g.row_step * g.row))
                    for j in range(count):
                        k.store(panel, to + j * lanes, k.load(stage, at + j * lanes, lanes), lanes)
                if kind.tail:
                    k.store(panel, dest + pixels, k.f32(0.0, lanes), lanes)

    def _stage_row(self, x: Any, source: Any, stage: Any, dest: Any, g: Stage) -> None:
        """One row of the image: for each phase f, stage[u] = x[u * sw + f - pl], zeros outside."""
        k, T, w, lanes = self.k, self.T, self.p["window"], self.lanes
        for index, phase in enumerate(g.phases):
            # u * sw + phase - pl >= 0 from `lo` on, < iw before `hi`
            lo = ceil(max(0, w["pl"] - phase) / w["sw"])
            hi = max(lo, min(g.phase, ceil((w["iw"] + w["pl"] - phase) / w["sw"])))
            out = bind(k, dest + index * g.phase)
            for u in range(lo):
                k.store(stage, out + u, T.float32(0))
            offset = bind(k, source + (phase - w["pl"]))
            whole = (hi - lo) // lanes
            if w["sw"] == 1 and whole:
                with T.serial(0, whole) as v:
                    k.store(stage, out + lo + v * lanes, k.load(x, offset + lo + v * lanes, lanes), lanes)
                done = lo + whole * lanes
                for at, width in pieces(hi - done, lanes):
                    k.store(stage, out + done + at, k.load(x, offset + done + at, width), width)
            elif w["sw"] == 2:
                # every other element of two vectors; the element after the last one used must still be in the row
                safe = max(lo, min(hi, (w["iw"] + w["pl"] - phase) // 2))
                whole = (safe - lo) // lanes * lanes
                cuts = [(at, lanes) for at in range(0, whole, lanes)]
                cuts += [(whole + at, width) for at, width in pieces(safe - lo - whole, lanes)]
                for at, width in cuts:
                    first = offset + (lo + at) * 2
                    if width == 1:
                        k.store(stage, out + lo + at, k.load(x, first))
                        continue
                    both = [k.load(x, first, width), k.load(x, first + width, width)]
                    even = T.Shuffle(both, [T.int32(2 * i) for i in range(width)])
                    k.store(stage, out + lo + at, even, width)
                for u in range(safe, hi):
                    k.store(stage, out + u, k.load(x, offset + u * 2))
            else:
                with T.serial(lo, hi) as u:
                    k.store(stage, out + u, k.load(x, offset + u * w["sw"]))
            for u in range(hi, g.phase):
                k.store(stage, out + u, T.float32(0))


class Stage:
    """Strides (in floats) of the staged rows [channel][row][phase][column], and which rows and phases are staged."""

    def __init__(self, p: Mapping[str, Any], lanes: int, tile: int) -> None:
        w = p["window"]
        self.phases = sorted({kx * w["dw"] % w["sw"] for kx in range(w["kw"])})
        self.phase = w["ow"] + (w["kw"] - 1) * w["dw"] // w["sw"]
        self.row = ceil(self.phase * len(self.phases) / lanes) * lanes
        # a kernel one row high needs only the rows it starts at
        self.y_step = w["sh"] if w["kh"] == 1 else 1
        self.row_step = 1 if w["kh"] == 1 else w["sh"]
        self.extra_rows = (w["kh"] - 1) * w["dh"]
        most = min(w["oh"], ceil((tile - 1) / w["ow"]) + 1)
        self.rows = (most - 1) * self.row_step + self.extra_rows + 1
        self.channel = self.rows * self.row
        channels = p["chunk"] // (w["kh"] * w["kw"])
        self.size = channels * self.channel + self.phase + (ceil(w["ow"] / lanes) + 1) * lanes


def stage_shape(p: Mapping[str, Any], lanes: int, pitch: int) -> Stage:
    """The stage of a convolution's parameters."""
    return Stage(p, lanes, pitch)


def panel_slack(p: Mapping[str, Any], lanes: int) -> int:
    """Floats written past the panel's end by whole-row copies."""
    return ceil(p["window"]["ow"] / lanes) * lanes + lanes if p["source"] == "window" else 0
