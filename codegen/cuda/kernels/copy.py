"""Strided copies, the parameters of kernels/copy.py: runs of 8 elements where both sides are contiguous, tiles of 32 x 32 through
shared memory where source and destination are contiguous along different dimensions, else an element a thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from sparsec.codegen.cuda import vectors
from sparsec.codegen.cuda.launch import Launch, lines
from sparsec.codegen.kernels.copy import _Dim, _merge
from sparsec.codegen.kernels.copy import signature as signature
from sparsec.target import Target

_BLOCK = 128
_TILE, _ROWS = 32, 8
# Fewer elements along one of two contiguous dimensions leave most of a tile empty.
_LEAST = 8


def _dims(p: Mapping[str, Any]) -> list[_Dim]:
    return [_Dim(0, 1, 1)] if 0 in p["shape"] else _merge(p)


def _turned(dims: Sequence[_Dim]) -> int | None:
    """The dimension along which the source is contiguous, where a copy goes by tiles."""
    inner = dims[-1]
    if inner.dst != 1 or inner.src == 1 or inner.n < _LEAST:
        return None
    return next((i for i, d in enumerate(dims[:-1]) if d.src == 1 and d.n >= _LEAST), None)


def _width(dims: Sequence[_Dim]) -> int:
    """Elements of a thread."""
    inner = dims[-1]
    whole = inner.n % vectors.WIDTH == 0 or (len(dims) == 1 and inner.n > vectors.WIDTH)
    return vectors.WIDTH if whole and (inner.src, inner.dst) == (1, 1) else 1


def _tiles(n: int) -> int:
    return -(-n // _TILE)


def launch(p: Mapping[str, Any], target: Target) -> Launch:
    """A thread for each run, or a block for each tile."""
    dims = _dims(p)
    if (turned := _turned(dims)) is not None:
        outer = prod(d.n for i, d in enumerate(dims[:-1]) if i != turned)
        return Launch((outer * _tiles(dims[turned].n) * _tiles(dims[-1].n), 1, 1), (_TILE, _ROWS, 1))
    threads = prod(d.n for d in dims[:-1]) * -(-dims[-1].n // _width(dims))
    return lines(-(-threads // _BLOCK), _BLOCK)


def _starts(k: Any, p: Mapping[str, Any], dims: Sequence[_Dim], index: Any) -> tuple[Any, Any]:
    """Where the element with this index among `dims` lies in source and destination."""
    T, s, d, left = k.T, k.T.int32(p["src_offset"]), k.T.int32(p["dst_offset"]), index
    for i, dim in reversed(list(enumerate(dims))):
        at = T.truncmod(left, dim.n) if i else left
        s, d, left = s + at * dim.src, d + at * dim.dst, T.truncdiv(left, dim.n)
    return k.let(s), k.let(d)


def build(p: Mapping[str, Any], k: Any) -> None:
    """One run, or one tile."""
    dims = _dims(p)
    if 0 in p["shape"]:
        return
    if (turned := _turned(dims)) is not None:
        _build_tile(p, k, [d for i, d in enumerate(dims[:-1]) if i != turned], dims[turned], dims[-1])
        return
    T, inner, width = k.T, dims[-1], _width(dims)
    src, dst = k.arg("src"), k.arg("dst")
    runs = -(-inner.n // width)
    index = k.let(k.block[0] * _BLOCK + k.thread[0])
    with T.If(index < prod(d.n for d in dims[:-1]) * runs), T.Then():
        s, d = _starts(k, p, dims[:-1], T.truncdiv(index, runs))
        at = k.let(T.truncmod(index, runs) * width)
        if width == 1:
            k.store(dst, d + at * inner.dst, k.load(src, s + at * inner.src))
            return
        count = T.min(width, inner.n - at)
        if src.dtype != dst.dtype:  # rounded on the way
            with T.serial(0, count) as lane:
                k.store(dst, d + at + lane, k.load(src, s + at + lane))
            return
        test = vectors.aligned(k, [(src, s + at), (dst, d + at)])
        with T.If(test if inner.n % width == 0 else T.And(at + width <= inner.n, test)):
            with T.Then():
                vectors.move(k, dst, d + at, src, s + at)
            with T.Else(), T.serial(0, count) as lane:
                k.store(dst, d + at + lane, k.load(src, s + at + lane))


def _build_tile(p: Mapping[str, Any], k: Any, outer: Sequence[_Dim], unit: _Dim, inner: _Dim) -> None:
    """Read along `unit`, write along `inner`; a column more keeps the threads of a warp in different banks."""
    T, (x, y) = k.T, k.thread[:2]
    src, dst = k.arg("src"), k.arg("dst")
    tile = k.shared(_TILE * (_TILE + 1), src.dtype)
    index = k.let(k.block[0])
    i0 = k.let(T.truncmod(index, _tiles(inner.n)) * _TILE)
    left = T.truncdiv(index, _tiles(inner.n))
    u0 = k.let(T.truncmod(left, _tiles(unit.n)) * _TILE)
    s, d = _starts(k, p, outer, T.truncdiv(left, _tiles(unit.n)))
    with T.serial(0, _TILE // _ROWS) as part:
        row = y + part * _ROWS
        with T.If(T.And(i0 + row < inner.n, u0 + x < unit.n)), T.Then():
            k.store(tile, row * (_TILE + 1) + x, k.load(src, s + (i0 + row) * inner.src + u0 + x))
    k.sync()
    with T.serial(0, _TILE // _ROWS) as part:
        row = y + part * _ROWS
        with T.If(T.And(u0 + row < unit.n, i0 + x < inner.n)), T.Then():
            k.store(dst, d + (u0 + row) * unit.dst + i0 + x, k.load(tile, x * (_TILE + 1) + row))
