"""Attention without a score matrix in memory, the parameters of kernels/attention.py, on tensor cores.

A block holds 16 queries a warp in registers and passes over the keys, 64 at a time, which all its warps read from shared memory;
maximum and sum of each row of scores run along in float32 (online softmax: Milakov and Gimelshein 2018; Dao et al.,
"FlashAttention", 2022). The sums of the first product lie in registers as the first operand of the second one wants them. Keys and values
come to shared memory as they lie, by asynchronous copies while those before them are multiplied; `ldmatrix` takes keys from there, and
turns values.

Of few queries (decoding) a block has 16 at most: those of all heads that share keys, so that keys are read once for them. Its warps
share the keys instead, and what each found is put together at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from sparsec.codegen.cuda.decode import SUFFIX
from sparsec.codegen.cuda.launch import Launch, lines
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target

LARGEST_HEAD = 128
"""Elements of a head up to which everything stays in registers."""
_WARPS, _QUERIES, _KEYS, _STAGES = 4, 16, 64, 2
_LOWEST = -3.4028234663852886e38


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: q, k, v, mask?; out: out (see kernels/attention.py)."""
    ins = [Arg(name, "float32", p[name]["size"], "in") for name in ("q", "k", "v", "mask") if p[name]]
    scores = p["batch"] * p["heads"] * p["t"] * p["s"]
    return Signature(
        (*ins, Arg("out", "float32", p["out"]["size"], "out")), 1, scores * (2 * p["d"] + 2 * p["dv"] + 20)
    )


def _few(p: Mapping[str, Any]) -> bool:
    """Whether one warp's rows hold the queries of all heads that share keys."""
    return bool(p["groups"] * p["t"] <= _QUERIES)


def _rows(p: Mapping[str, Any]) -> int:
    """Queries that meet the same keys, of one head or of all that share them."""
    return int(p["groups"] * p["t"] if _few(p) else p["t"])


def _query_blocks(p: Mapping[str, Any]) -> int:
    return 1 if _few(p) else ceil(p["t"] / (_WARPS * _QUERIES))


def _depth(p: Mapping[str, Any]) -> int:
    """Elements of a query, in whole steps of 16."""
    return int(ceil(p["d"] / 16) * 16)


def _width(p: Mapping[str, Any]) -> int:
    """Elements of a result, in whole tiles of 8."""
    return int(ceil(p["dv"] / 8) * 8)


def _pitches(p: Mapping[str, Any]) -> tuple[int, int]:
    """Words from key to key, and from value to value: an odd number of chunks of 4, so that 8 rows meet all banks."""
    return 4 * (_depth(p) // 8 | 1), 4 * (_width(p) // 8 | 1)


def _stages(p: Mapping[str, Any]) -> int:
    """Blocks of keys that are in shared memory or on their way there."""
    blocks: int = ceil(p["s"] / _KEYS)
    return min(_STAGES, blocks)


def launch(p: Mapping[str, Any], target: Target) -> Launch:
    """A block for each (batch, head or group of heads, block of queries)."""
    words = _stages(p) * _KEYS * sum(_pitches(p))
    if _few(p):
        words = max(words, _WARPS * _QUERIES * (_width(p) + 2))
    heads = p["heads"] // (p["groups"] if _few(p) else 1)
    return lines(p["batch"] * heads * _query_blocks(p), 32 * _WARPS, 4 * words)


def build(p: Mapping[str, Any], k: Any) -> None:
    """One block."""
    _Flash(p, k).write()


class _Flash:
    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        T = k.T
        self.p, self.k, self.T = p, k, T
        self.suffix = SUFFIX[k.target.storage]
        self.few, self.rows = _few(p), _rows(p)
        self.depth, self.width = _depth(p), _width(p)
        self.key_pitch, self.value_pitch = _pitches(p)
        self.thread = k.thread[0]
        self.warp, self.lane = k.let(self.thread >> 5), k.let(self.thread & 31)
        self.g, self.q = k.let(self.lane >> 2), k.let(self.lane & 3)
        blocks = _query_blocks(p)
        unit = k.let(T.truncdiv(k.block[0], blocks))
        heads = p["heads"] // p["groups"] if self.few else p["heads"]
        self.head, self.batch = k.let(T.truncmod(unit, heads)), k.let(T.truncdiv(unit, heads))
        block = k.let(T.truncmod(k.block[0], blocks))
        self.first = k.let(block * (_WARPS * _QUERIES))
        self.row0 = T.int32(0) if self.few else k.let(self.first + self.warp * _QUERIES)
        kv_head = self.head if self.few else T.truncdiv(self.head, p["groups"])
        self.keys_at = k.let(self.batch * p["k"]["batch"] + kv_head * p["k"]["head"])
        self.values_at = k.let(self.batch * p["v"]["batch"] + kv_head * p["v"]["head"])
        # keys of a block that this warp's scores are of, in tiles of 8, and the first of them
        self.tiles = 2 if self.few else _KEYS // 8
        self.own = k.let(self.warp * 16) if self.few else T.int32(0)
        self.shared = k.dynamic(k.launch.shared_bytes // 4, "float32")
        self.stage_words = _KEYS * (self.key_pitch + self.value_pitch)

    # --- rows of queries ---

    def _row(self, half: int) -> Any:
        """The row of this lane: the tile's upper or lower half."""
        return self.row0 + self.g + 8 * half

    def _place(self, row: Any) -> tuple[Any, Any]:
        """(head, query) of a row."""
        if not self.few:
            return self.head, row
        t = self.p["t"]
        return self.head * self.p["groups"] + self.T.truncdiv(row, t), self.T.truncmod(row, t)

    def _element(self, name: str, inside: Any, index: Any) -> Any:
        """The element, 0 where it is not inside."""
        T = self.T
        value = self.k.load(self.k.arg(name), T.Select(inside, index, T.int32(0)))
        return T.Select(inside, value, T.float32(0))

    def _pair(self, low: Any, high: Any) -> Any:
        return self.k.device("uint32", f"spc_pair_{self.suffix}", low, high)

    def _read_queries(self) -> Any:
        """First operands of all steps of 16 elements."""
        k, T, p = self.k, self.T, self.p
        held = k.local(self.depth // 4, "uint32")
        for half in range(2):
            row = k.let(self._row(half))
            head, query = self._place(row)
            start = k.let(self.batch * p["q"]["batch"] + head * p["q"]["head"] + query * p["q"]["row"])
            for step in range(self.depth // 16):
                for part in range(2):
                    column = k.let(step * 16 + part * 8 + 2 * self.q)
                    low, high = (
                        self._element("q", T.And(row < self.rows, column + i < p["d"]), start + column + i)
                        for i in range(2)
                    )
                    k.store(held, step * 4 + part * 2 + half, self._pair(low, high))
        return held

    # --- a block of keys ---

    def _each(self, count: int, body: Any) -> None:
        """body(index) for all indices below `count`, dealt to the threads of the block."""
        k, T, threads = self.k, self.T, 32 * _WARPS
        with T.serial(0, ceil(count / threads)) as turn:
            index = k.let(turn * threads + self.thread)
            if count % threads == 0:
                body(index)
            else:
                with T.If(index < count), T.Then():
                    body(index)

    def _stage(self, block: Any, blocks: Any) -> None:
        """Begin to copy a block of keys and their values, if there is one; zeros stand for those behind the last."""
        k, T, p = self.k, self.T, self.p
        with T.If(block < blocks), T.Then():
            key0, slot = k.let(block * _KEYS), self._slot(block)
            self._stage_lines("k", key0, self.keys_at, p["d"], self.depth // 8, slot, self.key_pitch)
            values = slot + _KEYS * self.key_pitch
            self._stage_lines("v", key0, self.values_at, p["dv"], self.width // 8, values, self.value_pitch)
        k.do("spc_copy_commit")

    def _slot(self, block: Any) -> Any:
        """Where the keys of a block are in shared memory; their values follow."""
        return self.k.let(self.T.truncmod(block, _stages(self.p)) * self.stage_words)

    def _stage_lines(self, name: str, key0: Any, at: Any, size: int, chunks: int, place: Any, pitch: int) -> None:
        """Lines of `size` elements of `name`, whose first one is `at`, to lines of `chunks` times 8."""
        k, T, p = self.k, self.T, self.p

        def chunk_of(index: Any) -> None:
            line, chunk = k.let(T.truncdiv(index, chunks)), k.let(T.truncmod(index, chunks))
            inside = key0 + line < p["s"]
            source = T.Select(inside, at + (key0 + line) * p[name]["row"] + chunk * 8, T.int32(0))
            left = T.Select(inside, size - chunk * 8, T.int32(0))
            to = k.at(self.shared, place + line * pitch + chunk * 4)
            k.do(f"spc_fetch_{self.suffix}", to, k.at(k.arg(name), source), left)

        self._each(_KEYS * chunks, chunk_of)

    def _mma(self, sums: Any, at: int, a: list[Any], b0: Any, b1: Any) -> None:
        self.k.do(f"spc_mma_{self.suffix}", self.k.at(sums, at), *a, b0, b1)

    def _scores(self, queries: Any, slot: Any, scores: Any) -> None:
        """scores = q k^T of this warp's queries and keys."""
        k = self.k
        for i in range(4 * self.tiles):
            k.store(scores, i, k.f32(0.0))
        found = k.local(4, "uint32")  # both halves of a step of 16 elements, of 8 keys and of the next 8
        row, matrix = k.let(self.lane & 7), k.let(self.lane >> 3)
        line = k.let(slot + (self.own + (matrix >> 1) * 8 + row) * self.key_pitch + (matrix & 1) * 4)
        for tile in range(0, self.tiles, 2):
            for step in range(self.depth // 16):
                place = line + (tile * 8 * self.key_pitch + step * 8)
                k.do("spc_load_matrices", k.at(found, 0), k.at(self.shared, place))
                a = [queries[step * 4 + i] for i in range(4)]
                for i in range(2):
                    self._mma(scores, (tile + i) * 4, a, found[2 * i], found[2 * i + 1])

    def _finished(self, scores: Any, key0: Any) -> None:
        """Scale and mask; what is hidden, or no key, is minus infinity."""
        k, T, p = self.k, self.T, self.p
        hidden = k.device("float32", "__int_as_float", T.int32(-8388608))
        for half in range(2):
            row = k.let(self._row(half))
            head, query = self._place(row)
            base: Any = None
            if m := p["mask"]:
                base = k.let(self.batch * m["batch"] + head * m["head"] + query * m["row"])
            last = k.let(T.min(query + (p["s"] - p["t"]), p["s"] - 1)) if p["causal"] else T.int32(p["s"] - 1)
            for tile in range(self.tiles):
                for i in range(2):
                    slot = tile * 4 + half * 2 + i
                    key = k.let(key0 + self.own + tile * 8 + 2 * self.q + i)
                    value = scores[slot] * T.float32(p["scale"])
                    if m := p["mask"]:
                        inside = T.And(key < p["s"], row < self.rows)
                        value = value + self._element("mask", inside, base + key * m["key"])
                    k.store(scores, slot, T.Select(key <= last, value, hidden))

    def _quad(self, value: Any, function: str | None) -> Any:
        """The value of the four lanes of a row combined: their sum, or by a device function."""
        k = self.k
        held = k.local(1)
        k.store(held, 0, value)
        for bits in (1, 2):
            other = k.let(k.device("float32", "spc_lane_xor", held[0], bits), "float32")
            k.store(held, 0, held[0] + other if function is None else k.device("float32", function, held[0], other))
        return held[0]

    def _exp(self, value: Any) -> Any:
        return self.k.device("float32", "__expf", value)

    def _weigh(self, scores: Any, peak: Any, total: Any, result: Any) -> None:
        """Scores to weights relative to the maximum so far; what is there already shrinks to it."""
        k = self.k
        for half in range(2):
            slots = [tile * 4 + half * 2 + i for tile in range(self.tiles) for i in range(2)]
            top = k.local(1)
            k.store(top, 0, peak[half])
            for slot in slots:
                k.store(top, 0, k.device("float32", "spc_maximum", top[0], scores[slot]))
            new = k.let(self._quad(top[0], "spc_maximum"), "float32")
            shrink = k.let(self._exp(peak[half] - new), "float32")
            k.store(peak, half, new)
            k.store(total, half, total[half] * shrink)
            for slot in slots:
                k.store(scores, slot, self._exp(scores[slot] - new))
                k.store(total, half, total[half] + scores[slot])
            for tile in range(self.width // 8):
                for i in range(2):
                    at = tile * 4 + half * 2 + i
                    k.store(result, at, result[at] * shrink)

    def _accumulate(self, scores: Any, slot: Any, result: Any) -> None:
        """result += weights v."""
        k, tiles = self.k, self.width // 8
        found = k.local(4, "uint32")  # 16 keys' values of 8 elements, and of the next 8 if there are any
        row, matrix = k.let(self.lane & 7), k.let(self.lane >> 3)
        values = slot + _KEYS * self.key_pitch
        line = k.let(values + (self.own + (matrix & 1) * 8 + row) * self.value_pitch)
        for step in range(self.tiles // 2):
            a = [
                k.let(self._pair(scores[at], scores[at + 1]), "uint32")
                for at in (step * 8, step * 8 + 2, step * 8 + 4, step * 8 + 6)
            ]
            for tile in range(0, tiles, 2):
                chunk = self.T.min(tile + (matrix >> 1), tiles - 1)
                place = line + step * 16 * self.value_pitch + chunk * 4
                k.do("spc_load_turned", k.at(found, 0), k.at(self.shared, place))
                for i in range(min(2, tiles - tile)):
                    self._mma(result, (tile + i) * 4, a, found[2 * i], found[2 * i + 1])

    # --- the whole ---

    def write(self) -> None:
        """Pass over the keys, then the result."""
        k, T, p = self.k, self.T, self.p
        queries = self._read_queries()
        scores, result = k.local(4 * self.tiles), k.local(self.width // 2)
        peak, total = k.local(2), k.local(2)
        for half in range(2):
            k.store(peak, half, k.f32(_LOWEST))
            k.store(total, half, k.f32(0.0))
        for i in range(self.width // 2):
            k.store(result, i, k.f32(0.0))
        blocks: Any = T.int32(ceil(p["s"] / _KEYS))
        if p["causal"] and not self.few:  # keys behind the last query of the block are hidden from all
            seen = T.min(self.first + (_WARPS * _QUERIES), p["t"]) + (p["s"] - p["t"])
            blocks = k.let(T.truncdiv(seen + (_KEYS - 1), _KEYS))
        self._stage(T.int32(0), blocks)
        with T.serial(0, blocks) as block:
            k.do("spc_copy_wait<0>")
            k.sync()  # the block is there, and nobody reads the one before it any more
            self._stage(block + 1, blocks)
            slot = self._slot(block)
            self._scores(queries, slot, scores)
            self._finished(scores, k.let(block * _KEYS))
            self._weigh(scores, peak, total, result)
            self._accumulate(scores, slot, result)
        for half in range(2):
            k.store(total, half, self._quad(total[half], None))
        if self.few:
            self._combine(peak, total, result)
            return
        for half in range(2):
            row = k.let(self._row(half))
            with T.If(row < self.rows), T.Then():
                factor = k.let(T.float32(1) / total[half], "float32")
                for tile in range(self.width // 8):
                    for i in range(2):
                        self._write(row, tile * 8 + 2 * self.q + i, result[tile * 4 + half * 2 + i] * factor)

    def _write(self, row: Any, column: Any, value: Any) -> None:
        k, T, out = self.k, self.T, self.p["out"]
        head, query = self._place(row)
        at = self.batch * out["batch"] + head * out["head"] + query * out["row"] + column
        if self.width == self.p["dv"]:
            k.store(k.arg("out"), at, value)
        else:
            with T.If(column < self.p["dv"]), T.Then():
                k.store(k.arg("out"), at, value)

    def _combine(self, peak: Any, total: Any, result: Any) -> None:
        """What the warps found of different keys, each relative to its own maximum."""
        k, T, pitch = self.k, self.T, self.width + 2
        k.sync()
        for half in range(2):
            base = k.let((self.warp * _QUERIES + self.g + 8 * half) * pitch)
            with T.If(self.q == 0), T.Then():
                k.store(self.shared, base + self.width, peak[half])
                k.store(self.shared, base + self.width + 1, total[half])
            for tile in range(self.width // 8):
                for i in range(2):
                    value = result[tile * 4 + half * 2 + i]
                    k.store(self.shared, base + tile * 8 + 2 * self.q + i, value)
        k.sync()

        def joined(index: Any) -> None:
            row, column = k.let(T.truncdiv(index, self.width)), k.let(T.truncmod(index, self.width))
            lines_of = [k.let((warp * _QUERIES + row) * pitch) for warp in range(_WARPS)]
            top, whole, part = k.local(1), k.local(1), k.local(1)
            k.store(top, 0, self.shared[lines_of[0] + self.width])
            for line in lines_of[1:]:
                k.store(top, 0, k.device("float32", "spc_maximum", top[0], self.shared[line + self.width]))
            k.store(whole, 0, k.f32(0.0))
            k.store(part, 0, k.f32(0.0))
            for line in lines_of:
                shrink = k.let(self._exp(self.shared[line + self.width] - top[0]), "float32")
                k.store(whole, 0, whole[0] + shrink * self.shared[line + self.width + 1])
                k.store(part, 0, part[0] + shrink * self.shared[line + column])
            self._write(row, column, part[0] / whole[0])

        self._each(self.rows * self.width, joined)
