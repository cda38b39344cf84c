"""Products of many rows of activations and strips of a sparse weight in int8: act(x[M, K] . W^T + bias + residual), x86.

Vectors run over tokens, so that what a strip does not store costs nothing and no activations are packed. Tokens are rounded in
blocks of as many as a vector has bytes and transposed to a panel [input][token] of unsigned bytes, x + 128. The stored inputs of a
block of a strip are interleaved four at a time, once for all rows: 32-bit lanes hold four inputs of a token. Every row
multiplies them by its four weights in every lane and adds in int32, from -128 times the sum of its weights on (without VNNI two quads
are added in int16 first, small weights a whole block). A block is scaled and added in float32. With VNNI and 32 registers those sums
stay in registers over a run of blocks, which is decoded and interleaved first. At the end a tile is transposed back (token_results.py).

A unit is a strip and a block of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil, prod
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal
from sparsec.codegen.isa import dot
from sparsec.codegen.isa.epilogue import activation_cost
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels import token_weights
from sparsec.codegen.kernels.gemv_weights import Weights
from sparsec.codegen.kernels.token_panel import TokenPanel
from sparsec.codegen.kernels.token_results import TokenResults, tiles_stored
from sparsec.codegen.kernels.weights import epilogue, int8_operands, refused_epilogue
from sparsec.codegen.program import Arg, Signature
from sparsec.op_view import view
from sparsec.target import Target

# Fewer tokens than this share of their blocks leave the work to gemv.py (measured).
_LEAST_FILLED = 0.85
# Vectors of tokens that are multiplied together.
_VECTORS = 2
# Where float32 sums stay in registers: rows that are multiplied by inputs that have just been interleaved, and those that follow (24
# of 32 registers have both kinds of sums).
_FIRST_ROWS, _HELD_ROWS = 2, 5
# Rows whose sums stay in 16 registers where two quads are joined.
_JOINED_ROWS = 3
# Inputs of a run of blocks: interleaved they take a third of a level-1 cache.
_RUN = 256


def lower_token_strips(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::MatMul with int8 activations of many tokens and a weight of strips."""
    op = view(node)
    assert op.x is not None
    operands = int8_operands(op)
    if isinstance(operands, Refusal):
        return operands
    unpacked, x_group = operands
    if why := token_weights.refusal(unpacked, low.target, x_group):
        return Refusal(why)
    m = prod(low.shape(op.x)[:-1])
    tokens = 4 * low.target.lanes
    if m < _LEAST_FILLED * ceil(m / tokens) * tokens or m == 0:
        return Refusal(f"{m} tokens leave blocks of {tokens} half empty")
    if (refusal := refused_epilogue(op, low)) is not None:
        return refusal
    label = node.name or "weight"
    packed = token_weights.pack(unpacked, low.target, label)
    ins = [low.get(op.x), *(low.const(array, name) for name, array in packed.arrays)]
    rows = packed.params["tiles"] * packed.params["tile"]
    finish, added = epilogue(op, low, arrange=lambda bias: np.pad(bias, (0, rows - op.rows)))
    params = {"m": m, "w": packed.params, **finish}
    note = f"[{m}, {op.cols}] x [{op.cols}, {op.rows}] {op.scheme} x {op.activations} {op.activation}".strip()
    low.call(
        "token_strips", params, [*ins, *added], [low.new(op.output)], node=node.name or "", op="MatMul", note=note,
        cost=cost(params, packed.blocks),
    )  # fmt: skip
    return None


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: x, the weight's arrays, bias?, residual?; out: y; work: the panel of tokens, a block's inputs and weights, sums."""
    w, m, tokens = p["w"], p["m"], 4 * target.lanes
    inputs, run = token_weights.padded_inputs(w["k"]), _blocks_of_run(w, target)
    args = [Arg("x", "float32", m * w["k"], "in"), *token_weights.arguments(w, target)]
    if p["bias"]:
        args.append(Arg("bias", "float32", w["tiles"] * w["tile"], "in"))
    if p["residual"]:
        args.append(Arg("residual", "float32", m * w["rows"], "in"))
    args.append(Arg("y", "float32", m * w["rows"], "out"))
    args += [
        Arg("xq", "int8", tokens * inputs, "work"),
        Arg("panel", "uint8", (inputs + 1) * tokens, "work"),
        Arg("xscale", "float32", tokens, "work"),
        Arg("mixed", "uint8", run * w["block"] * tokens, "work"),
        Arg("decoded", "int32", run * w["block"] // 4 * w["tile"], "work"),
        Arg("origins", "int32", run * w["tile"] * (w["block"] // 8 if _joins_quads(w, target) else 1), "work"),
        Arg("factors", "float32", run * w["tile"], "work"),
        Arg("sums", "float32", w["tile"] * tokens, "work"),
        Arg("results", "float32", tiles_stored(w) * w["tile"] * tokens, "work"),
    ]
    return Signature(tuple(args), ceil(m / tokens) * w["tiles"], pieces=1)


def _joins_quads(w: Mapping[str, Any], target: Target) -> bool:
    """Whether two quads are summed in 16 bits. Four inputs times entries of a table fit (joined.py); so sums may wrap if they begin at
    -128 times the sum of their weights."""
    return not target.vnni and not w["narrow"]


def _holds_sums(w: Mapping[str, Any], target: Target) -> bool:
    """Whether float32 sums stay in registers over a run of blocks."""
    return target.vnni and target.vector_registers >= 32 and not w["narrow"]


def _blocks_of_run(w: Mapping[str, Any], target: Target) -> int:
    """Blocks that are decoded and interleaved before their products."""
    return max(1, _RUN // int(w["block"])) if _holds_sums(w, target) else 1


def cost(p: Mapping[str, Any], blocks: int) -> int:
    """`Signature.cost` for a weight of so many blocks."""
    w, m = p["w"], p["m"]
    return int(m * (blocks * w["block"] * w["tile"] // 2 + 8 * w["k"] + w["rows"] * (6 + activation_cost(p["act"]))))


def build(p: Mapping[str, Any], k: Any) -> None:
    """Write the kernel (see the module's docstring)."""
    _TokenStrips(p, k).write()


class _TokenStrips:
    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.p, self.w, self.k, self.T = p, p["w"], k, k.T
        self.dot, self.weights = dot.ByteDot(k), Weights(self.w, k, once=True)
        self.panel = TokenPanel(self.w, k)
        self.lanes: int = k.lanes
        self.tokens = 4 * k.lanes  # of a block: bytes of a vector
        self.tile: int = self.w["tile"]
        self.quads = self.w["block"] // 4
        self.holds, self.run = _holds_sums(self.w, k.target), _blocks_of_run(self.w, k.target)
        self.joins = _joins_quads(self.w, k.target)
        self.results = TokenResults(p, k, self.weights)

    def write(self) -> None:
        T, k, tiles = self.T, self.k, self.w["tiles"]
        with T.If(k.lo < k.hi), T.Then():
            last = bind(k, T.truncdiv(k.hi - 1, tiles))
            with T.serial(bind(k, T.truncdiv(k.lo, tiles)), last + 1) as block:
                first = bind(k, block * self.tokens)
                count = bind(k, T.min(T.int32(self.tokens), self.p["m"] - first))
                self.panel.write(first, count)
                lo, hi = bind(k, T.max(k.lo - block * tiles, 0)), bind(k, T.min(k.hi - block * tiles, tiles))
                with T.serial(lo, hi) as tile:
                    self._tile(tile)
                    place = bind(k, T.truncmod(tile, self.results.tiles))
                    self.results.turn(place)
                    done = bind(k, tile + 1)
                    with T.If(T.Or(place == self.results.tiles - 1, done >= hi)), T.Then():
                        self.results.store(bind(k, T.max(tile - place, lo)), done, first, count)

    # --- a strip ---

    def _tile(self, tile: Any) -> None:
        """`sums` of a tile."""
        T, k, n = self.T, self.k, self.lanes
        with T.serial(0, self.tile * 4) as i:
            k.store(k.arg("sums"), i * n, k.f32(0.0, n), n)
        self.weights.set_table(tile)
        begin = bind(k, k.load(k.arg("starts"), tile))
        blocks = bind(k, k.load(k.arg("starts"), tile + 1) - begin)
        with T.serial(0, T.truncdiv(blocks + (self.run - 1), self.run)) as run:
            first = bind(k, begin + run * self.run)
            count = bind(k, T.min(T.int32(self.run), blocks - run * self.run))
            with T.serial(0, count) as i:
                block = bind(k, first + i)
                self._decode(block, i)
                if self.holds:
                    self._first_products(block, i)
                else:
                    with T.serial(0, self._pairs_of_quads(block) * 2) as quad:
                        self._interleave(block, i, quad)
            with T.serial(0, 4 // _VECTORS) as part:
                self._rows(part * _VECTORS, first, count)

    def _rows(self, vector0: Any, first: Any, count: Any) -> None:
        """The products of a run of blocks for some vectors of tokens: all rows of the tile, some at a time."""
        T, k = self.T, self.k
        done, at_once = (_FIRST_ROWS, _HELD_ROWS) if self.holds else (0, self.lanes // 2)
        if self.joins and k.target.vector_registers <= 16:
            at_once = _JOINED_ROWS
        parts = ceil((self.tile - done) / at_once)
        fewer, more = divmod(self.tile - done, parts)
        for rows, row0, times in ((fewer + 1, done, more), (fewer, done + more * (fewer + 1), parts - more)):
            if times == 1:
                self._products(T.int32(row0), rows, vector0, first, count)
            elif times:
                with T.serial(0, times) as part:
                    self._products(bind(k, part * rows + row0), rows, vector0, first, count)

    def _pairs_of_quads(self, block: Any) -> Any:
        """How many pairs of quads a block stores. A number that the compiler knew would make it unroll them all, and run out of
        registers."""
        return self.T.Cast("int32", self.k.load(self.k.arg("steps"), block))

    def _decode(self, block: Any, local: Any) -> None:
        """`decoded` number `local` of a run: of every quad and row the four weights; `origins` and `factors` of its rows. Where quads
        are joined, `origins` has two 16-bit numbers for every pair of quads and row."""
        T, k, n = self.T, self.k, self.lanes
        reader = self.weights.reader(self.weights.code_offsets(block, T.int32(0)))
        to, row0 = bind(k, local * (self.quads * self.tile)), bind(k, local * self.tile)
        for v in range(self.tile // n):
            fours = []
            for quad in range(self.quads):
                fours.append(reader(quad, v))
                k.store(k.arg("decoded"), to + quad * self.tile + v * n, T.reinterpret(f"int32x{n}", fours[-1]), n)
            if self.joins:
                self._origins_of_pairs(local, v, fours)
            else:
                self._origins_of_block(block, row0 + v * n, fours)
            if self.w["scales"] == "group":
                scale = T.Cast(f"float32x{n}", k.load(k.arg("scales"), block * self.tile + v * n, n))
                k.store(k.arg("factors"), row0 + v * n, scale, n)

    def _origins_of_block(self, block: Any, at: Any, fours: list[Any]) -> None:
        """Where sums of a block begin, of a vector of rows with these weights (by quad)."""
        T, k, n, nb = self.T, self.k, self.lanes, self.dot.bytes
        # what follows the last pair of quads is not multiplied
        pairs = bind(k, self._pairs_of_quads(block))
        offsets = [T.Select(pairs > i, T.uint8(dot.X_OFFSET), T.uint8(0)) for i in range(self.quads // 2)]
        unsigned = [self._kept(k.splat(T.uint8(dot.X_OFFSET) if i == 0 else x, nb)) for i, x in enumerate(offsets)]
        total = k.local(n, "int32")
        k.store(total, 0, k.i32(0, n), n)
        for quad, four in enumerate(fours):
            k.store(total, 0, self.dot.dot(k.load(total, 0, n), unsigned[quad // 2], four), n)
        k.store(k.arg("origins"), at, k.i32(0, n) - k.load(total, 0, n), n)

    def _origins_of_pairs(self, local: Any, v: int, fours: list[Any]) -> None:
        """Where sums of each pair of quads begin, of vector `v` of rows with these weights (by quad)."""
        T, k, n = self.T, self.k, self.lanes
        offset = k.splat(T.uint8(dot.X_OFFSET), self.dot.bytes)
        for pair in range(self.quads // 2):
            both = self.dot.pairs(offset, fours[2 * pair]) + self.dot.pairs(offset, fours[2 * pair + 1])
            words = T.reinterpret(f"int32x{n}", k.splat(T.int16(0), 2 * n) - both)
            k.store(k.arg("origins"), self._origins(local, pair) + v * n, words, n)

    def _interleave(self, block: Any, local: Any, quad: Any) -> list[Any]:
        """A quad of `mixed` number `local` of a run: [quad][4 vectors], 32-bit lane i of vector q has token
        16 * (i // 4) + 4 * q + i % 4."""
        T, k, nb = self.T, self.k, self.dot.bytes
        orders = {}
        for size in (1, 2):  # bytes that stay together
            at = [(i // size // 2, i // size % 2, i % size) for i in range(16)]
            orders[size] = [
                [part * 16 + 8 * half + pair * size + byte + nb * second for part in range(nb // 16) for pair, second, byte in at]
                for half in range(2)
            ]  # fmt: skip
        to, places = bind(k, (local * self.quads + quad) * (4 * nb)), bind(k, block * self.w["block"] + quad * 4)
        x = []
        for i in range(4):
            at = bind(k, T.Cast("int32", k.load(k.arg("inputs"), places + i)) * self.tokens)
            x.append(self._kept(k.load(k.arg("panel"), at, nb)))
        pairs = [[self._kept(k.shuffle(*two, order)) for order in orders[1]] for two in (x[:2], x[2:])]
        fours = [self._kept(k.shuffle(a, b, order)) for a, b in zip(*pairs, strict=True) for order in orders[2]]
        for q, value in enumerate(fours):
            k.store(k.arg("mixed"), to + q * nb, value, nb)
        return fours

    def _kept(self, value: Any) -> Any:
        held = self.k.local(self.dot.bytes, "uint8")
        self.k.store(held, 0, self.T.reinterpret(f"uint8x{self.dot.bytes}", value), self.dot.bytes)
        return self.k.load(held, 0, self.dot.bytes)

    def _first_products(self, block: Any, local: Any) -> None:
        """sums += scale * the products of one block, for the first rows and all vectors of tokens, which are interleaved meanwhile."""
        sums = self.k.arg("sums")
        self._block(
            local, block, self.T.int32(0), _FIRST_ROWS, 4,
            lambda quad: self._interleave(block, local, quad), lambda slot: (sums, slot * self.lanes),
        )  # fmt: skip

    def _products(self, row0: Any, rows: int, vector0: Any, first: Any, count: Any) -> None:
        """sums += scale * the products of `count` blocks from `first` on, for some rows and vectors of tokens."""
        T, k, n, nb = self.T, self.k, self.lanes, self.dot.bytes
        slots = range(rows * _VECTORS)
        sums, total = k.arg("sums"), k.local(len(slots) * n)
        places = [bind(k, ((row0 + slot // _VECTORS) * 4 + vector0 + slot % _VECTORS) * n) for slot in slots]

        def block(local: Any, place: Callable[[int], tuple[Any, Any]]) -> None:
            x0 = bind(k, (local * (self.quads * 4) + vector0) * nb)

            def inputs(quad: Any) -> list[Any]:
                return [self._kept(k.load(k.arg("mixed"), x0 + (quad * 4 + v) * nb, nb)) for v in range(_VECTORS)]

            self._block(local, first + local, row0, rows, _VECTORS, inputs, place)

        if not self.holds:
            block(T.int32(0), lambda slot: (sums, places[slot]))
            return
        for slot in slots:
            k.store(total, slot * n, k.load(sums, places[slot], n), n)
        with T.serial(0, count) as i:
            block(i, lambda slot: (total, slot * n))
        for slot in slots:
            k.store(sums, places[slot], k.load(total, slot * n, n), n)

    def _block(
        self, local: Any, block: Any, row0: Any, rows: int, vectors: int, inputs: Callable[[Any], list[Any]],
        place: Callable[[int], tuple[Any, Any]],
    ) -> None:  # fmt: skip
        """The products of one block, number `local` of its run. inputs: the vectors of a quad; place: (buffer, index) of the sum
        of a row and a vector."""
        T, k, n, nb = self.T, self.k, self.lanes, self.dot.bytes
        slots = [(slot // vectors, slot) for slot in range(rows * vectors)]
        narrow, half = self.w["narrow"], nb // 2
        width = half if narrow else n
        of_row, weights0 = bind(k, local * self.tile + row0), bind(k, local * (self.quads * self.tile) + row0)
        acc = k.local(len(slots) * width, "int16" if narrow else "int32")
        for row, slot in slots:
            nothing = T.int16(0) if narrow else T.int32(0)
            start = nothing if narrow or self.joins else k.load(k.arg("origins"), of_row + row)
            k.store(acc, slot * width, k.splat(start, width), width)

        def one(quad: Any) -> None:
            x = inputs(quad)
            for row in range(rows):
                weights = self._kept(self.dot.broadcast(k.load(k.arg("decoded"), weights0 + quad * self.tile + row)))
                for v in range(vectors):
                    slot = (row * vectors + v) * width
                    total = k.load(acc, slot, width)
                    total = total + self.dot.pairs(x[v], weights) if narrow else self.dot.dot(total, x[v], weights)
                    k.store(acc, slot, total, width)

        with T.serial(0, self._pairs_of_quads(block)) as two:
            if self.joins:
                quads = [bind(k, two * 2 + i) for i in range(2)]
                pair = [(inputs(quad), weights0 + quad * self.tile) for quad in quads]
                self._joined(pair, bind(k, self._origins(local, two) + row0), rows, vectors, acc)
            else:
                for i in range(2):
                    one(bind(k, two * 2 + i))
        for row, slot in slots:
            whole = k.load(acc, slot * width, width)
            if narrow:
                whole = k.splat(k.load(k.arg("origins"), of_row + row), n) + self.dot.widen(whole)
            value = T.Cast(f"float32x{n}", whole)
            if self.w["scales"] == "group":
                value = value * k.splat(k.load(k.arg("factors"), of_row + row), n)
            buffer, at = place(slot)
            k.store(buffer, at, k.load(buffer, at, n) + value, n)

    def _origins(self, local: Any, pair: Any) -> Any:
        """Where `origins` has a pair of quads."""
        return (local * (self.quads // 2) + pair) * self.tile

    def _joined(self, pair: list[tuple[list[Any], Any]], origins: Any, rows: int, vectors: int, acc: Any) -> None:
        """acc += the products of a pair of quads: (vectors of inputs, where the weights begin) of each."""
        T, k, n = self.T, self.k, self.lanes
        for row in range(rows):
            begin = T.reinterpret(f"int16x{2 * n}", k.splat(k.load(k.arg("origins"), origins + row), n))
            weights = [self._kept(self.dot.broadcast(k.load(k.arg("decoded"), at + row))) for _, at in pair]
            for v in range(vectors):
                both = begin
                for (x, _), four in zip(pair, weights, strict=True):
                    both = both + self.dot.pairs(x[v], four)
                slot = (row * vectors + v) * n
                k.store(acc, slot, k.load(acc, slot, n) + self.dot.widen(both), n)
