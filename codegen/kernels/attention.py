"""Attention without a score matrix in memory: out = softmax(scale q k^T + mask) v, block of queries by block of queries.

Keys are visited block by block with a running maximum and sum (online softmax: Milakov and Gimelshein 2018; Dao et al.,
"FlashAttention", 2022). Vectors run over queries: scores are computed transposed, s^T = K q^T, so that rows of K and V are read
where they lie as scalars, maximum and sum need no horizontal steps, and o^T = V^T p^T is the same kind of product. Only the
queries and the result are transposed, in registers. Any batch, head and row strides: heads may lie side by side in a row.

For a few queries (decoding with a cache) vectors run over the head's elements instead (attention_few.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal, Tensor
from sparsec.codegen.isa.pieces import pieces
from sparsec.codegen.isa.transpose import transpose
from sparsec.codegen.isa.vecmath import bind, exp_negative
from sparsec.codegen.kernels import attention_few
from sparsec.codegen.kernels.last_tile import with_size
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


def few(p: Mapping[str, Any], target: Target) -> bool:
    """Whether there are too few queries to fill vectors with them."""
    return bool(p["t"] <= target.lanes // 4)


def blocking(p: Mapping[str, Any], target: Target) -> Blocking:
    """Block sizes (a pure function of the parameters)."""
    most = 2 if target.lanes >= 8 else 4
    vectors = min(most, ceil(p["t"] / target.lanes))
    width = vectors * target.lanes
    rows = min(14, (target.vector_registers - 1 - vectors) // vectors)
    key_rows = _even(p["s"], rows)
    tiles = ceil(p["s"] / key_rows)
    return Blocking(
        vectors, width, ceil(p["t"] / width), key_rows, tiles, min(tiles, max(1, _BLOCK_KEYS // key_rows)),
        _even(p["dv"], rows),
    )  # fmt: skip


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: q, k, v, mask?; out: out; all float32, element strides in the parameters.

    Parameters: batch, heads, groups (heads that share a head of k and v), t queries, s keys, d, dv elements of a head, scale,
    causal (keys after a query's own, counted from the end, have weight 0); q, k, v, out: {batch, head, row: strides, size};
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
        """queries[d][column] = scale * q; columns from `count` on are zero."""
        k, p, width = self.k, self.p, self.b.width
        row = p["q"]["row"]
        base = bind(k, start + first * row)
        for at, w in pieces(p["d"], self.lanes):
            for q0 in range(0, width, w):
                rows = [
                    k.load(k.arg("q"), base + (q0 + i) * row + at, w) if q0 + i < count else k.f32(0.0, w)
                    for i in range(w)
                ]
                for i, column in enumerate(self._turned(rows, w)):
                    k.store(k.arg("queries"), (at + i) * width + q0, column * k.f32(p["scale"], w), w)

    def _write_result(self, start: Any, first: Any, count: int, total: Any) -> None:
        """out = result / total, transposed; `count` columns exist."""
        k, p, width = self.k, self.p, self.b.width
        row = p["out"]["row"]
        base = bind(k, start + first * row)
        for j in self.columns:
            k.store(total, j, k.f32(1.0, self.lanes) / k.load(total, j, self.lanes), self.lanes)
        for at, w in pieces(p["dv"], self.lanes):
            for q0 in range(0, min(count, width), w):
                rows = [k.load(k.arg("result"), (at + i) * width + q0, w) * k.load(total, q0, w) for i in range(w)]
                for i, column in enumerate(self._turned(rows, w)):
                    if q0 + i < count:
                        k.store(k.arg("out"), base + (q0 + i) * row + at, column, w)

    def _turned(self, rows: Sequence[Any], width: int) -> list[Any]:
        return list(rows) if width == 1 else transpose(self.k, [bind(self.k, row) for row in rows])

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
                factor = exp_negative(k, k.load(peak, j, lanes) - k.load(top, j, lanes), lanes)
                k.store(shrink, j, factor, lanes)
                k.store(total, j, k.load(total, j, lanes) * k.load(shrink, j, lanes), lanes)
            k.store(peak, j, k.load(top, j, lanes), lanes)
        keys = bind(k, T.min(tile1 * b.key_rows, p["s"]) - tile0 * b.key_rows)
        with T.serial(0, keys) as key:
            for j in self.columns:
                score = k.load(weights, key * b.width + j, lanes)
                weight = bind(k, exp_negative(k, score - k.load(peak, j, lanes), lanes))
                k.store(weights, key * b.width + j, weight, lanes)
                k.store(total, j, k.load(total, j, lanes) + weight, lanes)
        values = bind(k, at["v"] + tile0 * (b.key_rows * p["v"]["row"]))
        for row in range(0, p["dv"], b.out_rows):
            self._accumulate(row, min(b.out_rows, p["dv"] - row), values, keys, None if once else (tile0, shrink))

    def _scores(self, tile: Any, tile0: Any, rows: int, at: Mapping[str, Any], mask: Any, top: Any) -> None:
        """weights = scores of `rows` keys against the block of queries; `top` follows their maximum."""
        k, p, b, lanes = self.k, self.p, self.b, self.lanes
        row = p["k"]["row"]
        base, first = bind(k, at["k"] + tile * (b.key_rows * row)), at["first"]
        acc = self._zeros(rows)

        def step(d: Any) -> None:
            self._outer(acc, [(k.arg("k"), base + i * row + d) for i in range(rows)], "queries", d)

        self._steps(p["d"], step)
        to = bind(k, (tile - tile0) * (b.key_rows * b.width))
        for i in range(rows):
            for j in self.columns:
                score = k.load(acc, i * b.width + j, lanes)
                if p["mask"]:
                    m = p["mask"]
                    where = mask + (tile * b.key_rows + i) * m["key"]
                    score = score + (
                        k.load(k.arg("mask"), where + j, lanes)
                        if m["row"]
                        else k.splat(k.load(k.arg("mask"), where), lanes)
                    )
                if p["causal"]:
                    last = self.T.Ramp(first + (j + p["s"] - p["t"]), 1, lanes)
                    hidden = last < k.splat(tile * b.key_rows + i, lanes)
                    score = self.T.Select(hidden, k.f32(float("-inf"), lanes), score)
                score = bind(k, score)
                k.store(k.arg("weights"), to + i * b.width + j, score, lanes)
                k.store(top, j, self.T.max(k.load(top, j, lanes), score), lanes)

    def _accumulate(self, row: int, rows: int, values: Any, keys: Any, rescale: tuple[Any, Any] | None) -> None:
        """result[row .. row + rows] = result * shrink + v^T weights over the keys of a block."""
        T, k, p, b, lanes = self.T, self.k, self.p, self.b, self.lanes
        result, stride = k.arg("result"), p["v"]["row"]
        acc = self._zeros(rows)
        if rescale is not None:
            with T.If(rescale[0] > 0), T.Then():
                for i in range(rows):
                    for j in self.columns:
                        old = k.load(result, (row + i) * b.width + j, lanes) * k.load(rescale[1], j, lanes)
                        k.store(acc, i * b.width + j, old, lanes)
        with T.serial(0, keys) as key:
            at = bind(k, values + key * stride + row)
            self._outer(acc, [(k.arg("v"), at + i) for i in range(rows)], "weights", key)
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


def lower_attention(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::Attention."""
    swapped = node.attributes.get_ints("swapped")
    operands = [_heads(low, value, bool(swap)) for value, swap in zip(node.inputs[:3], swapped, strict=False)]
    (q, k, v), ins = [operand[:2] for operand in operands], [operand[2] for operand in operands]
    (batch, heads, t, d), (_, kv_heads, s, _), dv = q[0], k[0], v[0][3]
    out = low.new(node.outputs[0])
    shape = (batch, heads, t, dv)
    p: dict[str, Any] = {
        "batch": batch, "heads": heads, "groups": heads // kv_heads, "t": t, "s": s, "d": d, "dv": dv,
        "scale": node.attributes.get_float("scale"), "causal": False, "mask": None,
        "q": q[1], "k": k[1], "v": v[1], "out": _strides(shape, bool(swapped[3]), heads * dv),
    }  # fmt: skip
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        p["causal"], p["mask"], tensor = _mask(low, node.inputs[3], p)
        ins += [tensor] if tensor is not None else []
    note = f"{batch} x {heads} heads, {t} queries, {s} keys, {d}{' causal' if p['causal'] else ''}"
    low.call("attention", p, ins, [out], node=node.name or "", op="Attention", note=note)
    return None


def _strides(shape: tuple[int, ...], swapped: bool, pitch: int) -> dict[str, int]:
    """Strides of (batch, head, row) of a tensor [B, H, T, D], or in memory [B, T, H, D] with `pitch` from row to row."""
    b, h, t, d = shape
    if not swapped:
        return {"batch": h * t * d, "head": t * d, "row": d, "size": b * h * t * d}
    return {"batch": t * pitch, "head": d, "row": pitch, "size": (b * t - 1) * pitch + h * d}


def _heads(low: Lowering, value: ir.Value | None, swapped: bool) -> tuple[tuple[int, ...], dict[str, int], Tensor]:
    """(shape [B, H, T, D], strides, tensor) of an operand."""
    assert value is not None
    b, h, t, d = low.shape(value)
    if not swapped:
        return (b, h, t, d), _strides((b, h, t, d), False, 0), low.get(value)
    tensor, pitch = low.part(value)
    return (b, t, h, d), _strides((b, t, h, d), True, pitch), tensor


def _mask(low: Lowering, value: ir.Value, p: Mapping[str, Any]) -> tuple[bool, dict[str, int] | None, Tensor | None]:
    """(causal, strides, tensor) of a mask, brought into the order the kernel reads."""
    t, s = p["t"], p["s"]
    shape = low.shape(value)
    b, h, rows, keys = (1,) * (4 - len(shape)) + shape
    array = low.constant(value)
    causal = False
    if array is not None and (rows, keys) == (t, s):
        later = np.arange(s) > np.arange(t)[:, None] + (s - t)
        flat = array.reshape(-1, t, s)
        causal = bool((flat[:, later] <= -1e30).all())
        if causal and s >= t and not flat[:, ~later].any():
            return True, None, None
    tensor = low.get(value)
    if keys != s:  # one value for all keys changes nothing, but need not be finite
        tensor = _expanded(low, tensor, (b, h, rows, s), [h * rows, rows, 1, 0])
    if rows == 1 or few(p, low.target):
        row = s if rows > 1 else 0
        strides = {"batch": h * rows * s if b > 1 else 0, "head": rows * s if h > 1 else 0, "row": row, "key": 1}
        return causal, {**strides, "size": b * h * rows * s}, tensor
    # Vectors run over queries: a row of the mask for each key, padded so that the last block may be read whole.
    width = blocking(p, low.target).width
    padded = ceil(t / width) * width
    strides = {"batch": h * s * padded if b > 1 else 0, "head": s * padded if h > 1 else 0, "row": 1, "key": padded}
    return causal, {**strides, "size": b * h * s * padded}, _turned(low, value, tensor, (b * h, t, s), padded)


def _expanded(low: Lowering, tensor: Tensor, shape: tuple[int, ...], strides: list[int]) -> Tensor:
    out = low.temp("float32", shape, name="mask.expanded")
    low.copy(tensor, out, shape=shape, src_strides=strides, node="mask", op="Expand")
    return out


def _turned(low: Lowering, value: ir.Value, tensor: Tensor, shape: tuple[int, int, int], padded: int) -> Tensor:
    """The mask with keys outside and queries inside, once for all attentions that read it."""
    planes, t, s = shape
    array = low.constant(value)
    if array is not None and array.size == planes * t * s:
        turned = np.zeros((planes, s, padded), np.float32)
        turned[:, :, :t] = array.reshape(shape).swapaxes(1, 2)
        return low.const(turned, f"{value.name}.turned")
    key = (value, padded)
    if key not in low.notes:
        out = low.temp("float32", (planes, s, padded), name=f"{value.name}.turned")
        low.copy(
            tensor, out, shape=(planes, s, t), src_strides=[t * s, 1, s], dst_strides=[s * padded, padded, 1],
            node=value.name or "", op="Transpose", note="mask with queries inside",
        )  # fmt: skip
        low.notes[key] = out
    found: Tensor = low.notes[key]
    return found
