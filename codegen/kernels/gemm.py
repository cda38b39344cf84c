"""Tiled matrix multiplication: C[M, N] = act(A[M, K] . B[K, N] + bias + residual), the skeleton of matmul, gemm and convolution.

One loop nest serves them all; what differs is where the rows of A and the panels of B come from:

* A `rows`: row m starts at m * lda.  A `conv`: row m is the receptive field of output pixel m of a channels-last image,
  gathered (zero padded) into a per-thread block of rows ordered (kh, kw, channel).
* B `packed`: panels [K][NR] laid out at compile time.  B `coded`: panels stored compressed and decoded (see decode.py) into a
  per-thread panel.  B `rows` / `cols`: another activation, [K][ldb] or its transpose.

Blocking follows Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008): a tile of MR x NR
accumulators stays in registers, a panel of B is reused by all tiles of a block of rows. Units are (batch, row block, panel range).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from sparsec.codegen.isa.epilogue import activation_cost, apply_activation
from sparsec.codegen.isa.pieces import pieces
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels import decode
from sparsec.codegen.kernels.last_tile import with_size
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target

# Bytes of A rows a block may cover: half of a 1 MB level-2 cache, so that a panel of B fits beside it.
_BLOCK_BYTES = 384 * 1024
# Units a large product is cut into, so that up to 8 threads share it evenly.
_WANTED_UNITS = 16
# Units smaller than this many multiplications are not worth cutting further.
_UNIT_MACS = 250_000
# Rows that are worth decoding coded weights for once more: decoding takes about 5 % then.
_DECODED_ROWS = 1024


@dataclass(frozen=True)
class Tiling:
    """Register tile MR x (NV vectors), rows per block, panels per unit; NR = NV * lanes."""

    mr: int
    nv: int
    nr: int
    tiles: int  # tiles of MR rows in all (the last may be shorter)
    block_tiles: int  # tiles per row block
    blocks: int
    panels: int  # panels of NR columns in all (the last may be narrower)
    unit_panels: int
    panel_units: int


def panel_width(n: int, m: int, target: Target) -> int:
    """NR for a product with n columns and m rows: what weights are packed for."""
    lanes = target.lanes
    vectors = 2 if lanes >= 8 else 4
    if m <= 4:  # few rows: more columns keep enough accumulators in flight
        vectors = 4
    return lanes * min(vectors, max(1, ceil(n / lanes)))


def tiling(p: Mapping[str, Any], target: Target) -> Tiling:
    """Tile and block sizes for a product (a pure function of the parameters)."""
    m, n, k, batch = p["m"], p["n"], p["k"], p["batch"]
    nr = panel_width(n, m, target)
    nv = nr // target.lanes
    # All accumulators, one row of B and one broadcast of A must fit the register file.
    mr_max = min(14, (target.vector_registers - 1 - nv) // nv)
    tiles = ceil(m / mr_max)
    mr = ceil(m / tiles)
    tiles = ceil(m / mr)
    panels = ceil(n / nr)
    fit = max(1, _BLOCK_BYTES // (mr * k * 4))
    block_tiles = max(1, min(fit, tiles))
    wanted = max(1, min(_WANTED_UNITS, batch * m * n * k // _UNIT_MACS))
    if batch < wanted:
        least = ceil(_DECODED_ROWS / mr) if p["b"]["kind"] == "coded" else 1
        block_tiles = min(block_tiles, max(least, ceil(tiles * batch / wanted)))
    blocks = ceil(tiles / block_tiles)
    block_tiles = ceil(tiles / blocks)
    blocks = ceil(tiles / block_tiles)
    panel_units = max(1, min(panels, ceil(wanted / (batch * blocks))))
    unit_panels = ceil(panels / panel_units)
    panel_units = ceil(panels / unit_panels)
    return Tiling(mr, nv, nr, tiles, block_tiles, blocks, panels, unit_panels, panel_units)


def _packed_lda(p: Mapping[str, Any]) -> int:
    # A row distance that is a multiple of 4 KB puts all rows of a tile into the same cache sets.
    return int(p["k"]) + (16 if p["k"] % 256 == 0 else 0)


def _needs_panel(p: Mapping[str, Any], t: Tiling, lanes: int) -> bool:
    kind = p["b"]["kind"]
    return kind in ("coded", "cols") or (kind == "rows" and p["n"] % t.nr % lanes != 0)


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: a, then b (or the arrays of the coded weight), bias?, residual?; out: c; work: packed rows of A, panel of B."""
    t = tiling(p, target)
    args = [Arg("a", "float32", p["a"]["size"], "in")]
    b = p["b"]
    if b["kind"] == "coded":
        args += decode.arguments(b["decode"])
    elif b["kind"] == "packed":
        args.append(Arg("b", "float32", p["batch_b"] * t.panels * t.nr * p["k"], "in"))
    else:
        args.append(Arg("b", "float32", b["size"], "in"))
    if p["bias"]:
        args.append(Arg("bias", "float32", p["batch_b"] * t.panels * t.nr, "in"))
    if p["residual"]:
        args.append(Arg("residual", "float32", p["c"]["size"], "in"))
    args.append(Arg("c", "float32", p["c"]["size"], "out"))
    if p["a"]["kind"] == "conv":
        args.append(Arg("rows", "float32", t.block_tiles * t.mr * _packed_lda(p), "work"))
    if _needs_panel(p, t, target.lanes):
        args.append(Arg("panel", "float32", p["k"] * t.nr, "work"))
    macs = p["batch"] * p["m"] * p["n"] * p["k"]
    cost = 2 * macs + p["batch"] * p["m"] * p["n"] * (2 + activation_cost(p["act"]))
    return Signature(tuple(args), units=p["batch"] * t.blocks * t.panel_units, cost=cost)


def build(p: Mapping[str, Any], k: Any) -> None:
    """Write the loop nest (see the module's docstring)."""
    _Gemm(p, k).write()


class _Gemm:
    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.p, self.k, self.T = p, k, k.T
        self.t = tiling(p, k.target)
        self.lanes: int = k.lanes
        self.conv = p["a"]["kind"] == "conv"
        self.lda = _packed_lda(p) if self.conv else p["a"]["lda"]
        self.panel = k.arg("panel") if _needs_panel(p, self.t, k.lanes) else None

    def write(self) -> None:
        T, t = self.T, self.t
        with T.serial(self.k.lo, self.k.hi) as unit:
            batch = bind(self.k, T.truncdiv(unit, t.blocks * t.panel_units))
            block = bind(self.k, T.truncmod(T.truncdiv(unit, t.panel_units), t.blocks))
            first = bind(self.k, T.truncmod(unit, t.panel_units) * t.unit_panels)
            tile0 = bind(self.k, block * t.block_tiles)
            tile1 = bind(self.k, T.min(tile0 + t.block_tiles, t.tiles))
            if self.conv:
                self._gather_rows(batch, tile0, tile1)
            with T.serial(first, T.min(first + t.unit_panels, t.panels)) as panel:
                columns = self.p["n"]
                with_size(self.k, panel, columns, t.nr, lambda width: self._panel(batch, panel, tile0, tile1, width))

    # --- A: receptive fields of a channels-last image -------------------------------------------------------------------

    def _gather_rows(self, batch: Any, tile0: Any, tile1: Any) -> None:
        """Copy the receptive fields of the block's output pixels to `rows`, ordered (kh, kw, channel), zeros outside."""
        T, k, g = self.T, self.k, self.p["a"]
        src, dst = k.arg("a"), k.arg("rows")
        c, width, height = g["c"], g["iw"], g["ih"]
        pixel_stride = g["pixel_stride"]
        pixels = g["oh"] * g["ow"]
        row_end = T.min(tile1 * self.t.mr, self.p["m"])
        with T.serial(tile0 * self.t.mr, row_end) as m:
            image = bind(k, T.truncdiv(m, pixels) * (height * width * pixel_stride) + batch * g["batch_stride"])
            y0 = bind(k, T.truncdiv(T.truncmod(m, pixels), g["ow"]) * g["sh"] - g["pt"])
            x0 = bind(k, T.truncmod(m, g["ow"]) * g["sw"] - g["pl"])
            out = bind(k, (m - tile0 * self.t.mr) * self.lda)
            joined = c * g["kw"] if pixel_stride == c and g["dw"] == 1 else 0  # a whole kernel row is contiguous
            with T.serial(0, g["kh"]) as kh:
                y = bind(k, y0 + kh * g["dh"])
                to = bind(k, out + kh * (g["kw"] * c))
                line = bind(k, image + y * (width * pixel_stride))
                inside = T.And(y >= 0, y < height)

                def taps(line: Any = line, to: Any = to, inside: Any = inside, x0: Any = x0) -> None:
                    with T.serial(0, g["kw"]) as kw:
                        x = bind(k, x0 + kw * g["dw"])
                        with T.If(T.And(inside, T.And(x >= 0, x < width))):
                            with T.Then():
                                self._copy(src, line + x * pixel_stride, dst, to + kw * c, c)
                            with T.Else():
                                self._zero(dst, to + kw * c, c)

                if joined:
                    with T.If(T.And(inside, T.And(x0 >= 0, x0 + g["kw"] <= width))):
                        with T.Then():
                            self._copy(src, line + x0 * pixel_stride, dst, to, joined)
                        with T.Else():
                            taps()
                else:
                    taps()

    def _chunks(self, count: int) -> list[tuple[int, int]]:
        """(start, lanes) pieces of a contiguous run that are left after the whole vectors."""
        whole = count // self.lanes * self.lanes
        return [(whole + at, width) for at, width in pieces(count - whole, self.lanes)]

    def _copy(self, src: Any, s: Any, dst: Any, d: Any, count: int) -> None:
        whole = count // self.lanes
        if whole:
            with self.T.serial(0, whole) as i:
                self.k.store(dst, d + i * self.lanes, self.k.load(src, s + i * self.lanes, self.lanes), self.lanes)
        for at, lanes in self._chunks(count):
            self.k.store(dst, d + at, self.k.load(src, s + at, lanes), lanes)

    def _zero(self, dst: Any, d: Any, count: int) -> None:
        whole = count // self.lanes
        if whole:
            with self.T.serial(0, whole) as i:
                self.k.store(dst, d + i * self.lanes, self.k.f32(0.0, self.lanes), self.lanes)
        for at, lanes in self._chunks(count):
            self.k.store(dst, d + at, self.k.f32(0.0, lanes), lanes)

    # --- B ---

    def _panel(self, batch: Any, panel: Any, tile0: Any, tile1: Any, columns: int) -> None:
        """All tiles of the block against one panel of B, `columns` of whose NR columns exist."""
        T, t, p, k = self.T, self.t, self.p, self.k
        kind = p["b"]["kind"]
        packed = batch * t.panels + panel if p["batch_b"] > 1 else panel
        if kind == "packed":
            source, at, step = k.arg("b"), bind(k, packed * (p["k"] * t.nr)), t.nr
        elif kind == "coded":
            decode.write_panel(p["b"]["decode"], k, packed, self.panel)
            source, at, step = self.panel, T.int32(0), t.nr
        else:
            start = batch * p["b"]["batch_stride"]
            if kind == "rows" and self.panel is None:
                source, at, step = k.arg("b"), bind(k, start + panel * t.nr), p["b"]["ldb"]
            else:
                self._copy_panel(start, panel, columns)
                source, at, step = self.panel, T.int32(0), t.nr
        b = source, at, step
        with T.serial(tile0, tile1) as tile:
            with_size(
                k, tile, p["m"], t.mr, lambda rows: self._tile(batch, packed, panel, tile, tile0, rows, columns, b)
            )

    def _copy_panel(self, start: Any, panel: Any, columns: int) -> None:
        """Bring `columns` columns of a computed B into the work panel [K][NR]; the other columns are zero."""
        T, t, p, k = self.T, self.t, self.p, self.k
        b, ldb = k.arg("b"), p["b"]["ldb"]
        if p["b"]["kind"] == "rows":
            with T.serial(0, p["k"]) as i:
                self._copy(b, start + i * ldb + panel * t.nr, self.panel, i * t.nr, columns)
                if columns < t.nr:
                    with T.serial(columns, t.nr) as j:
                        k.store(self.panel, i * t.nr + j, T.float32(0))
            return
        with T.serial(0, p["k"]) as i:
            for j in range(columns):
                k.store(self.panel, i * t.nr + j, k.load(b, start + (panel * t.nr + j) * ldb + i))
            for j in range(columns, t.nr):
                k.store(self.panel, i * t.nr + j, T.float32(0))

    # --- the register tile ---

    def _tile(
        self,
        batch: Any,
        packed: Any,
        panel: Any,
        tile: Any,
        tile0: Any,
        rows: int,
        columns: int,
        b: tuple[Any, Any, int],
    ) -> None:
        T, k, p, lanes = self.T, self.k, self.p, self.lanes
        source, at, step = b
        vectors = ceil(columns / lanes)
        if self.conv:
            a, row0 = k.arg("rows"), bind(k, (tile - tile0) * (self.t.mr * self.lda))
        else:
            a, row0 = k.arg("a"), bind(k, tile * (self.t.mr * self.lda) + batch * p["a"]["batch_stride"])
        acc = k.local(rows * vectors * lanes)
        for i in range(rows * vectors):
            k.store(acc, i * lanes, k.f32(0.0, lanes), lanes)
        with T.serial(0, p["k"]) as kk:
            bv = [bind(k, k.load(source, at + kk * step + j * lanes, lanes)) for j in range(vectors)]
            for i in range(rows):
                av = k.splat(k.load(a, row0 + i * self.lda + kk), lanes)
                for j in range(vectors):
                    slot = (i * vectors + j) * lanes
                    k.store(acc, slot, k.load(acc, slot, lanes) + av * bv[j], lanes)
        c = k.arg("c")
        out0 = bind(k, tile * (self.t.mr * p["c"]["ldc"]) + batch * p["c"]["batch_stride"] + panel * self.t.nr)
        for j in range(vectors):
            parts = self._store_pieces(columns - j * lanes)
            for i in range(rows):
                slot = (i * vectors + j) * lanes
                to = out0 + i * p["c"]["ldc"] + j * lanes
                for offset, width in parts:
                    value = k.load(acc, slot + offset, width)
                    if p["bias"]:
                        value = value + k.load(k.arg("bias"), packed * self.t.nr + j * lanes + offset, width)
                    if p["residual"]:
                        value = value + k.load(k.arg("residual"), to + offset, width)
                    value = apply_activation(k, p["act"], p["act_params"], value, width)
                    k.store(c, to + offset, value, width)

    def _store_pieces(self, left: int) -> list[tuple[int, int]]:
        """(offset, lanes) of the stores that write min(left, lanes) elements exactly."""
        return pieces(min(left, self.lanes), self.lanes)


def product_size(shape: tuple[int, ...]) -> int:
    """Number of elements."""
    return prod(shape)
