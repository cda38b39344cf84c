"""Products of many rows of activations and strips of a sparse weight in int8: act(x[M, K] . W^T + bias + residual), x86.

Vectors run over tokens, so that what a strip does not store costs nothing and no activations are packed. Tokens are rounded in
blocks of as many as a vector has bytes and transposed to a panel [input][token] of unsigned bytes, x + 128. The stored inputs of a
block of a strip are interleaved four at a time, once for all rows: 32-bit lanes hold four inputs of a token. Every row
multiplies them by its four weights in every lane and adds in int32, from -128 times the sum of its weights on (small weights: in int16,
widened block by block). A block is scaled and added in float32; at the end a tile is transposed back.

A unit is a strip and a block of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from math import ceil, prod
from operator import mul
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal
from sparsec.codegen.isa import dot
from sparsec.codegen.isa.epilogue import activation_cost, apply_activation
from sparsec.codegen.isa.pieces import pieces
from sparsec.codegen.isa.transpose import transpose
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels import token_weights
from sparsec.codegen.kernels.gemv_weights import Weights
from sparsec.codegen.kernels.quantise import inverse_scale, largest_of_run, partial_vector
from sparsec.codegen.kernels.weights import epilogue, int8_operands, refused_epilogue
from sparsec.codegen.program import Arg, Signature
from sparsec.int8 import ACTIVATION_MAX
from sparsec.op_view import view
from sparsec.target import Target

# Fewer tokens than this share of their blocks leave the work to gemv.py (measured).
_LEAST_FILLED = 0.85
# Rows of x that are transposed together.
_ROWS = 16
# Vectors of tokens that are multiplied together.
_VECTORS = 2


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
    inputs = token_weights.padded_inputs(w["k"])
    args = [Arg("x", "float32", m * w["k"], "in"), *token_weights.arguments(w, target)]
    if p["bias"]:
        args.append(Arg("bias", "float32", w["tiles"] * w["tile"], "in"))
    if p["residual"]:
        args.append(Arg("residual", "float32", m * w["rows"], "in"))
    args.append(Arg("y", "float32", m * w["rows"], "out"))
    args += [
        Arg("xq", "int8", _ROWS * inputs, "work"),
        Arg("panel", "uint8", (inputs + 1) * tokens, "work"),
        Arg("xscale", "float32", tokens, "work"),
        Arg("mixed", "uint8", w["block"] * tokens, "work"),
        Arg("decoded", "int32", w["block"] // 4 * w["tile"], "work"),
        Arg("origins", "int32", w["tile"], "work"),
        Arg("factors", "float32", w["tile"], "work"),
        Arg("sums", "float32", w["tile"] * tokens, "work"),
        Arg("results", "float32", w["tile"] * tokens, "work"),
    ]
    return Signature(tuple(args), ceil(m / tokens) * w["tiles"])


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
        self.dot, self.weights = dot.ByteDot(k), Weights(self.w, k, once=False)
        self.lanes: int = k.lanes
        self.tokens = 4 * k.lanes  # of a block: bytes of a vector
        self.width = token_weights.padded_inputs(self.w["k"])
        self.rows = k.lanes // 2  # that are multiplied together
        self.tile: int = self.w["tile"]
        self.quads = self.w["block"] // 4

    def write(self) -> None:
        T, k, tiles = self.T, self.k, self.w["tiles"]
        with T.If(k.lo < k.hi), T.Then():
            last = bind(k, T.truncdiv(k.hi - 1, tiles))
            with T.serial(bind(k, T.truncdiv(k.lo, tiles)), last + 1) as block:
                first = bind(k, block * self.tokens)
                count = bind(k, T.min(T.int32(self.tokens), self.p["m"] - first))
                self._panel(first, count)
                lo, hi = T.max(k.lo - block * tiles, 0), T.min(k.hi - block * tiles, tiles)
                with T.serial(bind(k, lo), bind(k, hi)) as tile:
                    self._tile(tile, first, count)

    # --- activations ---

    def _panel(self, first: Any, count: Any) -> None:
        """`panel` and `xscale` of `count` tokens from `first` on; what is left of the block holds any numbers."""
        T, k, panel = self.T, self.k, self.k.arg("panel")
        k.store(panel, self.width * self.tokens, k.splat(T.uint8(dot.X_OFFSET), self.tokens), self.tokens)
        with T.serial(0, T.truncdiv(count + (_ROWS - 1), _ROWS)) as some:
            row0 = bind(k, some * _ROWS)
            with T.serial(0, T.min(T.int32(_ROWS), count - row0)) as row:
                self._quantise(first + row0 + row, row, row0 + row)
            with T.serial(0, self.width // 16) as part:
                rows = [
                    T.reinterpret("uint8x16", k.load(k.arg("xq"), part * 16 + row * self.width, 16))
                    for row in range(_ROWS)
                ]
                for column, value in enumerate(self._interleaved(rows)):
                    k.store(panel, (part * 16 + column) * self.tokens + row0, value, 16)

    def _interleaved(self, rows: list[Any]) -> list[Any]:
        """Columns of 16 x 16 bytes: four rounds of interleaving row i with row i + 8."""
        k = self.k
        low, high = ([at // 2 + 16 * (at % 2) for at in range(first, first + 16)] for first in (0, 16))
        for _ in range(4):
            mixed = []
            for a, b in zip(rows[:8], rows[8:], strict=True):
                mixed += [bind(k, k.shuffle(a, b, low)), bind(k, k.shuffle(a, b, high))]
            rows = mixed
        return rows

    def _quantise(self, row: Any, local: Any, token: Any) -> None:
        """Row `row` of x to row `local` of xq, as unsigned bytes."""
        T, k, n, size = self.T, self.k, self.lanes, self.w["k"]
        x, start, to = k.arg("x"), bind(k, row * size), bind(k, local * self.width)
        largest = bind(k, largest_of_run(k, x, start, size))
        k.store(k.arg("xscale"), token, largest * T.float32(1.0 / ACTIVATION_MAX))
        inverse = bind(k, inverse_scale(k, largest))

        def one(value: Any, at: Any) -> None:
            whole = T.Cast(f"int32x{n}", T.nearbyint(value * k.splat(inverse, n))) + k.i32(dot.X_OFFSET, n)
            k.store(k.arg("xq"), to + at, T.Cast(f"int8x{n}", whole), n)

        if size >= n:
            with T.serial(0, size // n) as i:
                one(k.load(x, start + i * n, n), i * n)
        if size % n:
            done = size // n * n
            one(partial_vector(k, x, start + done, size % n), done)

    # --- a strip ---

    def _tile(self, tile: Any, first: Any, count: Any) -> None:
        T, k, n = self.T, self.k, self.lanes
        with T.serial(0, self.tile * 4) as i:
            k.store(k.arg("sums"), i * n, k.f32(0.0, n), n)
        self.weights.set_table(tile)
        begin = bind(k, k.load(k.arg("starts"), tile))
        blocks = bind(k, k.load(k.arg("starts"), tile + 1) - begin)
        with T.serial(0, blocks) as i:
            block = bind(k, begin + i)
            self._decode(block)
            self._interleave(block)
            each = 4 // _VECTORS
            with T.serial(0, self.tile // self.rows * each) as part:
                row0 = bind(k, T.truncdiv(part, each) * self.rows)
                self._products(row0, bind(k, T.truncmod(part, each) * _VECTORS))
        self._finish(tile, first, count)

    def _decode(self, block: Any) -> None:
        """`decoded` of a block: of every quad and row the four weights; `origins` and `factors` of its rows."""
        T, k, n, nb = self.T, self.k, self.lanes, self.dot.bytes
        reader = self.weights.reader(self.weights.code_offsets(block, T.int32(0)))
        unsigned = k.splat(T.uint8(dot.X_OFFSET), nb)
        total = k.local(n, "int32")
        for v in range(self.tile // n):
            k.store(total, 0, k.i32(0, n), n)
            for quad in range(self.quads):
                four = reader(quad, v)
                k.store(k.arg("decoded"), quad * self.tile + v * n, T.reinterpret(f"int32x{n}", four), n)
                k.store(total, 0, self.dot.dot(k.load(total, 0, n), unsigned, four), n)
            k.store(k.arg("origins"), v * n, k.i32(0, n) - k.load(total, 0, n), n)
            if self.w["scales"] == "group":
                scale = T.Cast(f"float32x{n}", k.load(k.arg("scales"), block * self.tile + v * n, n))
                k.store(k.arg("factors"), v * n, scale, n)

    def _interleave(self, block: Any) -> None:
        """`mixed` of a block: [quad][4 vectors], 32-bit lane i of vector q has token 16 * (i // 4) + 4 * q + i % 4."""
        T, k, nb = self.T, self.k, self.dot.bytes
        orders = {}
        for size in (1, 2):  # bytes that stay together
            at = [(i // size // 2, i // size % 2, i % size) for i in range(16)]
            orders[size] = [
                [part * 16 + 8 * half + pair * size + byte + nb * second for part in range(nb // 16) for pair, second, byte in at]
                for half in range(2)
            ]  # fmt: skip
        with T.serial(0, self.quads) as quad:
            places = bind(k, block * self.w["block"] + quad * 4)
            x = []
            for i in range(4):
                at = bind(k, T.Cast("int32", k.load(k.arg("inputs"), places + i)) * self.tokens)
                x.append(self._kept(k.load(k.arg("panel"), at, nb)))
            pairs = [[self._kept(k.shuffle(*two, order)) for order in orders[1]] for two in (x[:2], x[2:])]
            fours = [k.shuffle(a, b, order) for a, b in zip(*pairs, strict=True) for order in orders[2]]
            for q, value in enumerate(fours):
                k.store(k.arg("mixed"), (quad * 4 + q) * nb, value, nb)

    def _kept(self, value: Any) -> Any:
        held = self.k.local(self.dot.bytes, "uint8")
        self.k.store(held, 0, self.T.reinterpret(f"uint8x{self.dot.bytes}", value), self.dot.bytes)
        return self.k.load(held, 0, self.dot.bytes)

    def _products(self, row0: Any, vector0: Any) -> None:
        """sums += scale * the products of a block, for some rows and vectors of tokens."""
        T, k, n, nb = self.T, self.k, self.lanes, self.dot.bytes
        slots = [(row, v, row * _VECTORS + v) for row in range(self.rows) for v in range(_VECTORS)]
        narrow, half = self.w["narrow"], nb // 2
        width = half if narrow else n
        acc = k.local(len(slots) * width, "int16" if narrow else "int32")
        for row, _, slot in slots:
            start = T.int16(0) if narrow else k.load(k.arg("origins"), row0 + row)
            k.store(acc, slot * width, k.splat(start, width), width)

        def one(quad: Any) -> None:
            x = [self._kept(k.load(k.arg("mixed"), (quad * 4 + vector0 + v) * nb, nb)) for v in range(_VECTORS)]
            for row in range(self.rows):
                weights = self._kept(self.dot.broadcast(k.load(k.arg("decoded"), quad * self.tile + row0 + row)))
                for v in range(_VECTORS):
                    slot = (row * _VECTORS + v) * width
                    total = k.load(acc, slot, width)
                    total = total + self.dot.pairs(x[v], weights) if narrow else self.dot.dot(total, x[v], weights)
                    k.store(acc, slot, total, width)

        # where the compiler knew their number it would unroll them all and run out of registers
        with T.serial(0, k.load(k.arg("steps"), 0)) as two:
            for i in range(2):
                one(bind(k, two * 2 + i))
        for row, v, slot in slots:
            whole = k.load(acc, slot * width, width)
            if narrow:
                whole = k.splat(k.load(k.arg("origins"), row0 + row), n) + self.dot.widen(whole)
            value = T.Cast(f"float32x{n}", whole)
            if self.w["scales"] == "group":
                value = value * k.splat(k.load(k.arg("factors"), row0 + row), n)
            at = bind(k, ((row0 + row) * 4 + vector0 + v) * n)
            k.store(k.arg("sums"), at, k.load(k.arg("sums"), at, n) + value, n)

    def _finish(self, tile: Any, first: Any, count: Any) -> None:
        """The sums of a tile, by token; then scales, bias, residual, activation, and the stores."""
        T, k, p, w, n = self.T, self.k, self.p, self.w, self.lanes
        results = k.arg("results")
        for v in range(self.tile // n):
            with T.serial(0, 4) as q:
                rows = [self._row(((v * n + row) * 4 + q) * n) for row in range(n)]
                for lane, value in enumerate(transpose(k, rows)):
                    token = q * 4 + (lane // 4 * 16 + lane % 4)
                    k.store(results, token * self.tile + v * n, value, n)
        common = [self.weights.table_scale]
        if w["scales"] == "tensor":
            common.append(k.load(k.arg("scales"), 0))
        constant = bind(k, reduce(mul, common))

        def store(columns: int) -> None:
            with T.serial(0, count) as token:
                factor = bind(k, constant * k.load(k.arg("xscale"), token))
                for v in range(ceil(columns / n)):
                    for offset, width in pieces(min(columns - v * n, n), n):
                        at = v * n + offset
                        value = k.load(results, token * self.tile + at, width)
                        if w["scales"] == "channel":
                            value = value * k.load(k.arg("scales"), tile * self.tile + at, width)
                        value = value * k.splat(factor, width)
                        if p["bias"]:
                            value = value + k.load(k.arg("bias"), tile * self.tile + at, width)
                        to = bind(k, (first + token) * w["rows"] + tile * self.tile + at)
                        if p["residual"]:
                            value = value + k.load(k.arg("residual"), to, width)
                        k.store(k.arg("y"), to, apply_activation(k, p["act"], p["act_params"], value, width), width)

        last = w["rows"] - (w["tiles"] - 1) * self.tile
        if last == self.tile or w["tiles"] == 1:
            store(last)
            return
        with T.If(tile < w["tiles"] - 1):
            with T.Then():
                store(self.tile)
            with T.Else():
                store(last)

    def _row(self, at: Any) -> Any:
        held = self.k.local(self.lanes)
        self.k.store(held, 0, self.k.load(self.k.arg("sums"), at, self.lanes), self.lanes)
        return self.k.load(held, 0, self.lanes)
