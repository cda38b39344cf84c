"""One row of int8 activations times codes of one or two bits: act(x[1, K] . W^T + bias + residual), without decoding W.

A level is `base + first * b1 + second * b0` (bit_weights.py), so an output is made of sums of the inputs whose bit is set. Four inputs
have 16 such sums: a table, made once for all outputs (bit_tables.py), where half a byte of an output's bits finds the share of
the four. A byte shuffle looks up as many outputs as a vector has bytes (T-MAC: Wei et al., "CPU renaissance via table lookup for
low-bit LLM deployment on edge", 2024; their tables are rounded, these are exact: sums of four rounded inputs mostly fit a byte).

Bytes are summed in 16-bit words: as they are, modulo 2**16, and those in odd places alone, which says what is left for the even
ones. At the end of a block of inputs (a group of scales, or as many as 16 bits can sum) both sums are multiplied by `first` and
`second` and added up in 32 bits; where one scale holds for the whole row they stay whole numbers until its end. So results are
those of gemv.py.

Units are tiles of outputs.
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
from sparsec.codegen.isa.memory import prefetch_stream
from sparsec.codegen.isa.pieces import pieces
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels import bit_tables, bit_weights
from sparsec.codegen.kernels.bit_tables import ENTRIES
from sparsec.codegen.kernels.last_tile import with_size
from sparsec.codegen.kernels.weights import epilogue, int8_operands, refused_epilogue
from sparsec.codegen.program import Arg, Signature
from sparsec.op_view import view
from sparsec.target import Target

# Bytes of codes in one unrolled step.
_STEP = 8
_CACHE_LINE = 64


def lower_bit_gemv(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::MatMul of one row, int8 activations, with codes of one or two bits."""
    op = view(node)
    operands = int8_operands(op)
    if isinstance(operands, Refusal):
        return operands
    weight, x_group = operands
    assert op.x is not None
    if low.dtype(op.x) != "float32" or prod(low.shape(op.x)[:-1]) != 1:
        return Refusal("not one row of float32")
    if why := bit_weights.refused(weight, low.target, x_group):
        return Refusal(why)
    if (refusal := refused_epilogue(op, low)) is not None:
        return refusal
    params, arrays = bit_weights.pack(weight, low.target, x_group)
    label = node.name or "weight"
    rows = ceil(op.rows / params["tile"]) * params["tile"]
    finish, added = epilogue(op, low, arrange=lambda bias: np.pad(bias, (0, rows - op.rows)))
    ins = [low.get(op.x), *(low.const(array, f"{label}.{name}") for name, array in arrays), *added]
    note = f"[1, {op.cols}] x [{op.cols}, {op.rows}] {op.scheme} x {op.activations} {op.activation}".strip()
    low.call("bit_gemv", params | finish, ins, [low.new(op.output)], node=node.name or "", op="MatMul", note=note)
    return None


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: x [K], codes, levels, level_scale, scales?, bias? [padded N], residual? [N]; out: y [N]; work: inputs and tables."""
    rows = ceil(p["rows"] / p["tile"]) * p["tile"]
    args = [Arg("x", "float32", p["k"], "in"), *bit_weights.arguments(p)]
    if p["bias"]:
        args.append(Arg("bias", "float32", rows, "in"))
    if p["residual"]:
        args.append(Arg("residual", "float32", p["rows"], "in"))
    args.append(Arg("y", "float32", p["rows"], "out"))
    args += bit_tables.work_arguments(p)
    args.append(Arg("total", "float32" if p["group"] else "int32", p["tile"], "work"))
    cost = p["k"] * rows * p["bits"] // 8 + p["rows"] * (4 + activation_cost(p["act"]))
    return Signature(tuple(args), units=rows // p["tile"], cost=cost, pieces=1)


def build(p: Mapping[str, Any], k: Any) -> None:
    """Write the kernel (see the module's docstring)."""
    _BitGemv(p, k).write()


class _BitGemv:
    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.p, self.k, self.T = p, k, k.T
        self.dot, self.tables = dot.ByteDot(k), bit_tables.Tables(p, k)
        self.lanes: int = k.lanes
        self.bytes: int = self.dot.bytes
        self.words = self.bytes // 2
        self.vectors: int = p["tile"] // self.bytes
        self.sums = 1 if p["one_sum"] else 2
        self.steps = p["block"] * p["bits"] // 8  # bytes of a row's codes in a block
        self.scaled = bool(p["group"])  # block by block

    def write(self) -> None:
        T, k = self.T, self.k
        with T.If(k.lo < k.hi), T.Then():
            self.tables.write()
            times = k.load(k.arg("levels"), 2)
            self.times = bind(k, T.reinterpret(f"int16x{self.words}", k.splat(times, self.lanes)))
            with T.serial(k.lo, k.hi) as tile:
                self._tile(tile)

    def _tile(self, tile: Any) -> None:
        T, k, p, n = self.T, self.k, self.p, self.lanes
        total = k.arg("total")
        for at in range(0, p["tile"], n):
            k.store(total, at, k.f32(0.0, n) if self.scaled else k.i32(0, n), n)
        codes = bind(k, tile * (bit_weights.width(p) * p["bits"] // 8 * p["tile"]))
        with T.serial(0, bit_weights.spans(p)) as block:
            sums = k.local(2 * self.sums * self.vectors * self.words, "uint16")
            from_ = bind(k, codes + block * (self.steps * p["tile"]))
            self._run(from_, bind(k, block * (self.steps * self.tables.of_byte)), sums)
            with T.serial(k.load(k.arg("firsts"), block), k.load(k.arg("firsts"), block + 1)) as again:
                byte = k.load(k.arg("again"), again)
                self._bytes(bind(k, codes + byte * p["tile"]), self.tables.again(again), 1, sums)
            begin, x_scale = k.load(k.arg("begins"), block), None
            if p["x_group"]:
                x_scale = bind(k, k.load(k.arg("xscale"), block))
                begin = T.Cast("float32", begin) * x_scale
            begin = bind(k, begin)
            for v in range(self.vectors):
                self._flush(tile, block, v, sums, begin, x_scale, total)
        self._finish(tile, total)

    # --- a block of inputs ---

    def _run(self, codes: Any, tables: Any, sums: Any) -> None:
        """sums = what the codes of a block find in its tables."""
        T, k = self.T, self.k
        whole, rest = divmod(self.steps, _STEP)
        begin = self.steps <= _STEP
        if not begin:
            for at in range(0, 2 * self.sums * self.vectors * self.words, self.words):
                k.store(sums, at, k.splat(T.uint16(0), self.words), self.words)

        def step(number: Any, count: int) -> None:
            first = bind(k, number * _STEP)
            from_, tables_ = codes + first * self.p["tile"], tables + first * self.tables.of_byte
            self._bytes(bind(k, from_), bind(k, tables_), count, sums, begin=begin)

        if whole > 1:
            with T.serial(0, whole) as i:
                step(i, _STEP)
        elif whole:
            step(T.int32(0), _STEP)
        if rest:
            step(T.int32(whole), rest)

    def _bytes(self, codes: Any, tables: Any, count: int, sums: Any, *, begin: bool = False) -> None:
        """Add what `count` bytes of every row's codes find in the tables that begin there; begin: to nothing."""
        T, k, p, nb = self.T, self.k, self.p, self.bytes
        for i in range(count):
            held = [self._table(tables + i * self.tables.of_byte + at) for at in range(0, self.tables.of_byte, ENTRIES)]
            for v in range(self.vectors):
                at = i * p["tile"] + v * nb
                packed = self._held(k.load(k.arg("codes"), codes + at, nb), "uint8", nb)
                if count > 1 and at % _CACHE_LINE == 0:
                    prefetch_stream(k, k.arg("codes"), codes + at, 1)
                for half in range(2):
                    found = self.dot.lookup(held[half % len(held)], self.dot.field(packed, 4 * half, 4))
                    words = self._held(T.reinterpret(f"uint16x{self.words}", found), "uint16", self.words)
                    for part, value in enumerate((words, words >> k.splat(T.uint16(8), self.words))):
                        slot = self._slot(v, half % self.sums, part)
                        if not (begin and i == 0 and half < self.sums):
                            value = k.load(sums, slot, self.words) + value
                        k.store(sums, slot, value, self.words)

    def _slot(self, vector: int, number: int, part: int) -> int:
        """Where the sums of a vector lie: `number` 1 those of bits b0 where they are apart; part 1: those of odd bytes alone."""
        slot: int = ((vector * self.sums + number) * 2 + part) * self.words
        return slot

    def _table(self, at: Any) -> Any:
        """A table in every 128 bits of a vector."""
        k, nb = self.k, self.bytes
        entries = k.load(k.arg("tables"), at, ENTRIES)
        return self._held(
            self.T.Shuffle([entries] * (nb // ENTRIES), [self.T.int32(lane) for lane in range(nb)]), "uint8", nb
        )

    def _held(self, value: Any, dtype: str, lanes: int) -> Any:
        held = self.k.local(lanes, dtype)
        self.k.store(held, 0, value, lanes)
        return self.k.load(held, 0, lanes)

    def _flush(self, tile: Any, block: Any, vector: int, sums: Any, begin: Any, x_scale: Any, total: Any) -> None:
        """total += the sums of a vector and what they lack, `begin`, which is scaled as `x_scale` says if there is one; both
        scaled where scales are those of blocks."""
        T, k, p, n, words = self.T, self.k, self.p, self.lanes, self.words
        found = []
        for number in range(self.sums):
            both, odd = (k.load(sums, self._slot(vector, number, part), words) for part in range(2))
            even = self._held(both - (odd << k.splat(T.uint16(8), words)), "uint16", words)
            found.append((even, odd))
        for i in range(4):
            side, half = divmod(i, 2)
            other = found[1][side] if self.sums == 2 else k.splat(T.uint16(0), words)
            order = [part * 8 + half * 4 + j + of for part in range(words // 8) for j in range(4) for of in (0, words)]
            pairs = T.reinterpret(f"int16x{words}", k.shuffle(found[0][side], other, order))
            whole, at = self.dot.multiply_add(pairs, self.times), vector * self.bytes + i * n
            if not self.scaled:
                k.store(total, at, k.load(total, at, n) + whole + k.splat(begin, n), n)
                continue
            if x_scale is None:
                value = T.Cast(f"float32x{n}", whole + k.splat(begin, n))
            else:
                value = self._fma(T.Cast(f"float32x{n}", whole), k.splat(x_scale, n), k.splat(begin, n))
            if p["scales"] == "group":
                stored = k.load(k.arg("scales"), (tile * bit_weights.spans(p) + block) * p["tile"] + at, n)
                value = self._fma(value, T.Cast(f"float32x{n}", stored), k.load(total, at, n))
            else:
                value = value + k.load(total, at, n)
            k.store(total, at, value, n)

    def _fma(self, a: Any, b: Any, c: Any) -> Any:
        return self.T.call_llvm_pure_intrin(f"float32x{self.lanes}", "llvm.fma", a, b, c)

    # --- results ---

    def _finish(self, tile: Any, total: Any) -> None:
        """Scales of whole rows, bias, residual, activation, and the stores."""
        T, k, p = self.T, self.k, self.p
        common = [k.load(k.arg("level_scale"), 0)]
        if not p["x_group"]:
            common.append(k.load(k.arg("xscale"), 0))
        if p["scales"] == "tensor":
            common.append(k.load(k.arg("scales"), 0))
        factor = bind(k, reduce(mul, common))

        def store(columns: int) -> None:
            for at, width in pieces(columns, self.lanes):
                value = k.load(total, at, width)
                value = (
                    value if self.scaled else T.Cast(f"float32x{width}" if width > 1 else "float32", value)
                ) * k.splat(factor, width)
                if p["scales"] == "channel":
                    value = value * k.load(k.arg("scales"), tile * p["tile"] + at, width)
                if p["bias"]:
                    value = value + k.load(k.arg("bias"), tile * p["tile"] + at, width)
                to = tile * p["tile"] + at
                if p["residual"]:
                    value = value + k.load(k.arg("residual"), to, width)
                k.store(k.arg("y"), to, apply_activation(k, p["act"], p["act_params"], value, width), width)

        with_size(k, tile, p["rows"], p["tile"], store)
