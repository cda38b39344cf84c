"""Attention without a score matrix in memory: out = softmax(scale q k^T + mask) v, block of queries by block of queries.

Keys are visited block by block with a running maximum and sum (online softmax: Milakov and Gimelshein 2018; Dao et al.,
"FlashAttention", 2022). Vectors run over queries: scores are computed transposed, s^T = K q^T, so that rows of K and V are read
where they lie as scalars, maximum and sum need no horizontal steps, and o^T = V^T p^T is the same kind of product. Only the
queries and the result are transposed, in registers, and not even they where positions lie side by side (layout `cl`). Any batch,
head and row strides: heads may lie side by side in a row.

For a few queries (decoding with a cache) vectors run over the head's elements instead (attention_few.py).

Scores are computed for powers of two: log2(e) is part of their scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Any

from sparsec.codegen.isa.pieces import pieces
from sparsec.codegen.isa.transpose import transpose
from sparsec.codegen.isa.vecmath import LOG2_E, bind, exp2_negative
from sparsec.codegen.kernels import attention_few
from sparsec.codegen.kernels.last_tile import with_size
from sparsec.codegen.kernels.rows import for_run
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target

# Keys of a block: its weights, one row a key, stay in a level-1 cache.
_BLOCK_KEYS = 128
LOWEST = -3.4028234663852886e38
_UNROLL = 4


@dataclass(frozen=True)
class Blocking:
    """Vectors and columns (queries) of a block, rows of its two register tiles, tiles of keys in all and in a block."""

    vectors: int
    width: int
    query_blocks: int
    key_rows: int
    key_tiles: int
    block_tiles: int
    out_rows: int


def _even(count: int, most: int) -> int:
    """Rows of equal tiles, at most `most` each, that cover `count`."""
    return ceil(count / ceil(count / most))


def _cuts(count: int, most: int) -> list[tuple[int, int]]:
    """(first row, rows) of tiles as equal as can be, at most `most` rows each: one of a few rows would wait for its own sums."""
    tiles = ceil(count / most)
    bounds = [count * i // tiles for i in range(tiles + 1)]
    return [(a, b - a) for a, b in pairwise(bounds)]


def _step(p: Mapping[str, Any], name: str) -> int:
    """Elements of memory from one element of a head to the next."""
    return int(p[name].get("element", 1))


def _of_keys(p: Mapping[str, Any]) -> bool:
    """Whether the mask has one row for all queries."""
    return bool(p["mask"]) and not p["mask"]["row"]


def few(p: Mapping[str, Any], target: Target) -> bool:
    """Whether there are too few queries to fill vectors with them."""
    return too_few(p["t"], target)


def too_few(queries: int, target: Target) -> bool:
    """Whether so many queries do not fill vectors."""
    return queries <= target.lanes // 4


def blocking(p: Mapping[str, Any], target: Target) -> Blocking:
    """Block sizes (a pure function of the parameters)."""
    most = 2 if target.lanes >= 8 else 4
    vectors = min(most, ceil(p["t"] / target.lanes))
    width = vectors * target.lanes
    rows = min(14, (target.vector_registers - 1 - vectors) // vectors)
    key_rows = _even(p["s"], rows)
    tiles = ceil(p["s"] / key_rows)
    return Blocking(
        vectors, width, ceil(p["t"] / width), key_rows, tiles, min(tiles, ceil(_BLOCK_KEYS / key_rows)),
        rows,
    )  # fmt: skip


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: q, k, v, mask?; out: out; all float32, element strides in the parameters.

    Parameters: batch, heads, groups (heads that share a head of k and v), t queries, s keys, d, dv elements of a head, scale,
    causal (keys after a query's own, counted from the end, have weight 0); q, k, v, out: {batch, head, row: strides, size}, with
    many queries also element, the stride of a head's elements (1 where it is left out; otherwise `row` is 1);
    mask: None or {batch, head, row, key: strides, size}, added to the scaled scores. `row` is 0 or, with many queries, 1.
    """
    ins = [Arg(name, "float32", p[name]["size"], "in") for name in ("q", "k", "v", "mask") if p[name]]
    out = Arg("out", "float32", p["out"]["size"], "out")
    scores = p["batch"] * p["heads"] * p["t"] * p["s"]
    cost = scores * (2 * p["d"] + 2 * p["dv"] + 20) // (2 if p["causal"] else 1)
    if few(p, target):
        return Signature((*ins, out, *attention_few.work(p)), units=p["batch"] * p["heads"] // p["groups"], cost=cost)
    b = blocking(p, target)
    work = (
        Arg("queries", "float32", p["d"] * b.width, "work"),
        Arg("weights", "float32", b.block_tiles * b.key_rows * b.width, "work"),
        Arg("result", "float32", p["dv"] * b.width, "work"),
        *([Arg("hidden", "float32", p["s"], "work")] if _of_keys(p) else []),
    )
    return Signature((*ins, out, *work), units=p["batch"] * p["heads"] * b.query_blocks, cost=cost)


def build(p: Mapping[str, Any], k: Any) -> None:
    """Write the kernel (see the module's docstring)."""
    if few(p, k.target):
        attention_few.build(p, k)
    else:
        _Attention(p, k).write()


class _Attention:
    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.p, self.k, self.T = p, k, k.T
        self.b = blocking(p, k.target)
        self.lanes: int = k.lanes
        self.columns = range(0, self.b.width, self.lanes)

    def write(self) -> None:
        """One unit after the other: (batch, head, block of queries)."""
        T, k, p, b = self.T, self.k, self.p, self.b
        with T.serial(k.lo, k.hi) as unit:
            block = bind(k, T.truncmod(unit, b.query_blocks))
            head = bind(k, T.truncmod(T.truncdiv(unit, b.query_blocks), p["heads"]))
            batch = bind(k, T.truncdiv(unit, b.query_blocks * p["heads"]))
            first = bind(k, block * b.width)
            at = {name: self._start(name, batch, head) for name in ("q", "k", "v", "out")}
            at["first"] = first
            with_size(k, block, p["t"], b.width, lambda n: self._read_queries(at["q"], first, n))
            peak, total = k.local(b.width), k.local(b.width)
            for j in self.columns:
                k.store(peak, j, k.f32(LOWEST, self.lanes), self.lanes)
                k.store(total, j, k.f32(0.0, self.lanes), self.lanes)
            mask = None
            if p["mask"]:
                m = p["mask"]
                mask = bind(k, batch * m["batch"] + head * m["head"] + first * m["row"])
                if _of_keys(p):
                    self._read_mask(mask)
            tiles: Any = b.key_tiles
            if p["causal"]:
                keys = first + (b.width + p["s"] - p["t"])
                tiles = bind(k, T.min(T.truncdiv(keys + (b.key_rows - 1), b.key_rows), b.key_tiles))
            if b.key_tiles <= b.block_tiles:
                self._key_block(T.int32(0), tiles, at, mask, peak, total)
            else:
                with T.serial(0, T.truncdiv(tiles + (b.block_tiles - 1), b.block_tiles)) as part:
                    tile0 = bind(k, part * b.block_tiles)
                    tile1 = bind(k, T.min(tile0 + b.block_tiles, tiles))
                    self._key_block(tile0, tile1, at, mask, peak, total)
            with_size(k, block, p["t"], b.width, lambda n: self._write_result(at["out"], first, n, total))

    def _start(self, name: str, batch: Any, head: Any) -> Any:
        s = self.p[name]
        if name in ("k", "v"):
            head = self.T.truncdiv(head, self.p["groups"])
        return bind(self.k, batch * s["batch"] + head * s["head"])

    # --- queries in, result out ---

    def _read_queries(self, start: Any, first: Any, count: int) -> None:
        """queries[d][column] = scale * log2(e) * q; columns from `count` on are zero."""
        k, p, width = self.k, self.p, self.b.width
        scale = p["scale"] * LOG2_E
        row, step = p["q"]["row"], _step(p, "q")
        base = bind(k, start + first * row)
        if step > 1:
            with self.T.serial(0, p["d"]) as d:
                for at, w in pieces(count, self.lanes):
                    x = k.load(k.arg("q"), base + d * step + at, w)
                    k.store(k.arg("queries"), d * width + at, x * k.f32(scale, w), w)
                for at, w in pieces(width - count, self.lanes):
                    k.store(k.arg("queries"), d * width + count + at, k.f32(0.0, w), w)
            return
        for at, w in pieces(p["d"], self.lanes):
            for q0 in range(0, width, w):
                rows = [
                    k.load(k.arg("q"), base + (q0 + i) * row + at, w) if q0 + i < count else k.f32(0.0, w)
                    for i in range(w)
                ]
                for i, column in enumerate(self._turned(rows, w)):
                    k.store(k.arg("queries"), (at + i) * width + q0, column * k.f32(scale, w), w)

    def _write_result(self, start: Any, first: Any, count: int, total: Any) -> None:
        """out = result / total, transposed; `count` columns exist."""
        k, p, width = self.k, self.p, self.b.width
        row, step = p["out"]["row"], _step(p, "out")
        base = bind(k, start + first * row)
        for j in self.columns:
            k.store(total, j, k.f32(1.0, self.lanes) / k.load(total, j, self.lanes), self.lanes)
        if step > 1:
            with self.T.serial(0, p["dv"]) as d:
                for at, w in pieces(count, self.lanes):
                    value = k.load(k.arg("result"), d * width + at, w) * k.load(total, at, w)
                    k.store(k.arg("out"), base + d * step + at, value, w)
            return

        def turn(at: Any, w: int) -> None:
            for q0 in range(0, min(count, width), w):
                rows = [k.load(k.arg("result"), (at + i) * width + q0, w) * k.load(total, q0, w) for i in range(w)]
                for i, column in enumerate(self._turned(rows, w)):
                    if q0 + i < count:
                        k.store(k.arg("out"), base + (q0 + i) * row + at, column, w)

        # a loop: with every address known, LLVM would keep results from the products on, which lack the registers
        with self.T.serial(0, p["dv"] // self.lanes) as part:
            turn(bind(k, part * self.lanes), self.lanes)
        whole = p["dv"] // self.lanes * self.lanes
        for at, w in pieces(p["dv"] - whole, self.lanes):
            turn(self.T.int32(whole + at), w)

    def _turned(self, rows: Sequence[Any], width: int) -> list[Any]:
        return list(rows) if width == 1 else transpose(self.k, [bind(self.k, row) for row in rows])

    def _read_mask(self, start: Any) -> None:
        """hidden[key] = what is added to the scores of a key."""
        k, p = self.k, self.p

        def part(key: Any, lanes: int) -> None:
            where = start + key * p["mask"]["key"]
            k.store(k.arg("hidden"), key, self._binary(k.load(k.arg("mask"), where, lanes), lanes), lanes)

        for_run(k, p["s"], part)

    # --- one block of keys ---

    def _key_block(self, tile0: Any, tile1: Any, at: Mapping[str, Any], mask: Any, peak: Any, total: Any) -> None:
        T, k, p, b, lanes = self.T, self.k, self.p, self.b, self.lanes
        weights = k.arg("weights")
        once = b.key_tiles <= b.block_tiles
        top = k.local(b.width)
        for j in self.columns:
            k.store(top, j, k.load(peak, j, lanes), lanes)
        with T.serial(tile0, tile1) as tile:
            with_size(k, tile, p["s"], b.key_rows, lambda rows: self._scores(tile, tile0, rows, at, mask, top))
        shrink = k.local(b.width)
        for j in self.columns:
            if not once:
                factor = exp2_negative(k, k.load(peak, j, lanes) - k.load(top, j, lanes), lanes)
                k.store(shrink, j, factor, lanes)
                k.store(total, j, k.load(total, j, lanes) * k.load(shrink, j, lanes), lanes)
            k.store(peak, j, k.load(top, j, lanes), lanes)
        keys = bind(k, T.min(tile1 * b.key_rows, p["s"]) - tile0 * b.key_rows)
        with T.serial(0, keys) as key:
            for j in self.columns:
                score = k.load(weights, key * b.width + j, lanes)
                weight = bind(k, exp2_negative(k, score - k.load(peak, j, lanes), lanes))
                k.store(weights, key * b.width + j, weight, lanes)
                k.store(total, j, k.load(total, j, lanes) + weight, lanes)
        values = bind(k, at["v"] + tile0 * (b.key_rows * p["v"]["row"]))
        for row, rows in _cuts(p["dv"], b.out_rows):
            self._accumulate(row, rows, values, keys, None if once else (tile0, shrink))

    def _scores(self, tile: Any, tile0: Any, rows: int, at: Mapping[str, Any], mask: Any, top: Any) -> None:
        """weights = scores of `rows` keys against the block of queries; `top` follows their maximum."""
        k, p, b, lanes = self.k, self.p, self.b, self.lanes
        row, element = p["k"]["row"], _step(p, "k")
        base, first = bind(k, at["k"] + tile * (b.key_rows * row)), at["first"]
        acc = self._zeros(rows)

        def step(d: Any) -> None:
            self._outer(acc, [(k.arg("k"), base + i * row + d * element) for i in range(rows)], "queries", d)

        self._steps(p["d"], step)
        to = bind(k, (tile - tile0) * (b.key_rows * b.width))
        for i in range(rows):
            for j in self.columns:
                score = k.load(acc, i * b.width + j, lanes)
                if p["mask"]:
                    key = tile * b.key_rows + i
                    if _of_keys(p):
                        score = score + k.splat(k.load(k.arg("hidden"), key), lanes)
                    else:
                        added = k.load(k.arg("mask"), mask + key * p["mask"]["key"] + j, lanes)
                        score = score + self._binary(added, lanes)
                if p["causal"]:
                    last = self.T.Ramp(first + (j + p["s"] - p["t"]), 1, lanes)
                    hidden = last < k.splat(tile * b.key_rows + i, lanes)
                    score = self.T.Select(hidden, k.f32(float("-inf"), lanes), score)
                score = bind(k, score)
                k.store(k.arg("weights"), to + i * b.width + j, score, lanes)
                k.store(top, j, self.T.max(k.load(top, j, lanes), score), lanes)

    def _binary(self, mask: Any, lanes: int) -> Any:
        """A mask to be added to scores for powers of two; what hides a key stays finite, so that a row of which all keys are hidden
        weighs them alike."""
        k = self.k
        return self.T.max(k.f32(LOWEST, lanes), mask * k.f32(LOG2_E, lanes))

    def _accumulate(self, row: int, rows: int, values: Any, keys: Any, rescale: tuple[Any, Any] | None) -> None:
        """result[row .. row + rows] = result * shrink + v^T weights over the keys of a block."""
        T, k, p, b, lanes = self.T, self.k, self.p, self.b, self.lanes
        result, stride, element = k.arg("result"), p["v"]["row"], _step(p, "v")
        acc = self._zeros(rows)
        if rescale is not None:
            with T.If(rescale[0] > 0), T.Then():
                for i in range(rows):
                    for j in self.columns:
                        old = k.load(result, (row + i) * b.width + j, lanes) * k.load(rescale[1], j, lanes)
                        k.store(acc, i * b.width + j, old, lanes)
        with T.serial(0, keys) as key:
            at = bind(k, values + key * stride + row * element)
            self._outer(acc, [(k.arg("v"), at + i * element) for i in range(rows)], "weights", key)
        for i in range(rows):
            for j in self.columns:
                k.store(result, (row + i) * b.width + j, k.load(acc, i * b.width + j, lanes), lanes)

    # --- the register tile ---

    def _zeros(self, rows: int) -> Any:
        acc = self.k.local(rows * self.b.width)
        for i in range(0, rows * self.b.width, self.lanes):
            self.k.store(acc, i, self.k.f32(0.0, self.lanes), self.lanes)
        return acc

    def _outer(self, acc: Any, scalars: Sequence[tuple[Any, Any]], panel: str, index: Any) -> None:
        """acc[i][:] += scalar i * panel[index][:]"""
        k, width, lanes = self.k, self.b.width, self.lanes
        row = [bind(k, k.load(k.arg(panel), index * width + j, lanes)) for j in self.columns]
        for i, (buffer, at) in enumerate(scalars):
            value = k.splat(k.load(buffer, at), lanes)
            for j, vector in zip(self.columns, row, strict=True):
                slot = i * width + j
                k.store(acc, slot, k.load(acc, slot, lanes) + value * vector, lanes)

    def _steps(self, count: int, step: Callable[[Any], None]) -> None:
        """step(0) ... step(count - 1), unrolled by a few."""
        T = self.T
        if count >= _UNROLL:
            with T.serial(0, count // _UNROLL) as group:
                for u in range(_UNROLL):
                    step(group * _UNROLL + u)
        for i in range(count // _UNROLL * _UNROLL, count):
            step(T.int32(i))
