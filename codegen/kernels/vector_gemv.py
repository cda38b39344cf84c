"""One row of activations times a vector codebook: act(x[1, K] . W^T + bias + residual), without decoding W.

Four inputs and the codebook make a table of products: the share of these inputs in an output whose code is c. It is made once for
many outputs, whose codes then look their shares up: one addition for four weights.

* int8 activations, AVX-512: products of rounded numbers are whole and fit 16 bits (4 * 127 * TABLE_MAX), so a table of 256 is 8
  registers. Sums are kept modulo 2**16 in `low`, and in `high` the sums of the products' upper bytes, which say which multiple of
  2**16 is meant as long as at most `_MOST_UNITS` were added. So they are exact, as those of gemv.py are.
* float32 activations: the table holds float32, in registers on AVX-512, elsewhere in memory.

Codebooks whose second half is the negative of the first (what the encoder makes where that costs no accuracy) need only half a
table in registers. Codes lie in words that a lane of the looked-up numbers holds: [word][output], the codes of a word along the
inputs. Units are tiles of outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil, prod
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal
from sparsec.codegen.isa.epilogue import activation_cost, apply_activation
from sparsec.codegen.isa.pieces import pieces
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.isa.word_table import WordTable
from sparsec.codegen.kernels import gemv_inputs, vector_codes
from sparsec.codegen.kernels.weights import epilogue, refused_epilogue
from sparsec.codegen.program import Arg, Signature
from sparsec.formats.encoded import EncodedWeight, Unpacked, unpack
from sparsec.formats.meaning import VectorValue
from sparsec.formats.structure import Dense
from sparsec.int8 import activation_group, rounded_table
from sparsec.op_view import view
from sparsec.target import Target

Array = np.ndarray[Any, Any]

# Outputs of a unit, and units that share tables while their sums stay in the level-1 cache.
_TILE, _TILES_AT_ONCE = 64, 32
# Products whose upper bytes may be added up: 256 * 255 < 2**16.
_MOST_UNITS = 256


def lower_vector_gemv(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::MatMul of one row with a codebook of vectors."""
    op = view(node)
    weight = op.weight()
    if not isinstance(weight, EncodedWeight):
        return Refusal("the weight is not coded")
    assert op.x is not None
    if (refusal := refused_epilogue(op, low)) is not None:
        return refusal
    if low.dtype(op.x) != "float32" or prod(low.shape(op.x)[:-1]) != 1:
        return Refusal("not one row of float32")
    unpacked = unpack(weight)
    x_group = activation_group(op.activations, op.cols) if op.activations else 0
    if why := refused(unpacked, low.target, x_group, whole=bool(op.activations)):
        return Refusal(why)
    params, arrays = pack(unpacked, x_group, whole=bool(op.activations))
    label = node.name or "weight"
    finish, added = epilogue(op, low)
    ins = [low.get(op.x), *(low.const(array, f"{label}.{name}") for name, array in arrays), *added]
    note = f"[1, {op.cols}] x [{op.cols}, {op.rows}] {op.scheme} x {op.activations or 'float32'} {op.activation}"
    low.call(
        "vector_gemv", params | finish, ins, [low.new(op.output)], node=node.name or "", op="MatMul", note=note.strip()
    )
    return None


def refused(weight: Unpacked, target: Target, x_group: int, *, whole: bool) -> str:
    """Why `pack` cannot lay a weight out ("" if it can); whole: int8 activations."""
    scheme = weight.scheme
    meaning, scales = scheme.codec.meaning, scheme.scales
    if not isinstance(meaning, VectorValue) or not isinstance(scheme.structure, Dense):
        return "not a dense weight of vectors"
    if vector_codes.refusal(meaning) or vector_codes.Form.of(meaning) != vector_codes.Form(1, 1, 8):
        return "four inputs do not take 8 bits"
    if meaning.scope.kind != "tensor":
        return "there are several codebooks"
    if whole and not _registers(target):
        return "tables of 16-bit products are for AVX-512"
    group = scales.group if scales.kind == "group" else x_group
    if group % 16 or group > 4 * _MOST_UNITS or (x_group and group != x_group):
        return f"groups of {group} inputs are not whole words of codes"
    return ""


def _registers(target: Target) -> bool:
    return target.arch == "x86_64" and target.lanes == 16


def pack(weight: Unpacked, x_group: int, *, whole: bool) -> tuple[dict[str, Any], list[tuple[str, Array]]]:
    """Parameters and arrays: codes, codebook, scales?"""
    meaning, scales = weight.scheme.codec.meaning, weight.scheme.scales
    assert isinstance(meaning, VectorValue)
    assert weight.codebook is not None
    tile = _TILE
    rows = ceil(weight.rows / tile) * tile
    group = scales.group if scales.kind == "group" else x_group
    padded = ceil(weight.cols / 32) * 32
    words = vector_codes.streams(weight, rows, padded)[:, 0]
    codes = words.view(np.uint16) if whole else words
    if whole:
        rounded, scale = rounded_table(weight.codebook)
        table = _quads(meaning, rounded).astype(np.int16)
    else:
        table = _quads(meaning, weight.codebook)
    half = bool((table[:, :128] == -table[:, 128:]).all())
    arrays = [("codes", np.ascontiguousarray(codes.T).reshape(-1)), ("book", table.reshape(-1))]
    if whole:
        arrays.append(("book_scale", scale))
    if weight.scales is not None:
        values = weight.scales.reshape(-1).astype(np.float32)
        if scales.kind != "tensor":
            wide = np.zeros((rows, weight.scales.shape[1]), np.float16 if scales.kind == "group" else np.float32)
            wide[: weight.rows] = weight.scales
            values = np.ascontiguousarray(wide.T).reshape(-1)
        arrays.append(("scales", values))
    params = {
        "rows": weight.rows, "k": weight.cols, "whole": whole, "half": half, "x_group": x_group, "group": group, "scales": scales.kind,
    }  # fmt: skip
    return params, arrays


def _quads(meaning: VectorValue, entries: Array) -> Array:
    """The codebook as [4 inputs][256]."""
    stages, count, dim = entries.shape[1:]
    if (stages, dim) == (1, 4):
        return np.ascontiguousarray(entries[0, 0].T)
    code = np.arange(256)
    made = np.zeros((4, 256), entries.dtype)
    for number in range(4 // dim * stages):
        first = number // stages * dim
        made[first : first + dim] += entries[0, number % stages, code >> (number * meaning.bits) & (count - 1)].T
    return made


def _inputs_params(p: Mapping[str, Any]) -> dict[str, Any]:
    """What gemv_inputs.py has to know."""
    block = p["group"] or ceil(p["k"] / 32) * 32
    return {"m": 1, "x_group": p["x_group"], "w": {"k": p["k"], "block": block, "sparse": False, "paired": False}}


def _padded_rows(p: Mapping[str, Any]) -> int:
    return ceil(int(p["rows"]) / _TILE) * _TILE


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: x [K], codes, book, book_scale?, scales?, bias? [N], residual? [N]; out: y [N]; work: inputs and sums."""
    rows = _padded_rows(p)
    units = ceil(p["k"] / 32) * 8
    whole = p["whole"]
    args = [
        Arg("x", "float32", p["k"], "in"),
        Arg("codes", "uint16" if whole else "uint32", rows * units // (2 if whole else 4), "in"),
        Arg("book", "int16" if whole else "float32", 4 * 256, "in"),
    ]
    if whole:
        args.append(Arg("book_scale", "float32", 1, "in"))
    if p["scales"] != "none":
        count = {"tensor": 1, "channel": rows, "group": rows * ceil(p["k"] / max(1, p["group"]))}[p["scales"]]
        args.append(Arg("scales", "float16" if p["scales"] == "group" else "float32", count, "in"))
    if p["bias"]:
        args.append(Arg("bias", "float32", p["rows"], "in"))
    if p["residual"]:
        args.append(Arg("residual", "float32", p["rows"], "in"))
    args.append(Arg("y", "float32", p["rows"], "out"))
    most = _TILE * _TILES_AT_ONCE
    if whole:
        args += gemv_inputs.work_arguments(_inputs_params(p), target)
        args += [Arg("low", "int16", most, "work"), Arg("high", "int16", most, "work")]
    elif not _registers(target):
        args.append(Arg("products", "float32", 4 * 256, "work"))
    args.append(Arg("total", "float32", most, "work"))
    if p["scales"] == "group" and not whole:
        args.append(Arg("part", "float32", most, "work"))
    cost = p["k"] * rows // 2 + p["rows"] * (4 + activation_cost(p["act"]))
    return Signature(tuple(args), units=rows // _TILE, cost=cost)


def build(p: Mapping[str, Any], k: Any) -> None:
    """Write the kernel (see the module's docstring)."""
    (_Whole if p["whole"] else _Float)(p, k).write()


class _VectorGemv:
    """What both kinds of activations share. `lanes`: numbers looked up at once; `units`: codes of a word."""

    lanes: int
    units: int

    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.p, self.k, self.T = p, k, k.T
        self.rows = _padded_rows(p)
        self.words = ceil(p["k"] / 32) * 8 // self.units
        # Words of a span: those of a group, or as many as sums can take.
        self.span = (p["group"] or 4 * _MOST_UNITS) // (4 * self.units)
        self.spans = ceil(ceil(p["k"] / (4 * self.units)) / self.span)

    def write(self) -> None:
        T, k = self.T, self.k
        with T.If(k.lo < k.hi), T.Then():
            self._prepare()
            with T.serial(0, T.truncdiv(k.hi - k.lo + (_TILES_AT_ONCE - 1), _TILES_AT_ONCE)) as chunk:
                first = bind(k, k.lo + chunk * _TILES_AT_ONCE)
                self.first = bind(k, first * _TILE)
                self.count = bind(k, T.min(k.hi - first, _TILES_AT_ONCE) * _TILE)
                self._clear("total", k.f32(0.0, k.lanes), k.lanes)
                with T.serial(0, self.spans) as span:
                    self._span(span, bind(k, T.min(self.words - span * self.span, self.span)))
                self._finish()

    def _each(self, lanes: int, body: Callable[[Any], None], *, step: int = 1) -> None:
        """`body` for the first output of every vector (of `step` vectors) of the chunk."""
        with self.T.serial(0, self.T.truncdiv(self.count, lanes * step)) as i:
            body(bind(self.k, i * (lanes * step)))

    def _clear(self, name: str, zero: Any, lanes: int) -> None:
        self._each(lanes, lambda at: self.k.store(self.k.arg(name), at, zero, lanes))

    def _prepare(self) -> None:
        """Before all outputs."""

    def _span(self, span: Any, words: Any) -> None:
        """Add the words of a span to `total`."""
        raise AssertionError

    def _x_scale(self) -> Any:
        return None

    def _group_scale(self, span: Any, at: Any, lanes: int) -> Any:
        k = self.k
        return self.T.Cast(f"float32x{lanes}", k.load(k.arg("scales"), span * self.rows + self.first + at, lanes))

    def _finish(self) -> None:
        """Scales of whole rows, bias, residual, activation, and the stores."""
        T, k, p, n = self.T, self.k, self.p, self.k.lanes
        factor = self._x_scale()
        if p["scales"] == "tensor":
            scale = k.load(k.arg("scales"), 0)
            factor = scale if factor is None else factor * scale
        factor = None if factor is None else bind(k, factor)

        def store(at: Any, width: int) -> None:
            to = self.first + at
            value = k.load(k.arg("total"), at, width)
            if p["scales"] == "channel":
                value = value * k.load(k.arg("scales"), to, width)
            if factor is not None:
                value = value * k.splat(factor, width)
            if p["bias"]:
                value = value + k.load(k.arg("bias"), to, width)
            if p["residual"]:
                value = value + k.load(k.arg("residual"), to, width)
            k.store(k.arg("y"), to, apply_activation(k, p["act"], p["act_params"], value, width), width)

        count = bind(k, T.min(self.count, p["rows"] - self.first))
        with T.serial(0, T.truncdiv(count, n)) as i:
            store(i * n, n)
        rest = p["rows"] % n
        if rest:
            with T.If(self.first + self.count > p["rows"]), T.Then():
                for at, width in pieces(rest, n):
                    store(bind(k, count - rest + at), width)


class _Whole(_VectorGemv):
    lanes, units = 32, 2

    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        super().__init__(p, k)
        self.inputs = gemv_inputs.Inputs(_inputs_params(p), k)

    def _prepare(self) -> None:
        self.inputs.quantise(self.T.int32(0), self.T.int32(0))

    def _x_scale(self) -> Any:
        k = self.k
        scale = k.load(k.arg("book_scale"), 0)
        return scale if self.p["x_group"] else scale * k.load(k.arg("xscale"), 0)

    def _span(self, span: Any, words: Any) -> None:
        T, k, n = self.T, self.k, self.lanes
        zero = k.splat(T.int16(0), n)
        self._clear("low", zero, n)
        self._clear("high", zero, n)
        with T.serial(0, words) as i:
            word = bind(k, span * self.span + i)
            tables = [self._table(word * 8 + 4 * unit) for unit in range(2)]
            self._each(n, lambda at: self._add(word, at, tables))
        self._each(16, lambda at: self._flush(span, at))

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

    def _flush(self, span: Any, at: Any) -> None:
        """total += the sums that `low` and `high` stand for."""
        T, k, n = self.T, self.k, 16
        high = bind(k, T.Cast(f"int32x{n}", k.load(k.arg("high"), at, n)) << k.i32(8, n))
        low = T.Cast(f"int32x{n}", k.load(k.arg("low"), at, n))
        whole = high + ((low - high) & k.i32(0xFFFF, n))
        value = T.Cast(f"float32x{n}", whole)
        if self.p["scales"] == "group":
            value = value * self._group_scale(span, at, n)
        if self.p["x_group"]:
            value = value * k.splat(k.load(k.arg("xscale"), span), n)
        k.store(k.arg("total"), at, k.load(k.arg("total"), at, n) + value, n)


class _Float(_VectorGemv):
    units = 4

    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.lanes = k.lanes
        super().__init__(p, k)
        self.sums = k.arg("part" if p["scales"] == "group" else "total")

    def _span(self, span: Any, words: Any) -> None:
        T, k, n = self.T, self.k, self.lanes
        grouped = self.p["scales"] == "group"
        if grouped:
            self._clear("part", k.f32(0.0, n), n)
        look_up = self._from_registers if _registers(k.target) else self._from_memory
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
            total = self.T.call_llvm_pure_intrin(
                f"float32x{n}", "llvm.fma", x[e], k.load(k.arg("book"), 256 * e + at, n), total
            )
        return total

    def _from_registers(self, word: Any) -> None:
        T, k, n, half = self.T, self.k, self.lanes, self.p["half"]
        for unit in range(4):
            x = self._inputs(word, unit)
            parts = [T.reinterpret(f"int32x{n}", self._products(x, at)) for at in range(0, 128 if half else 256, n)]
            table = WordTable(k, parts)

            def add(at: Any, unit: int = unit, table: WordTable = table) -> None:
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
