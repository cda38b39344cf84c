"""Products of many rows on x86 without VNNI, with several quads summed in 16 bits (gemv.py).

Affine codes of few bits are small: eight quads of 4-bit codes fit always. Of 7-bit tables a
product of a pair of weights (in [1, 127]: the table's entries plus 64) and inputs nearly fills 16 bits. But what is wanted is the
product with the entries w in [-63, 63], and a sum of such products is at most |x| |w|, the norms of what a lane multiplies. So
sums may wrap on their way if they begin at -64 times the sum of their inputs, which is the same for all weights. The four inputs that
two quads have for a lane always fit. With four quads (eight inputs) nearly all do, but not the largest inputs times the largest weights:
`limits` has for each step of a tile what the norms of inputs may be, and where a row exceeds it, two quads are summed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil
from operator import add
from typing import Any

import numpy as np

from sparsec.codegen.isa import dot
from sparsec.codegen.isa.vecmath import bind, unknown_count
from sparsec.codegen.kernels.byte_weights import signed_table
from sparsec.codegen.kernels.gemv_rounding import ROWS_AT_ONCE, STEP, padded_width, rows_of_block
from sparsec.codegen.program import Arg
from sparsec.formats.encoded import Unpacked
from sparsec.formats.meaning import TableValue
from sparsec.target import Target

Array = np.ndarray[Any, Any]
# Quads of tables summed in 16 bits: as many as always fit, and where norms are small enough.
SURE, MOST = 2, 4
# Quads of codes summed in 16 bits, unrolled, at most.
_MOST_CODES = 8
# Sums of codes that the compiler would unroll, one sum after the other, with all their inputs in memory.
_ROLLED = 4
# Fewer quads of codes are not worth it: two rows widen as often as four, and load weights twice as often.
_FEWEST_CODES = 4
# Bits of codes of which eight quads are taken out together: with several rows they do not fit 16 registers.
_SLOW_BITS = (1, 3)
# Rows of x whose sums stay in 16 registers.
_FEW_REGISTERS, _ROWS = 16, 2
_INT16_MAX = 32767


def applies(p: Mapping[str, Any], target: Target) -> bool:
    """Whether the kernel joins quads: several rows of x against tables or small codes."""
    w = p["w"]
    x86 = target.arch == "x86_64" and not target.vnni
    fewest = SURE if wraps(w) else _FEWEST_CODES
    return bool(
        x86 and not w["sparse"] and rows_of_block(p["m"]) > _rows_alone(w, target) and sure(w, target) >= fewest
    )


def _rows_alone(w: Mapping[str, Any], target: Target) -> int:
    """So many rows are multiplied while weights are decoded."""
    if target.vector_registers > _FEW_REGISTERS:
        return ROWS_AT_ONCE
    if w["bits"] in _SLOW_BITS and (wraps(w) or not w["one_block"]):
        return 1
    return ROWS_AT_ONCE - 1 if wraps(w) else ROWS_AT_ONCE


def wraps(w: Mapping[str, Any]) -> bool:
    """Whether sums begin where they do not leave 16 bits in the end: tables."""
    return bool(w["kind"] != "affine")


def sure(w: Mapping[str, Any], target: Target) -> int:
    """Quads whose sums in 16 bits always fit: a power of two that divides a block, 1 if that is none."""
    fit = SURE if wraps(w) else min(_MOST_CODES, dot.pairs_in_16_bits(target, (1 << w["bits"]) - 1))
    quads = 1 << (fit.bit_length() - 1)
    while w["block"] % (4 * quads):
        quads //= 2
    return max(1, quads)


def asks(p: Mapping[str, Any], target: Target) -> bool:
    """Whether norms are asked if more quads fit: tables of scalars, whole steps."""
    w = p["w"]
    return applies(p, target) and w["kind"] == "table" and w["block"] % STEP == 0


def limits(weight: Unpacked, w: Mapping[str, Any]) -> Array:
    """int16 [tiles * steps]: a quarter of what the squares of a lane's inputs may add up to; `w`: parameters of the packed weight."""
    entries, meaning = signed_table(weight)[0], weight.scheme.codec.meaning
    assert isinstance(meaning, TableValue)
    row, column = np.arange(weight.rows)[:, None], np.arange(weight.cols)
    span = {"rows": row, "inputs": column}.get(meaning.scope.kind, 0) // max(meaning.scope.span, 1)
    padded = np.zeros((w["tiles"] * w["tile"], padded_width(w)), np.int64)
    padded[: weight.rows, : weight.cols] = entries[span, weight.codes[:, 0, 0].reshape(weight.rows, weight.cols)]
    lanes: Array = (padded**2).reshape(w["tiles"], w["tile"], -1, STEP // 4 // MOST, MOST, 2, 2).sum(axis=(4, 6))
    largest = lanes.max(axis=(1, 3, 4))
    most: Array = np.minimum(_INT16_MAX**2 // np.maximum(4 * largest, 1), _INT16_MAX)
    return most.astype(np.int16).reshape(-1)


def arguments(p: Mapping[str, Any], target: Target) -> list[Arg]:
    """`limits`, where norms are asked."""
    return [Arg("limits", "int16", p["w"]["tiles"] * (padded_width(p["w"]) // STEP), "in")] if asks(p, target) else []


def work_arguments(p: Mapping[str, Any], target: Target) -> list[Arg]:
    """Scratch of tables: where sums begin, two 16-bit numbers for the quads of a sum; and by step and rows that are multiplied
    together how large the inputs are."""
    rows, asked = rows_of_block(p["m"]), asks(p, target)
    if not wraps(p["w"]):
        return []
    inputs = rows * padded_width(p["w"])
    both = (SURE, MOST) if asked else (SURE,)
    args = [Arg(_begins(quads), "int32", inputs // (4 * quads) + 16 // quads, "work") for quads in both]
    return [*args, Arg("norms", "int32", inputs // STEP + 2, "work")] if asked else args


def _begins(quads: int) -> str:
    return f"begins{quads}"


class Joined:
    """Writes the code (`k`: KernelBuilder; `vectors`: of a tile)."""

    def __init__(self, p: Mapping[str, Any], k: Any, vectors: int) -> None:
        self.k, self.T, self.vectors = k, k.T, vectors
        self.dot, self.width, self.block = dot.ByteDot(k), padded_width(p["w"]), int(p["w"]["block"])
        self.wraps, self.sure, self.asks = wraps(p["w"]), sure(p["w"], k.target), asks(p, k.target)
        self.rows_at_once = _ROWS if k.target.vector_registers <= _FEW_REGISTERS else ROWS_AT_ONCE

    def prepare(self, rows: int) -> None:
        """Scratch of the rounded rows, for tables. The last vector of a row may reach into what the next row overwrites."""
        T, k, nb = self.T, self.k, self.dot.bytes
        half = nb // 2
        if not self.wraps:
            return
        with T.serial(0, rows) as row, T.serial(0, ceil(self.width / nb)) as i:
            held = k.local(nb, "int8")
            k.store(held, 0, k.load(k.arg("xq"), row * self.width + i * nb, nb), nb)
            x = k.load(held, 0, nb)
            sums = self._both(self.dot.pairs(k.splat(T.uint8(1), nb), x), 2)
            self._store_begins(sums, SURE, row, i)
            if not self.asks:
                return
            self._store_begins(self._both(sums, 4), MOST, row, i)
            size = T.max(x, k.splat(T.int8(0), nb) - x)
            quarters = (self.dot.pairs(size, size) + k.splat(T.int16(3), half)) >> k.splat(T.int16(2), half)
            norms = self._words(self._both(self._both(self._both(quarters, 2), 4), 1, T.max))
            each = STEP // 4
            for part in range(nb // STEP):
                number = bind(k, T.truncdiv(row, self.rows_at_once) * (self.width // STEP) + (i * (nb // STEP) + part))
                norm = T.max(k.load(norms, part * each), k.load(norms, part * each + MOST)) >> 16
                before = T.Select(T.truncmod(row, self.rows_at_once) > 0, k.load(k.arg("norms"), number), T.int32(0))
                k.store(k.arg("norms"), number, T.max(norm, before))

    def _add(self, a: Any, b: Any) -> Any:
        """a + b. Sums of codes fit, so that an addition that saturates gives them too: the compiler leaves those in their order, where
        plain ones become a tree of all products of a sum, which do not fit the registers."""
        if self.wraps:
            return a + b
        half = self.dot.bytes // 2
        return self.T.call_llvm_pure_intrin(f"int16x{half}", f"llvm.sadd.sat.v{half}i16", a, b)

    def _both(self, values: Any, apart: int, join: Callable[[Any, Any], Any] = add) -> Any:
        """`join` of lanes so far apart (int16), in both of them."""
        half = self.dot.bytes // 2
        held = self.k.local(half, "int16")
        self.k.store(held, 0, values, half)
        values = self.k.load(held, 0, half)
        return join(values, self.T.Shuffle([values], [self.T.int32(i ^ apart) for i in range(half)]))

    def _words(self, values: Any) -> Any:
        n = self.dot.lanes
        words = self.k.local(n, "int32")
        self.k.store(words, 0, self.T.reinterpret(f"int32x{n}", values), n)
        return words

    def _store_begins(self, sums: Any, quads: int, row: Any, i: Any) -> None:
        """Where sums of so many quads begin: `sums`, which all of them have, times -64."""
        T, k, n = self.T, self.k, self.dot.lanes
        words = self._words(sums * k.splat(T.int16(-dot.TABLE_OFFSET), 2 * n))
        chosen = T.Shuffle([k.load(words, 0, n)], [T.int32(at) for at in range(0, n, quads)])
        k.store(k.arg(_begins(quads)), row * (self.width // (4 * quads)) + i * (n // quads), chosen, n // quads)

    def products(self, tile: Any, row0: Any, rows: int, block: Any, acc: Any) -> None:
        """acc += the products of one block; decoded weights."""
        T, k = self.T, self.k
        quad0 = bind(k, block * (self.block // 4))
        if not self.asks:
            self._run(row0, rows, quad0, self.block // 4, self.sure, acc)
            return
        each, steps = STEP // 4, self.width // STEP
        with T.serial(0, self.block // STEP) as step:
            first, number = bind(k, quad0 + step * each), bind(k, block * (self.block // STEP) + step)
            norm = k.load(k.arg("norms"), T.truncdiv(row0, self.rows_at_once) * steps + number)
            limit = k.load(k.arg("limits"), tile * steps + number)
            with T.If(norm <= T.Cast("int32", limit)):
                with T.Then():
                    self._run(row0, rows, first, each, MOST, acc)
                with T.Else():
                    self._run(row0, rows, first, each, SURE, acc)

    def _run(self, row0: Any, rows: int, quad0: Any, count: int, quads: int, acc: Any) -> None:
        """acc += the products of `count` quads from quad0 on, `quads` at a time in 16 bits."""
        joins: Any = count // quads
        if not self.wraps and 1 < joins < _ROLLED:
            joins = unknown_count(self.k, joins)
        with self.T.serial(0, joins) as join:
            self._join(row0, rows, bind(self.k, quad0 + join * quads), quads, acc)

    def _join(self, row0: Any, rows: int, quad0: Any, quads: int, acc: Any) -> None:
        T, k, n, nb = self.T, self.k, self.dot.lanes, self.dot.bytes
        half = nb // 2
        at = bind(k, quad0 * (self.vectors * nb))
        x0 = [bind(k, (row0 + row) * self.width + quad0 * 4) for row in range(rows)]
        pairs = k.local(rows * self.vectors * half, "int16")
        number = bind(k, T.truncdiv(quad0, quads))
        for row in range(rows if self.wraps else 0):
            begin = k.load(k.arg(_begins(quads)), (row0 + row) * (self.width // (4 * quads)) + number)
            spread = T.reinterpret(f"int16x{half}", k.splat(begin, n))
            for v in range(self.vectors):
                k.store(pairs, (row * self.vectors + v) * half, spread, half)
        for quad in range(quads):
            weights = k.local(self.vectors * nb, "uint8")
            for v in range(self.vectors):
                k.store(weights, v * nb, k.load(k.arg("decoded"), at + (quad * self.vectors + v) * nb, nb), nb)
            for row in range(rows):
                x = self.dot.broadcast(T.reinterpret("int32", k.load(k.arg("xq"), x0[row] + quad * 4, 4)))
                for v in range(self.vectors):
                    place = (row * self.vectors + v) * half
                    product = self.dot.pairs(k.load(weights, v * nb, nb), x)
                    begun = self.wraps or quad > 0
                    k.store(pairs, place, self._add(k.load(pairs, place, half), product) if begun else product, half)
        for slot in range(rows * self.vectors):
            wide = self.dot.widen(k.load(pairs, slot * half, half))
            k.store(acc, slot * n, wide + k.load(acc, slot * n, n), n)
