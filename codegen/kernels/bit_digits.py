"""Sums of inputs chosen by bits, as two digits in bytes, for bit_gemv.py: codes of two bits in groups of at most 32 inputs.

A sum of four inputs (bit_tables.py) is `16 * high + low` with `low` below 16, so that eight of them add up in bytes whatever the inputs
are: 32 * 127 is less than 16 * 255, eight times 15 less than 255. Of a byte of codes the low half has bits of one quad, the high half
those of the next; bits b1 of a row lie in even bytes, its bits b0 in the odd ones behind them, so that one multiplication of
bytes makes `first * sum1 + second * sum0` of a digit (at most 126 * 255), and one of 16-bit words joins the digits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sparsec.codegen.isa import dot
from sparsec.codegen.isa.memory import prefetch_stream
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels.bit_inputs import ENTRIES, Inputs
from sparsec.codegen.kernels.bit_weights import spans, width
from sparsec.codegen.program import Arg

_CACHE_LINE = 64
_BASE_BITS = 4
# Quads of a byte of codes, and bytes of the tables of one.
_QUADS = 2
_TABLES = 2 * ENTRIES


def work_arguments(p: Mapping[str, Any]) -> list[Arg]:
    """Scratch: tables, high digits and low digits of quad after quad."""
    return [Arg("tables", "uint8", width(p) // 4 * _TABLES, "work")]


class Digits:
    """Writes the code (`k`: KernelBuilder)."""

    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.p, self.k, self.T = p, k, k.T
        self.dot, self.inputs = dot.ByteDot(k), Inputs(p, k)
        self.lanes: int = k.lanes
        self.bytes: int = self.dot.bytes
        self.vectors: int = 2 * p["tile"] // self.bytes
        self.steps = p["block"] // (4 * _QUADS)  # bytes of a block

    # --- tables ---

    def prepare(self) -> None:
        """Rounded inputs, where sums of products begin, and tables: high digits, low digits of quad after quad."""
        T, k = self.T, self.k
        self.inputs.write()
        chosen = [self._bits(first) for first in (0, 2)]
        with T.serial(0, spans(self.p) * self.p["block"] // 4) as quad:
            below = T.Cast("int16", k.load(k.arg("negatives"), quad))
            sums = k.splat(below, self.bytes // 2)
            for number, bits in enumerate(chosen):
                two = T.reinterpret("int16", k.load(k.arg("xq"), quad * 4 + 2 * number, 2))
                sums = sums + self.dot.pairs(bits, k.splat(two, self.bytes // 2))
            sums = self._held(sums, "int16", self.bytes // 2)
            entries = T.Shuffle([sums], [T.int32(i) for i in range(ENTRIES)])
            high = entries >> k.splat(T.int16(_BASE_BITS), ENTRIES)
            low = entries & k.splat(T.int16((1 << _BASE_BITS) - 1), ENTRIES)
            for number, values in enumerate((high, low)):
                k.store(k.arg("tables"), quad * _TABLES + number * ENTRIES, T.Cast(f"uint8x{ENTRIES}", values), ENTRIES)

    def _bits(self, first: int) -> Any:
        """Bytes of 0 or 1, two for each entry: whether it chooses inputs `first` and `first + 1` of four."""
        T, k, nb = self.T, self.k, self.bytes
        chosen = [at // 2 % ENTRIES >> (first + at % 2) & 1 for at in range(nb)]
        zero, one = k.splat(T.uint8(0), nb), k.splat(T.uint8(1), nb)
        return k.shuffle(zero, one, [at + nb * bit for at, bit in enumerate(chosen)])

    # --- a block of inputs ---

    def block(self, codes: Any, block: Any, add: Callable[[int, Any], None]) -> None:
        """add(first row, sums of products less what they begin with) for all vectors of the rows of a tile."""
        k, nb = self.k, self.bytes
        sums = k.local(2 * self.vectors * nb, "uint8")
        from_ = bind(k, codes + block * (self.steps * self.p["tile"] * 2))
        tables = bind(k, block * (self.steps * _QUADS * _TABLES))
        self._step(from_, tables, sums, begin=True)
        if self.steps > 1:
            # a number that the compiler does not know: it would make of all steps a run of code that does not fit the registers
            with self.T.serial(1, k.load(k.arg("levels"), 3)) as step:
                at = bind(k, from_ + step * (self.vectors * nb))
                self._step(at, bind(k, tables + step * (_QUADS * _TABLES)), sums)
        for vector in range(self.vectors):
            self._finish(vector, sums, add)

    def _step(self, codes: Any, tables: Any, sums: Any, *, begin: bool = False) -> None:
        """Add what a byte of all rows finds in its quads' tables; begin: to nothing."""
        k, nb = self.k, self.bytes
        held = [self._table(tables + i * ENTRIES) for i in range(2 * _QUADS)]
        for v in range(self.vectors):
            at = v * nb
            packed = self._held(k.load(k.arg("codes"), codes + at, nb), "uint8", nb)
            if at % _CACHE_LINE == 0:
                prefetch_stream(k, k.arg("codes"), codes + at, 1)
            for half in range(_QUADS):
                field = self._held(self.dot.field(packed, 4 * half, 4), "uint8", nb)
                for digit in range(2):
                    found, slot = self.dot.lookup(held[2 * half + digit], field), (2 * v + digit) * nb
                    if half or not begin:
                        found = k.load(sums, slot, nb) + found
                    k.store(sums, slot, found, nb)

    def _table(self, at: Any) -> Any:
        """A table in every 128 bits of a vector."""
        T, k, nb = self.T, self.k, self.bytes
        entries = k.load(k.arg("tables"), at, ENTRIES)
        return self._held(T.Shuffle([entries] * (nb // ENTRIES), [T.int32(lane) for lane in range(nb)]), "uint8", nb)

    def _held(self, value: Any, dtype: str, lanes: int) -> Any:
        held = self.k.local(lanes, dtype)
        self.k.store(held, 0, value, lanes)
        return self.k.load(held, 0, lanes)

    def _finish(self, vector: int, sums: Any, add: Callable[[int, Any], None]) -> None:
        """Both digits of a vector's rows, multiplied and joined."""
        T, k, n, nb, words = self.T, self.k, self.lanes, self.bytes, self.bytes // 2
        times = k.splat(T.Cast("int16", k.load(k.arg("levels"), 2)), words)
        digits = []
        for digit in range(2):
            products = self.dot.pairs(k.load(sums, (2 * vector + digit) * nb, nb), times)
            digits.append(self._held(products, "int16", words))
        base = T.reinterpret(f"int16x{words}", k.splat(T.int32(1 << 16 | 1 << _BASE_BITS), n))
        for half in range(2):
            order = [8 * part + 4 * half + i + of for part in range(words // 8) for i in range(4) for of in (0, words)]
            add((2 * vector + half) * n, self.dot.multiply_add(k.shuffle(*digits, order), base))
