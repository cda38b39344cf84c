"""Dense float32 products with a constant weight: C[M, N] = act(A[M, K] . B[K, N] + bias + residual).

Blocking follows Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008): a tile of MR rows x NR columns
accumulates in registers over a chunk of K while the chunk of one panel of B stays in cache and all tiles of a part of the rows pass
over it. A is read where it lies: its rows are streams the hardware follows. B is packed chunk by chunk, panel by panel, [KC][NR],
when the model is compiled, so it is read from one end to the other; wide vectors ask for it a few rows ahead. Partial sums of all
but the last chunk wait in C.

Tiles are wide rather than tall where there are registers for it: a broadcast of A then serves three multiplications, which
leaves the decoder and the load ports room when two hardware threads share a core.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal
from sparsec.codegen.isa.epilogue import activation_cost, apply_activation
from sparsec.codegen.isa.memory import prefetch, prefetch_stream
from sparsec.codegen.isa.pieces import pieces
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels.last_tile import with_size
from sparsec.codegen.kernels.weights import epilogue, refused_epilogue
from sparsec.codegen.program import Arg, Signature
from sparsec.op_view import view
from sparsec.target import Target

Array = np.ndarray[Any, Any]

# K up to which one chunk is best, and the depth of chunks beyond it.
_WHOLE_K, _CHUNK_K = 512, 384
# Bytes of A a part of the rows may cover in one chunk: half of a level-2 cache of 1 MB.
_PART_BYTES = 512 * 1024
# Smallest unit, in multiplications, that is worth waking a thread for.
_UNIT_MACS = 250_000
# Steps of K that are unrolled, and how many steps ahead B is fetched.
_UNROLL, _AHEAD = 2, 12
# A costlier activation is applied in a pass of its own over the tile in cache: the accumulators would not stay in registers.
_CHEAP_ACTIVATION = 5


@dataclass(frozen=True)
class Blocking:
    """Sizes that follow from the parameters; see the module's docstring."""

    mr: int
    nr: int
    kc: int
    tiles: int  # of MR rows; the last may be shorter
    panels: int  # of NR columns; the last may be narrower
    part_tiles: int  # tiles of a part, which with one panel is a unit
    parts: int


def _tile(m: int, n: int, target: Target) -> tuple[int, int]:
    """(rows, vectors) of the register tile."""
    wide, vectors = target.lanes >= 8, ceil(n / target.lanes)
    most = 3 if wide else 4
    if m <= 4:  # few rows: more columns keep enough additions in flight
        most = min(8, (target.vector_registers - 3) // (m + 1))
    nv = ceil(vectors / ceil(vectors / most))
    # All accumulators, one row of B and one broadcast of A must fit the register file.
    return min(m, 14, (target.vector_registers - 1 - nv) // nv), nv


def _parts(least: int, tiles: int, panels: int, units: int) -> int:
    """Parts of the rows that split evenly over 2, 4 and 8 threads; each part reads all of B."""

    def cost(parts: int) -> float:
        each = ceil(tiles / parts)
        count = ceil(tiles / each) * panels
        waste = each * ceil(tiles / each) / tiles
        return sum(ceil(count / t) * t / count * waste for t in (2, 4, 8)) + 0.03 * parts

    return min(range(least, max(least, min(tiles, 4 * least, ceil(units / panels))) + 1), key=cost)


def blocking(p: Mapping[str, Any], target: Target) -> Blocking:
    """Block sizes for a product (a pure function of the parameters)."""
    m, n, k = p["m"], p["n"], p["k"]
    most, nv = _tile(m, n, target)
    tiles = ceil(m / most)
    mr = ceil(m / tiles)
    tiles = ceil(m / mr)
    nr = nv * target.lanes
    panels = ceil(n / nr)
    kc = k
    if tiles > 1 and k > _WHOLE_K:
        kc = ceil(ceil(k / ceil(k / _CHUNK_K)) / 16) * 16
    fit = max(1, _PART_BYTES // (mr * kc * 4))
    parts = _parts(ceil(tiles / fit), tiles, panels, max(1, m * n * k // _UNIT_MACS))
    part_tiles = ceil(tiles / parts)
    return Blocking(mr, nr, kc, tiles, panels, part_tiles, ceil(tiles / part_tiles))


def pack(weight: Array, p: Mapping[str, Any], target: Target) -> Array:
    """W[N, K] as the kernel reads it: chunks of K, in each panels of columns [KC][NR], the last panel padded with zeros."""
    t = blocking(p, target)
    n, k = weight.shape
    panels = np.zeros((t.panels * t.nr, k), np.float32)
    panels[:n] = weight
    panels = panels.reshape(t.panels, t.nr, k).transpose(0, 2, 1)
    return np.concatenate([panels[:, k0 : k0 + t.kc].reshape(-1) for k0 in range(0, k, t.kc)])


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: a [M, K], b (see pack), bias? [N], residual? [M, N]; out: c [M, N]. Units: (part of the rows, panel)."""
    t = blocking(p, target)
    m, n, k = p["m"], p["n"], p["k"]
    args = [Arg("a", "float32", m * k, "in"), Arg("b", "float32", t.panels * t.nr * k, "in")]
    if p["bias"]:
        args.append(Arg("bias", "float32", n, "in"))
    if p["residual"]:
        args.append(Arg("residual", "float32", m * n, "in"))
    args.append(Arg("c", "float32", m * n, "out"))
    cost = 2 * m * n * k + m * n * (2 + activation_cost(p["act"]))
    return Signature(tuple(args), units=t.panels * t.parts, cost=cost)


def build(p: Mapping[str, Any], k: Any) -> None:
    """Write the loop nest (see the module's docstring)."""
    _Dense(p, k).write()


@dataclass(frozen=True)
class _Chunk:
    """Columns [k0, k0 + depth) of A; `starts` and `ends` say whether they are the first and the last."""

    k0: Any
    depth: int
    starts: bool
    ends: bool


class _Dense:
    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.p, self.k, self.T = p, k, k.T
        self.t = blocking(p, k.target)
        self.lanes: int = k.lanes

    def write(self) -> None:
        """Part by part of the rows, chunk by chunk of K, panel by panel, tile by tile."""
        T, t, k = self.T, self.t, self.k
        depth, tail = self.p["k"], self.p["k"] % t.kc
        with T.serial(T.truncdiv(k.lo, t.panels), T.truncdiv(k.hi + (t.panels - 1), t.panels)) as part:
            first = bind(k, T.max(k.lo - part * t.panels, 0))
            last = bind(k, T.min(k.hi - part * t.panels, t.panels))
            final = depth - (tail or t.kc)
            if final:
                self._panels(_Chunk(T.int32(0), t.kc, True, False), part, first, last)
            if final > t.kc:
                with T.serial(1, final // t.kc) as chunk:
                    self._panels(_Chunk(chunk * t.kc, t.kc, False, False), part, first, last)
            self._panels(_Chunk(T.int32(final), depth - final, final == 0, True), part, first, last)

    def _panels(self, chunk: _Chunk, part: Any, first: Any, last: Any) -> None:
        T, t, k, p = self.T, self.t, self.k, self.p
        # bound, because TVM drops iterations when the start of a loop is an expression of an outer one
        tile0 = bind(self.k, part * t.part_tiles)
        tile1 = bind(self.k, T.min(tile0 + t.part_tiles, t.tiles))

        def of(panel: Any, columns: int) -> None:
            with T.serial(tile0, tile1) as tile:
                with_size(k, tile, p["m"], t.mr, lambda rows: self._tile(chunk, panel, tile, rows, columns))

        with T.serial(first, last) as panel:
            with_size(k, panel, p["n"], t.nr, lambda columns: of(panel, columns))

    def _tile(self, chunk: _Chunk, panel: Any, tile: Any, rows: int, columns: int) -> None:
        k, p, t, lanes = self.k, self.p, self.t, self.lanes
        c, n = k.arg("c"), p["n"]
        vectors = ceil(columns / lanes)
        acc = k.local(rows * vectors * lanes)
        out0 = bind(k, tile * (t.mr * n) + panel * t.nr)
        # (row, column, position in acc, width) of every store: whole vectors, then pieces that fit the last columns exactly
        stores = [
            (i, j * lanes + at, (i * vectors + j) * lanes + at, width)
            for i in range(rows)
            for j in range(vectors)
            for at, width in pieces(min(columns - j * lanes, lanes), lanes)
        ]
        if chunk.starts:
            for slot in range(rows * vectors):
                k.store(acc, slot * lanes, k.f32(0.0, lanes), lanes)
        else:
            for i, j, slot, width in stores:
                k.store(acc, slot, k.load(c, out0 + (i * n + j), width), width)
        self._multiply(chunk, panel, tile, acc, rows, vectors)
        cheap = activation_cost(p["act"]) <= _CHEAP_ACTIVATION
        column0 = bind(k, panel * t.nr)
        for i, j, slot, width in stores:
            value, at = k.load(acc, slot, width), out0 + (i * n + j)
            if chunk.ends and p["bias"]:
                value = value + k.load(k.arg("bias"), column0 + j, width)
            if chunk.ends and p["residual"]:
                value = value + k.load(k.arg("residual"), at, width)
            if chunk.ends and cheap:
                value = apply_activation(k, p["act"], p["act_params"], value, width)
            k.store(c, at, value, width)
        if chunk.ends and not cheap:
            with self.T.serial(0, rows) as row:
                for i, j, _, width in stores:
                    if i == 0:
                        at = out0 + row * n + j
                        value = apply_activation(k, p["act"], p["act_params"], k.load(c, at, width), width)
                        k.store(c, at, value, width)

    def _multiply(self, chunk: _Chunk, panel: Any, tile: Any, acc: Any, rows: int, vectors: int) -> None:
        """acc += A[tile, chunk] . B[chunk, panel]"""
        T, k, p, t, lanes = self.T, self.k, self.p, self.t, self.lanes
        a, b, lda = k.arg("a"), k.arg("b"), p["k"]
        a0 = bind(k, tile * (t.mr * lda) + chunk.k0)
        b0 = bind(k, chunk.k0 * (t.panels * t.nr) + panel * (chunk.depth * t.nr))
        ahead = _AHEAD * t.nr if lanes >= 16 and t.tiles > 1 else 0

        def step(kk: Any) -> None:
            if ahead:
                for j in range(vectors):
                    prefetch(k, b, b0 + kk * t.nr + (ahead + j * lanes))
            elif t.tiles == 1:
                for j in range(0, vectors * lanes, 16):
                    prefetch_stream(k, b, b0 + kk * t.nr + j, 4)
            row = [bind(k, k.load(b, b0 + kk * t.nr + j * lanes, lanes)) for j in range(vectors)]
            for i in range(rows):
                value = k.splat(k.load(a, a0 + i * lda + kk), lanes)
                for j in range(vectors):
                    slot = (i * vectors + j) * lanes
                    k.store(acc, slot, k.load(acc, slot, lanes) + value * row[j], lanes)

        whole = chunk.depth // _UNROLL
        if whole:
            with T.serial(0, whole) as q:
                for u in range(_UNROLL):
                    step(q * _UNROLL + u)
        for kk in range(whole * _UNROLL, chunk.depth):
            step(T.int32(kk))


def lower_dense(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::MatMul with a plain float32 weight."""
    op = view(node)
    assert op.x is not None
    weight = op.weight()
    if not isinstance(weight, np.ndarray):
        return Refusal(f"scheme {op.scheme} is not plain float32")
    if (refusal := refused_epilogue(op, low)) is not None:
        return refusal
    if low.dtype(op.x) != "float32":
        return Refusal(f"element type {low.dtype(op.x)} is not float32")
    m, n, k = prod(low.shape(op.x)[:-1]), op.rows, op.cols
    if m == 0:
        return Refusal("the product has no rows")
    finish, added = epilogue(op, low)
    params = {"m": m, "n": n, "k": k, **finish}
    ins = [low.get(op.x), low.const(pack(weight, params, low.target), f"{node.name or 'weight'}.weight"), *added]
    note = f"[{m}, {k}] x [{k}, {n}] {op.scheme} {op.activation}".strip()
    low.call("dense", params, ins, [low.new(op.output)], node=node.name or "", op="MatMul", note=note)
    return None
