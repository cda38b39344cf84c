"""Few rows of float32 activations times a dense weight of small codes: act(x[M, K] . W^T + bias + residual), M at most 4 (x86-64).

Weights are looked up in registers and multiplied at once, never written to memory: vectors run over outputs, each lane has a word of
32 bits with the codes of consecutive inputs of its output, a permutation of the table (vpermps) turns one of them into float32. Larger
tables take several permutations, of which the code's upper bits choose one. Integers of up to 4 bits are looked up as well, in the table of
what their codes stand for; larger ones are converted. A group of inputs with a scale begins with a word of its own.

    codes[tile][word][vector of outputs][lane]      scales[tile][group][output of the tile]

A unit is a tile of outputs. Sums over a group are scaled when the group ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, prod
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal
from sparsec.codegen.isa.epilogue import activation_cost, apply_activation
from sparsec.codegen.isa.lookup import RegisterTable, padded_entries, permute_width
from sparsec.codegen.isa.memory import prefetch_stream
from sparsec.codegen.isa.pieces import pieces
from sparsec.codegen.isa.vecmath import bind, fma
from sparsec.codegen.kernels.last_tile import with_size
from sparsec.codegen.kernels.quantise import product_input
from sparsec.codegen.kernels.weights import epilogue, refused_epilogue, scales_by_tile
from sparsec.codegen.program import Arg, Signature
from sparsec.formats.encoded import EncodedWeight, Unpacked, unpack
from sparsec.formats.meaning import AffineValue, TableValue
from sparsec.formats.structure import Dense
from sparsec.op_view import view
from sparsec.target import Target

Array = np.ndarray[Any, Any]

_MOST_ROWS = 4
# Bits of integers that are looked up.
_INTEGER_BITS = 4


def lower_coded_gemv(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::MatMul of few rows with a dense coded weight; activations that are int8 by name have been rounded before."""
    op = view(node)
    weight = op.weight()
    if not isinstance(weight, EncodedWeight):
        return Refusal("the weight is not coded")
    assert op.x is not None
    if (refusal := refused_epilogue(op, low)) is not None:
        return refusal
    m = prod(low.shape(op.x)[:-1])
    if low.dtype(op.x) != "float32" or not 1 <= m <= _MOST_ROWS:
        return Refusal(f"not 1 to {_MOST_ROWS} rows of float32")
    unpacked = unpack(weight)
    if why := refused(unpacked, low.target):
        return Refusal(why)
    params, arrays = pack(unpacked, m, low.target)
    label = node.name or "weight"
    finish, added = epilogue(op, low)
    ins = [product_input(op, low), *(low.const(array, f"{label}.{name}") for name, array in arrays), *added]
    note = f"[{m}, {op.cols}] x [{op.cols}, {op.rows}] {op.scheme} {op.activation}".strip()
    low.call("coded_gemv", params | finish, ins, [low.new(op.output)], node=node.name or "", op="MatMul", note=note)
    return None


def refused(weight: Unpacked, target: Target) -> str:
    """Why `pack` cannot lay a weight out ("" if it can)."""
    scheme = weight.scheme
    codec, meaning = scheme.codec, scheme.codec.meaning
    if target.arch != "x86_64":
        return "tables of float32 are looked up in registers on x86-64 only"
    if not isinstance(scheme.structure, Dense):
        return "the weight is sparse"
    if not isinstance(meaning, AffineValue | TableValue):
        return f"codec {codec} has no code for each weight"
    if isinstance(meaning, TableValue) and 1 << codec.code_bits > permute_width(target):
        return f"tables of {1 << codec.code_bits} entries are looked up in memory"
    if weight.zero_points is not None or (isinstance(meaning, TableValue) and meaning.scope.kind != "tensor"):
        return "zero points and several codebooks are not looked up in one table"
    return ""


def vectors(m: int, target: Target) -> int:
    """Vectors of outputs in a tile: enough sums in flight, few enough for the registers."""
    return 4 if m == 1 or target.vector_registers >= 32 else 2


def words(p: Mapping[str, Any]) -> int:
    """32-bit words of codes of an output."""
    each = 32 // p["bits"]
    whole, rest = divmod(p["k"], p["group"] or p["k"])
    return int(whole * ceil((p["group"] or p["k"]) / each) + ceil(rest / each))


def table_entries(p: Mapping[str, Any]) -> int:
    """Entries of the table, 0: codes are converted."""
    return 0 if p["converted"] else padded_entries(1 << p["bits"])


def pack(weight: Unpacked, m: int, target: Target) -> tuple[dict[str, Any], list[tuple[str, Array]]]:
    """Parameters and arrays: codes, table (of converted integers the first one), scales?"""
    scheme = weight.scheme
    meaning, scales, bits = scheme.codec.meaning, scheme.scales, scheme.codec.code_bits
    lanes, per_word = target.lanes, 32 // bits
    tile = lanes * min(vectors(m, target), ceil(weight.rows / lanes))
    tiles = ceil(weight.rows / tile)
    params: dict[str, Any] = {
        "m": m, "rows": weight.rows, "k": weight.cols, "bits": bits, "tile": tile, "scales": scales.kind,
        "group": scales.group if scales.kind == "group" else 0,
        "converted": isinstance(meaning, AffineValue) and bits > _INTEGER_BITS,
    }  # fmt: skip
    group = params["group"] or weight.cols
    groups = ceil(weight.cols / group)
    codes = np.zeros((tiles * tile, groups, ceil(group / per_word) * per_word), np.uint32)
    spread = np.zeros((tiles * tile, groups * group), np.uint32)
    spread[: weight.rows, : weight.cols] = weight.codes.reshape(weight.rows, weight.cols)
    codes[:, :, :group] = spread.reshape(-1, groups, group)
    shifts = (np.arange(per_word) * bits).astype(np.uint32)
    packed = np.bitwise_or.reduce(codes.reshape(tiles, tile, -1, per_word) << shifts, axis=3)[:, :, : words(params)]
    arrays = [("codes", np.ascontiguousarray(packed.transpose(0, 2, 1)).reshape(-1))]
    if isinstance(meaning, TableValue):
        assert weight.codebook is not None
        arrays.append(("table", np.resize(weight.codebook[0].astype(np.float32), table_entries(params))))
    else:
        assert isinstance(meaning, AffineValue)
        first = -np.float32(meaning.offset or 0)
        arrays.append(("table", np.arange(table_entries(params) or 1, dtype=np.float32) % (1 << bits) + first))
    if weight.scales is not None:
        arrays.append(("scales", scales_by_tile(weight, tile)))
    return params, arrays


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: x [M, K], codes, table, scales?, bias? [N], residual? [M, N]; out: y [M, N]."""
    tiles = ceil(p["rows"] / p["tile"])
    rows = tiles * p["tile"]
    args = [
        Arg("x", "float32", p["m"] * p["k"], "in"),
        Arg("codes", "uint32", rows * words(p), "in"),
        Arg("table", "float32", table_entries(p) or 1, "in"),
    ]
    if p["scales"] != "none":
        count = {"tensor": 1, "channel": rows, "group": rows * ceil(p["k"] / (p["group"] or 1))}[p["scales"]]
        args.append(Arg("scales", "float16" if p["scales"] == "group" else "float32", count, "in"))
    if p["bias"]:
        args.append(Arg("bias", "float32", p["rows"], "in"))
    if p["residual"]:
        args.append(Arg("residual", "float32", p["m"] * p["rows"], "in"))
    args.append(Arg("y", "float32", p["m"] * p["rows"], "out"))
    macs = p["m"] * p["k"] * rows
    return Signature(tuple(args), units=tiles, cost=2 * macs + p["m"] * p["rows"] * (4 + activation_cost(p["act"])))


def build(p: Mapping[str, Any], k: Any) -> None:
    """Write the kernel (see the module's docstring)."""
    _CodedGemv(p, k).write()


class _CodedGemv:
    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.p, self.k, self.T = p, k, k.T
        self.lanes: int = k.lanes
        self.vectors = p["tile"] // k.lanes
        self.slots = p["m"] * self.vectors
        self.per_word = 32 // p["bits"]
        self.words, self.words_of_group = words(p), ceil(p["group"] / self.per_word)
        # of one row and 4-bit codes 16 registers hold no more (measured: what the compiler keeps of other words is better unrolled)
        few = k.target.vector_registers <= 16 and p["m"] == 1 and p["bits"] == 4
        self.codes_at_once = 2 if few else self.per_word

    def write(self) -> None:
        T, k = self.T, self.k
        if not self.p["converted"]:
            # codes of up to 3 bits repeat in 8 entries
            entries = 8 if self.lanes == 8 and self.p["bits"] < 4 else table_entries(self.p)
            self.table = RegisterTable(k, k.arg("table"), T.int32(0), entries)
        with T.serial(k.lo, k.hi) as tile:
            self._tile(tile)

    def _tile(self, tile: Any) -> None:
        T, k, p, n = self.T, self.k, self.p, self.lanes
        total = self._zeros()
        if not p["group"]:
            self._run(tile, T.int32(0), T.int32(0), p["k"], total)
        else:
            whole, rest = divmod(p["k"], p["group"])

            def group(g: Any, count: int) -> None:
                part = self._zeros()
                self._run(tile, g * self.words_of_group, g * p["group"], count, part)
                groups = whole + bool(rest)
                for v in range(self.vectors):
                    at = (tile * groups + g) * p["tile"] + v * n
                    scale = bind(k, T.Cast(f"float32x{n}", k.load(k.arg("scales"), at, n)))
                    for r in range(p["m"]):
                        slot = (r * self.vectors + v) * n
                        k.store(total, slot, k.load(total, slot, n) + scale * k.load(part, slot, n), n)

            if whole:
                with T.serial(0, whole) as g:
                    group(g, p["group"])
            if rest:
                group(T.int32(whole), rest)
        self._finish(tile, total)

    def _zeros(self) -> Any:
        k, n = self.k, self.lanes
        sums = k.local(self.slots * n)
        for slot in range(self.slots):
            k.store(sums, slot * n, k.f32(0.0, n), n)
        return sums

    def _run(self, tile: Any, first: Any, start: Any, count: int, sums: Any) -> None:
        """Add the products of `count` inputs from `start` on, whose codes begin with word `first` of the tile."""
        whole, rest = divmod(count, self.per_word)
        base, x0 = bind(self.k, tile * self.words + first), bind(self.k, start)
        if whole:
            with self.T.serial(0, whole) as i:
                self._word(base + i, bind(self.k, x0 + i * self.per_word), self.per_word, sums)
        if rest:
            self._word(base + whole, bind(self.k, x0 + whole * self.per_word), rest, sums)

    def _word(self, number: Any, x0: Any, count: int, sums: Any) -> None:
        T, k, n, p = self.T, self.k, self.lanes, self.p
        words = k.local(self.vectors * n, "int32")
        for v in range(self.vectors):
            packed = k.load(k.arg("codes"), number * p["tile"] + v * n, n)
            prefetch_stream(k, k.arg("codes"), number * p["tile"] + v * n, 4)
            k.store(words, v * n, T.reinterpret(f"int32x{n}", packed), n)
        few = self.codes_at_once
        if count % few or count == few:
            self._codes(words, x0, count, sums)
            return
        # the compiler sees "at most so many" and leaves by branches: 0.95 of the time of a loop of an unknown count
        with T.serial(0, count // few + (k.lo >> 31)) as i:
            self._codes(words, bind(k, x0 + i * few), few, sums)
            for v in range(self.vectors):
                rest = T.reinterpret(f"uint32x{n}", k.load(words, v * n, n)) >> k.splat(T.uint32(few * p["bits"]), n)
                k.store(words, v * n, T.reinterpret(f"int32x{n}", rest), n)

    def _codes(self, words: Any, x0: Any, count: int, sums: Any) -> None:
        """Add the products of the lowest `count` codes of the words."""
        k, n, p = self.k, self.lanes, self.p
        for i in range(count):
            xs = [bind(k, k.splat(k.load(k.arg("x"), x0 + (r * p["k"] + i)), n)) for r in range(p["m"])]
            for v in range(self.vectors):
                value = bind(k, self._value(k.load(words, v * n, n), i * p["bits"]))
                for r in range(p["m"]):
                    slot = (r * self.vectors + v) * n
                    k.store(sums, slot, fma(k, value, xs[r], k.load(sums, slot, n), n), n)

    def _value(self, words: Any, bit: int) -> Any:
        """What the codes at `bit` of the words stand for."""
        T, k, n, bits = self.T, self.k, self.lanes, self.p["bits"]
        if not self.p["converted"]:
            return self.table(words, bit)
        code = words >> k.i32(bit, n) if bit else words
        whole = T.Cast(f"float32x{n}", code & k.i32((1 << bits) - 1, n))
        return whole + k.splat(k.load(k.arg("table"), 0), n)

    def _finish(self, tile: Any, total: Any) -> None:
        """Scales of whole rows, bias, residual, activation, and the stores."""
        k, p = self.k, self.p

        def store(columns: int) -> None:
            for r in range(p["m"]):
                for at, width in pieces(columns, self.lanes):
                    value = k.load(total, r * self.vectors * self.lanes + at, width)
                    if p["scales"] == "channel":
                        value = value * k.load(k.arg("scales"), tile * p["tile"] + at, width)
                    if p["scales"] == "tensor":
                        value = value * k.splat(k.load(k.arg("scales"), 0), width)
                    if p["bias"]:
                        value = value + k.load(k.arg("bias"), tile * p["tile"] + at, width)
                    to = tile * p["tile"] + (r * p["rows"] + at)
                    if p["residual"]:
                        value = value + k.load(k.arg("residual"), to, width)
                    k.store(k.arg("y"), to, apply_activation(k, p["act"], p["act_params"], value, width), width)

        with_size(k, tile, p["rows"], p["tile"], store)
