"""Strided copy: out[dst_offset + i.dst_strides] = in[src_offset + i.src_strides] over an index space.

Transpose, Slice, Expand, Concat, Pad and layout changes are all this one loop nest. Three bodies: vector copies when
one dimension is contiguous on both sides; a blocked transposition through registers (butterfly of two-vector shuffles,
Eklundh 1972) when different dimensions are contiguous in source and destination; scalar loops for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from sparsec.codegen.program import ITEMSIZE, Arg, Signature
from sparsec.target import Target

# Elements below which a copy is one unit, and the most units a copy is cut into.
_UNIT, _UNITS = 2048, 128


@dataclass(frozen=True)
class _Dim:
    n: int
    src: int
    dst: int


@dataclass(frozen=True)
class _Plan:
    """Loops from outermost to innermost. Units enumerate dims[:split] and blocks of `block` indices of dims[split].

    The last block of dims[split] also takes the remainder, so no block is shorter than a tile.
    """

    body: Literal["vector", "transpose", "scalar"]
    dims: tuple[_Dim, ...]
    split: int
    block: int
    lanes: int

    @property
    def blocks(self) -> int:
        return max(1, self.dims[self.split].n // self.block)

    @property
    def units(self) -> int:
        return prod(d.n for d in self.dims[: self.split]) * self.blocks


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """Units: blocks of about 1/128 of the elements, at least 2048 elements each where the shape allows."""
    args = (Arg("src", p["dtype"], p["src_size"], "in"), Arg("dst", p["dtype"], p["dst_size"], "out"))
    plan = _plan(p, target)
    return Signature(args, units=plan.units, cost=2 * ITEMSIZE[p["dtype"]] * prod(p["shape"]))


def _merge(p: Mapping[str, Any]) -> list[_Dim]:
    """Dimensions from the largest to the smallest stride of the destination.

    Those of one element are dropped, neighbours are joined where they are contiguous on both sides.
    """
    dims = [_Dim(*d) for d in zip(p["shape"], p["src_strides"], p["dst_strides"], strict=True) if d[0] != 1]
    dims.sort(key=lambda d: -abs(d.dst))
    merged = dims[:1] or [_Dim(1, 1, 1)]
    for d in dims[1:]:
        last = merged[-1]
        if last.src == d.src * d.n and last.dst == d.dst * d.n:
            merged[-1] = _Dim(last.n * d.n, d.src, d.dst)
        else:
            merged.append(d)
    return merged


def _plan(p: Mapping[str, Any], target: Target) -> _Plan:
    dims = _merge(p)
    if 0 in p["shape"]:
        return _Plan("scalar", (_Dim(0, 1, 1),), 0, 1, 1)
    size = ITEMSIZE[p["dtype"]]
    inner = dims[-1]
    lanes = min(target.vector_bits // 8 // size, 32)
    if inner.dst == 1 and inner.src in (0, 1) and inner.n > 1:
        return _split("vector", dims, len(dims), lanes, lanes)
    unit = next((d for d in dims[:-1] if d.src == 1), None)
    if inner.dst == 1 and unit is not None:
        outer = [d for d in dims[:-1] if d is not unit]
        # 8x8 tiles also with 512-bit registers: sixteen rows of tails cost more than wider shuffles save.
        tile = min(8, target.lanes)
        long, short = (unit, inner) if unit.n >= inner.n else (inner, unit)
        dense = unit.dst == inner.n if short is inner else inner.src == unit.n
        # Few planes are (de)interleaved by whole vectors: that side must be dense.
        fits = size == 4 and long.n >= tile and (short.n >= tile or (short.n <= 4 and dense))
        if fits:
            # Long runs along the destination keep few streams of writes.
            quantum = 2 * tile if long is unit or long.n < 4096 else 512
            return _split("transpose", [*outer, long, short], len(outer) + 1, quantum, tile)
        return _split("scalar", [*outer, unit, inner], len(outer) + 1, 16, 1)
    return _split("scalar", dims, len(dims), 1, 1)


def _split(
    body: Literal["vector", "transpose", "scalar"], dims: list[_Dim], limit: int, quantum: int, lanes: int
) -> _Plan:
    """Cut into units along the outermost `limit` dims; blocks of dims[limit - 1] are multiples of `quantum`."""
    wanted = max(1, min(_UNITS, prod(d.n for d in dims) // _UNIT))
    outer = 1
    for index in range(limit):
        n = dims[index].n
        if outer * n >= wanted or index == limit - 1:
            break
        outer *= n
    block = -(-n // -(-wanted // outer))
    if index == limit - 1:
        block = -(-block // quantum) * quantum
    return _Plan(body, tuple(dims), index, block, lanes)


def build(p: Mapping[str, Any], k: Any) -> None:
    """One loop over units, a loop a dimension inside, the body of the plan innermost."""
    T = k.T
    plan = _plan(p, k.target)
    src, dst = k.arg("src"), k.arg("dst")
    dims, split = plan.dims, plan.split
    inner_dims = 2 if plan.body == "transpose" else 1

    with T.serial(k.lo, k.hi) as unit:
        rest, s, d = unit, T.int32(p["src_offset"]), T.int32(p["dst_offset"])
        start: Any = 0
        stop: Any = dims[split].n
        if plan.blocks > 1:
            b = T.bind(rest % plan.blocks if split else rest)
            rest = rest // plan.blocks
            start = b * plan.block
            stop = start + plan.block
            if dims[split].n % plan.block:
                stop = T.Select(b == plan.blocks - 1, T.int32(dims[split].n), stop)
        for index in reversed(range(split)):
            i = rest if index == 0 else rest % dims[index].n
            rest = rest // dims[index].n
            s, d = s + i * dims[index].src, d + i * dims[index].dst
        s, d = T.bind(s), T.bind(d)

        def nest(index: int, s: Any, d: Any) -> None:
            first, last = (start, stop) if index == split else (0, dims[index].n)
            if index == len(dims) - inner_dims:
                emit = {"vector": _vector, "transpose": _transpose, "scalar": _scalar}[plan.body]
                emit(k, plan, src, dst, s, d, first, last)
                return
            with T.serial(first, last) as i:
                nest(index + 1, s + i * dims[index].src, d + i * dims[index].dst)

        nest(split, s, d)


def _scalar(k: Any, plan: _Plan, src: Any, dst: Any, s: Any, d: Any, first: Any, last: Any) -> None:
    dim = plan.dims[-1]
    with k.T.serial(first, last) as i:
        k.store(dst, d + i * dim.dst, k.load(src, s + i * dim.src))


def _vector(k: Any, plan: _Plan, src: Any, dst: Any, s: Any, d: Any, first: Any, last: Any) -> None:
    """A contiguous run, or one element repeated (source stride 0)."""
    T, lanes, step = k.T, plan.lanes, plan.dims[-1].src

    def move(at: Any, width: int) -> None:
        value = k.load(src, s + at, width) if step else k.splat(k.load(src, s), width)
        k.store(dst, d + at, value, width)

    if isinstance(first, int) and isinstance(last, int):
        n = last - first
        if n >= lanes:
            if n // lanes <= 4:
                for v in range(n // lanes):
                    move(v * lanes, lanes)
            else:
                with T.serial(0, n // lanes) as v:
                    move(v * lanes, lanes)
            if n % lanes:  # overlaps the vector before: cheaper than a scalar tail
                move(n - lanes, lanes)
            return
        at = 0
        while at < n:
            width = 1 << ((n - at).bit_length() - 1)
            move(at, width)
            at += width
        return
    count = T.bind(last - first)
    with T.serial(0, count // lanes) as v:
        move(first + v * lanes, lanes)
    if plan.dims[-1].n % lanes:
        with T.serial(count // lanes * lanes, count) as i:
            move(first + i, 1)


def _transpose(k: Any, plan: _Plan, src: Any, dst: Any, s: Any, d: Any, first: Any, last: Any) -> None:
    """dst[j * J + i] = src[i * I + j] for all i and j; [first, last) is the range of the longer of the two."""
    T, tile = k.T, plan.lanes
    longer, shorter = plan.dims[-2:]
    count = last - first if isinstance(first, int) and isinstance(last, int) else T.bind(last - first)

    def ranged(block: Any) -> Any:  # the last tile overlaps the one before: cheaper than a scalar tail
        return T.bind(first + T.min(block * tile, count - tile))

    def whole(block: Any) -> Any:
        return T.bind(block * tile if shorter.n % tile == 0 else T.min(block * tile, shorter.n - tile))

    tiles = (count + tile - 1) // tile
    if shorter.n < tile:
        with T.serial(0, tiles) as block:
            a = ranged(block)
            if longer.src == 1:
                _interleave(k, shorter, tile, src, dst, s + a, d + a * shorter.n)
            else:
                _deinterleave(k, shorter, tile, src, dst, s + a * shorter.n, d + a)
        return
    strips = -(-shorter.n // tile)
    # The inner loop runs along the destination: few streams of writes.
    by_unit = longer.src == 1
    unit, inner = (longer, shorter) if by_unit else (shorter, longer)
    with T.serial(0, tiles if by_unit else strips) as outer_block:
        j = ranged(outer_block) if by_unit else whole(outer_block)
        with T.serial(0, strips if by_unit else tiles) as inner_block:
            i = whole(inner_block) if by_unit else ranged(inner_block)
            rows = [k.load(src, s + (i + r) * inner.src + j, tile) for r in range(tile)]
            for r, row in enumerate(_butterfly(k, rows)):
                k.store(dst, d + (j + r) * unit.dst + i, row, tile)


def _butterfly(k: Any, rows: list[Any]) -> list[Any]:
    """Transpose n vectors of n lanes: exchange the off-diagonal blocks of size 1, 2, 4 ..."""
    n = len(rows)
    rows = [k.T.bind(r) for r in rows]
    h = 1
    while h < n:
        low = [lane if not lane & h else n + lane - h for lane in range(n)]
        high = [lane + h if not lane & h else n + lane for lane in range(n)]
        out = list(rows)
        for a in range(n):
            if not a & h:
                pair = [rows[a], rows[a + h]]
                out[a] = k.T.bind(k.T.Shuffle(pair, low))
                out[a + h] = k.T.bind(k.T.Shuffle(pair, high))
        rows, h = out, 2 * h
    return rows


def _interleave(k: Any, planes: _Dim, tile: int, src: Any, dst: Any, s: Any, d: Any) -> None:
    """A tile of few planes to one dense interleaved run (e.g. an image's three channels)."""
    c = planes.n
    loaded = [k.load(src, s + i * planes.src, tile) for i in range(c)]
    for v in range(c):
        lanes = [v * tile + lane for lane in range(tile)]
        k.store(dst, d + v * tile, k.T.Shuffle(loaded, [e % c * tile + e // c for e in lanes]), tile)


def _deinterleave(k: Any, planes: _Dim, tile: int, src: Any, dst: Any, s: Any, d: Any) -> None:
    """A tile of one dense interleaved run to few planes."""
    c = planes.n
    run = [k.load(src, s + v * tile, tile) for v in range(c)]
    for j in range(c):
        k.store(dst, d + j * planes.dst, k.T.Shuffle(run, [lane * c + j for lane in range(tile)]), tile)
