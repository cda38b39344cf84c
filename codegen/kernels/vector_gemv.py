"""One row of activations (or a few) times a vector codebook: act(x[M, K] . W^T + bias + residual), without decoding W.

Four inputs and the codebook make a table of products: the share of these inputs in an output whose code is c. It is made once for
many outputs, whose codes then look their shares up: one addition for four weights.

* int8 activations, AVX-512: products of rounded numbers are whole and fit 16 bits (4 * 127 * TABLE_MAX), so a table of 256 is 8
  registers. Sums are kept modulo 2**16 in `low`, and in `high` the sums of the products' upper bytes, which say which multiple of
  2**16 is meant as long as at most 256 were added. So they are exact, as those of gemv.py are.
* int8 activations elsewhere: byte by byte (vector_bytes.py), in memory (vector_memory.py) or in both ways (vector_mixed.py);
  where a code is two of four bits, each for itself (vector_nibbles.py).
* float32 activations: the table holds float32, in registers on AVX-512, elsewhere in memory.

Codebooks whose second half is the negative of the first (what the encoder makes where that costs no accuracy) need only half a
table in registers. Codes lie in words that a lane of the looked-up numbers holds: [word][output], the codes of a word along the
inputs. Units are tiles of outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, prod
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal
from sparsec.codegen.isa import byte_table
from sparsec.codegen.isa.epilogue import activation_cost
from sparsec.codegen.isa.memory import prefetch
from sparsec.codegen.isa.vecmath import bind, fma
from sparsec.codegen.isa.word_table import WordTable
from sparsec.codegen.kernels import gemv_inputs, vector_mixed, vector_nibbles
from sparsec.codegen.kernels.vector_bytes import FromBytes
from sparsec.codegen.kernels.vector_memory import FromMemory
from sparsec.codegen.kernels.vector_mixed import Mixed
from sparsec.codegen.kernels.vector_nibbles import Nibbles
from sparsec.codegen.kernels.vector_sums import VectorSums, WholeSums
from sparsec.codegen.kernels.vector_weights import (
    inputs_params,
    pack,
    padded_rows,
    refused,
    tiles_at_once,
)
from sparsec.codegen.kernels.weights import epilogue, refused_epilogue
from sparsec.codegen.program import Arg, Signature
from sparsec.formats.encoded import EncodedWeight, unpack
from sparsec.int8 import activation_group
from sparsec.op_view import view
from sparsec.target import Target

Array = np.ndarray[Any, Any]


def lower_vector_gemv(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::MatMul of one row, or a few, with a codebook of vectors."""
    op = view(node)
    weight = op.weight()
    if not isinstance(weight, EncodedWeight):
        return Refusal("the weight is not coded")
    assert op.x is not None
    if (refusal := refused_epilogue(op, low)) is not None:
        return refusal
    m = prod(low.shape(op.x)[:-1])
    if low.dtype(op.x) != "float32" or not m:
        return Refusal("no rows of float32")
    unpacked = unpack(weight)
    x_group = activation_group(op.activations, op.cols) if op.rounds else 0
    if why := refused(unpacked, low.target, x_group, whole=op.rounds, m=m):
        return Refusal(why)
    params, arrays = pack(unpacked, low.target, x_group, whole=op.rounds, m=m)
    label = node.name or "weight"
    finish, added = epilogue(op, low)
    ins = [low.get(op.x), *(low.const(array, f"{label}.{name}") for name, array in arrays), *added]
    note = f"[{m}, {op.cols}] x [{op.cols}, {op.rows}] {op.scheme} x {op.activations or 'float32'} {op.activation}"
    low.call(
        "vector_gemv", params | finish, ins, [low.new(op.output)], node=node.name or "", op="MatMul", note=note.strip()
    )
    return None


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: x [M, K], codes, book, book_scale?, scales?, bias? [N], residual? [M, N]; out: y [M, N]; work: inputs and sums."""
    rows = padded_rows(p)
    units = ceil(p["k"] / 32) * 8
    whole, form = p["whole"], p["form"]
    dtype = "uint32" if not whole else "uint16" if form == "registers" else "uint8"
    entries = 2 * 16 if form == "nibbles" else 256
    args = [
        Arg("x", "float32", p["m"] * p["k"], "in"),
        Arg("codes", dtype, rows * units // {"uint8": 1, "uint16": 2, "uint32": 4}[dtype], "in"),
        Arg("book", "int16" if whole else "float32", 4 * entries, "in"),
    ]
    if whole:
        args.append(Arg("book_scale", "float32", 1, "in"))
    if form == "mixed":
        args.append(Arg("starts", "uint8", vector_mixed.starts(p), "in"))
    if p["scales"] != "none":
        count = {"tensor": 1, "channel": rows, "group": rows * ceil(p["k"] / max(1, p["group"]))}[p["scales"]]
        args.append(Arg("scales", "float16" if p["scales"] == "group" else "float32", count, "in"))
    if p["bias"]:
        args.append(Arg("bias", "float32", p["rows"], "in"))
    if p["residual"]:
        args.append(Arg("residual", "float32", p["m"] * p["rows"], "in"))
    args.append(Arg("y", "float32", p["m"] * p["rows"], "out"))
    most = p["tile"] * tiles_at_once(p)
    if whole:
        args += gemv_inputs.work_arguments(inputs_params(p), target)
    if form == "mixed":
        args += vector_mixed.work_arguments(p)
    elif form in ("bytes", "nibbles"):
        size = vector_nibbles.TABLES if form == "nibbles" else 2 * byte_table.ENTRIES
        args.append(Arg("products", "int8", size, "work"))
    elif form == "memory":
        args.append(Arg("products", "int32" if whole else "float32", (p["units"] or 4) * 256, "work"))
        if whole:
            args.append(Arg("sums", "int32", most, "work"))
    if whole and form in ("registers", "bytes", "nibbles"):
        args += [Arg(name, "int16", most, "work") for name in ("low", "high")]
    args.append(Arg("total", "float32", most, "work"))
    if p["scales"] == "group" and not whole:
        args.append(Arg("part", "float32", most, "work"))
    cost = p["m"] * (p["k"] * rows // 2 + p["rows"] * (4 + activation_cost(p["act"])))
    return Signature(tuple(args), units=rows // p["tile"], cost=cost, pieces=1)


def build(p: Mapping[str, Any], k: Any) -> None:
    """Write the kernel (see the module's docstring)."""
    kinds = {"registers": _Whole, "bytes": FromBytes, "memory": FromMemory, "mixed": Mixed, "nibbles": Nibbles}
    (kinds[p["form"]] if p["whole"] else _Float)(p, k).write()


class _Whole(WholeSums):
    lanes, units = 32, 2

    def _span(self, span: Any, words: Any) -> None:
        T, k, n = self.T, self.k, self.lanes
        zero = k.splat(T.int16(0), n)
        self._clear("low", zero, n)
        self._clear("high", zero, n)
        with T.serial(0, words) as i:
            word = bind(k, span * self.span + i)
            tables = [self._table(word * 8 + 4 * unit) for unit in range(2)]
            self._each(n, lambda at: self._add(word, at, tables))
        self._each(16, lambda at: self._flush(span, at, self._sums_modulo(at, 16)))

    def _table(self, x0: Any) -> WordTable:
        """Products of four inputs with (half) the codebook."""
        T, k, n = self.T, self.k, self.lanes
        x = [bind(k, k.splat(T.Cast("int16", k.load(k.arg("xq"), x0 + e)), n)) for e in range(4)]
        parts = []
        for at in range(0, 128 if self.p["half"] else 256, n):
            products = [k.load(k.arg("book"), 256 * e + at, n) * x[e] for e in range(4)]
            parts.append((products[0] + products[1]) + (products[2] + products[3]))
        return WordTable(k, parts, "int16")

    def _add(self, word: Any, at: Any, tables: list[WordTable]) -> None:
        T, k, n = self.T, self.k, self.lanes
        prefetch(k, k.arg("codes"), (word + 1) * self.rows + self.first + at)  # a page or more ahead
        codes = k.local(n, "int16")
        packed = k.load(k.arg("codes"), word * self.rows + self.first + at, n)
        k.store(codes, 0, T.reinterpret(f"int16x{n}", packed), n)
        held = k.load(codes, 0, n)
        found = []
        for unit, table in enumerate(tables):
            value = table(held, 8 * unit, 7 if self.p["half"] else 8)
            if self.p["half"]:
                value = bind(k, value)
                value = T.Select(table.has(held, 8 * unit + 7), k.splat(T.int16(0), n) - value, value)
            slot = k.local(n, "int16")
            k.store(slot, 0, value, n)
            found.append(k.load(slot, 0, n))
        low, high = k.arg("low"), k.arg("high")
        k.store(low, at, k.load(low, at, n) + (found[0] + found[1]), n)
        eight = k.splat(T.int16(8), n)
        k.store(high, at, k.load(high, at, n) + ((found[0] >> eight) + (found[1] >> eight)), n)


class _Float(VectorSums):
    units = 4

    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.lanes = k.lanes
        super().__init__(p, k)
        self.words = ceil(p["k"] / 16)  # the inputs are not padded as the codes are
        self.sums = k.arg("part" if p["scales"] == "group" else "total")

    def _span(self, span: Any, words: Any) -> None:
        T, k, n = self.T, self.k, self.lanes
        grouped = self.p["scales"] == "group"
        if grouped:
            self._clear("part", k.f32(0.0, n), n)
        look_up = self._from_memory if self.p["form"] == "memory" else self._from_registers
        with T.serial(0, words) as i:
            look_up(bind(k, span * self.span + i))
        if grouped:

            def scaled(at: Any) -> None:
                value = k.load(k.arg("part"), at, n) * self._group_scale(span, at, n)
                k.store(k.arg("total"), at, k.load(k.arg("total"), at, n) + value, n)

            self._each(n, scaled)

    def _inputs(self, word: Any, unit: int) -> list[Any]:
        """Four inputs, zeros beyond the last."""
        T, k = self.T, self.k
        x = []
        for e in range(4):
            index = bind(k, word * 16 + (4 * unit + e))
            held = k.local(1)
            if self.p["k"] % 16:
                k.store(held, 0, T.float32(0))
                with T.If(index < self.p["k"]), T.Then():
                    k.store(held, 0, k.load(k.arg("x"), index))
            else:
                k.store(held, 0, k.load(k.arg("x"), index))
            x.append(bind(k, k.splat(k.load(held, 0), self.lanes)))
        return x

    def _products(self, x: list[Any], at: int) -> Any:
        k, n = self.k, self.lanes
        total = x[0] * k.load(k.arg("book"), at, n)
        for e in range(1, 4):
            total = fma(k, x[e], k.load(k.arg("book"), 256 * e + at, n), total, n)
        return total

    def _from_registers(self, word: Any) -> None:
        T, k, n, half = self.T, self.k, self.lanes, self.p["half"]
        for unit in range(4):
            x = self._inputs(word, unit)
            parts = [T.reinterpret(f"int32x{n}", self._products(x, at)) for at in range(0, 128 if half else 256, n)]
            table = WordTable(k, parts)

            def add(at: Any, unit: int = unit, table: WordTable = table) -> None:
                if unit == 0:
                    prefetch(k, k.arg("codes"), (word + 1) * self.rows + self.first + at)
                codes = k.local(n, "int32")
                packed = k.load(k.arg("codes"), word * self.rows + self.first + at, n)
                k.store(codes, 0, T.reinterpret(f"int32x{n}", packed), n)
                held = k.load(codes, 0, n)
                value = table(held, 8 * unit, 7 if half else 8)
                if half:
                    up = held << k.i32(24 - 8 * unit, n) if unit < 3 else held
                    value = value ^ (up & k.splat(T.int32(-(2**31)), n))
                k.store(self.sums, at, k.load(self.sums, at, n) + T.reinterpret(f"float32x{n}", value), n)

            self._each(n, add)

    def _from_memory(self, word: Any) -> None:
        T, k, n = self.T, self.k, self.lanes
        for unit in range(4):
            x = self._inputs(word, unit)
            for at in range(0, 256, n):
                k.store(k.arg("products"), 256 * unit + at, self._products(x, at), n)

        def add(at: Any) -> None:
            packed = [
                bind(k, T.Cast("int32", k.load(k.arg("codes"), word * self.rows + self.first + at + lane)))
                for lane in range(n)
            ]
            for unit in range(4):
                found = k.local(n)
                for lane in range(n):
                    code = (packed[lane] >> (8 * unit)) & 255
                    k.store(found, lane, k.load(k.arg("products"), code + 256 * unit))
                k.store(self.sums, at, k.load(self.sums, at, n) + k.load(found, 0, n), n)

        self._each(n, add)
