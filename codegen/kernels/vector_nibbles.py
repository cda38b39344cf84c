"""Products of rounded inputs and a vector codebook whose codes are two of four bits, for vector_gemv.py on AVX2 and aarch64.

Eight bits for four inputs are two entries that lie side by side (`vq2d2`) or add up (`vq2d4.x2`). Either way the products of the
two do add up, and tables of 16 take one byte shuffle (vpshufb, tbl) for each byte. Sums are exact:

* x86 puts bytes together and sums modulo 2**16 in `low`, the upper bytes of the products of a unit in `high`.
* aarch64 has additions that widen, so the lower bytes are signed, and both are summed in 16 bits each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsec.codegen.isa import byte_table
from sparsec.codegen.isa.memory import prefetch
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels.vector_sums import WholeSums
from sparsec.codegen.kernels.vector_weights import NIBBLE_UNITS

_ENTRIES = 16
_TABLE = 4 * _ENTRIES  # of a unit: lower and upper bytes for the lower bits of a code, then for the upper ones
TABLES = NIBBLE_UNITS * _TABLE


class Nibbles(WholeSums):
    """A word is the codes of four units."""

    units = NIBBLE_UNITS

    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.lanes = 4 * k.lanes
        super().__init__(p, k)
        self.x86 = k.target.arch == "x86_64"

    def _span(self, span: Any, words: Any) -> None:
        with self._words(span, words) as word:
            with self.T.serial(0, NIBBLE_UNITS) as unit:
                self._tables(word * (4 * NIBBLE_UNITS) + unit * 4, unit)
            self._each(self.lanes, lambda at: self._add(word, at))
        sums = self._sums_modulo if self.x86 else self._sums_of_bytes
        self._each(16, lambda at: self._flush(span, at, sums(at, 16)))

    def _tables(self, x0: Any, unit: Any) -> None:
        """Products of four inputs with both halves of a code."""
        T, k, n = self.T, self.k, _ENTRIES
        x = [bind(k, k.splat(T.Cast("int16", k.load(k.arg("xq"), x0 + e)), n)) for e in range(4)]
        for half in range(2):
            first, second, third, fourth = (k.load(k.arg("book"), (4 * half + e) * n, n) * x[e] for e in range(4))
            held = k.local(n, "int16")
            k.store(held, 0, (first + second) + (third + fourth), n)
            products = k.load(held, 0, n)
            to = unit * _TABLE + 2 * n * half
            k.store(k.arg("products"), to, T.Cast(f"int8x{n}", products), n)
            if not self.x86:  # lower bytes are signed: what they lack is in the upper ones
                products = products + k.splat(T.int16(128), n)
            k.store(k.arg("products"), to + n, T.Cast(f"int8x{n}", products >> k.splat(T.int16(8), n)), n)

    def _add(self, word: Any, at: Any) -> None:
        """The products of a word of a vector of outputs."""
        k, n = self.k, self.lanes
        low, high = k.local(n, "int16"), k.local(n, "int16")
        for name, local in (("low", low), ("high", high)):
            k.store(local, 0, k.load(k.arg(name), at, n), n)
        for unit in range(NIBBLE_UNITS):
            codes = bind(k, ((word * self.rows + self.first + at) * NIBBLE_UNITS) + unit * n)
            if unit % 2 == 0 and self.x86:  # the next word's codes lie a page or more ahead
                prefetch(k, k.arg("codes"), codes + self.rows * NIBBLE_UNITS)
            held = k.local(n, "uint8")
            k.store(held, 0, k.load(k.arg("codes"), codes, n), n)
            self._add_unit(unit, k.load(held, 0, n), low, high)
        for name, local in (("low", low), ("high", high)):
            k.store(k.arg(name), at, k.load(local, 0, n), n)

    def _add_unit(self, unit: int, codes: Any, low: Any, high: Any) -> None:
        T, k, n = self.T, self.k, self.lanes
        halves = codes & k.splat(T.uint8(15), n), codes >> k.splat(T.uint8(4), n)
        found = []  # lower and upper bytes for the lower half of the code, then for the upper one
        for half, bits in enumerate(halves):
            held = k.local(n, "int8")
            k.store(held, 0, T.reinterpret(f"int8x{n}", bits), n)
            for byte in range(2):
                entries = k.load(k.arg("products"), unit * _TABLE + (2 * half + byte) * _ENTRIES, _ENTRIES)
                found.append(byte_table.look_up_nibbles(k, entries, k.load(held, 0, n)))
        if not self.x86:
            for local, first, second in ((low, found[0], found[2]), (high, found[1], found[3])):
                wide = T.Cast(f"int16x{n}", first) + T.Cast(f"int16x{n}", second)
                k.store(local, 0, k.load(local, 0, n) + wide, n)
            return
        half_vector = n // 2
        for part in range(2):
            words = [byte_table.unpacked(k, found[i], found[i + 1], part) for i in (0, 2)]
            held = k.local(half_vector, "int16")
            k.store(held, 0, words[0] + words[1], half_vector)
            product, to = k.load(held, 0, half_vector), part * half_vector
            k.store(low, to, k.load(low, to, half_vector) + product, half_vector)
            upper = product >> k.splat(T.int16(8), half_vector)
            k.store(high, to, k.load(high, to, half_vector) + upper, half_vector)
