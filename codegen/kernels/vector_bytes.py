"""Products of rounded inputs and a mirrored vector codebook looked up byte by byte, for vector_gemv.py on AVX2 and aarch64.

A table of 128 products of 16 bits is two of 128 bytes (isa/byte_table.py); the last bit of a code says whether its product is
subtracted. Sums are exact:

* x86 puts the bytes together again and sums as AVX-512 does: modulo 2**16 in `low`, the upper bytes in `high`.
* aarch64 has products that widen, so the lower bytes are signed, and both are multiplied by 1 or -1 and summed in 16 bits each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsec.codegen.isa import byte_table
from sparsec.codegen.isa.memory import prefetch
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels.vector_sums import WholeSums
from sparsec.codegen.kernels.vector_weights import units_of_bytes


class FromBytes(WholeSums):
    """A word is the codes of as many units as share a pass over the outputs."""

    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.lanes, self.units = 4 * k.lanes, units_of_bytes(k.target)
        super().__init__(p, k)
        self.x86 = k.target.arch == "x86_64"

    def _span(self, span: Any, words: Any) -> None:
        T, k, half = self.T, self.k, self.lanes // 2
        for name in ("low", "high"):
            self._clear(name, k.splat(T.int16(0), half), half)
        with T.serial(0, words) as i:
            word = bind(k, span * self.span + i)
            for unit in range(self.units):
                self._table(word * (4 * self.units) + 4 * unit, unit * 2 * byte_table.ENTRIES)
            together = 1 if self.x86 else 2
            self._each(self.lanes, lambda at: self._add_all(word, at, together), step=together)
        self._each(16, lambda at: self._flush(span, at))

    def _table(self, x0: Any, to: int) -> None:
        """Products of four inputs with half the codebook: lower bytes, upper bytes."""
        T, k, n = self.T, self.k, 16
        x = [bind(k, k.splat(T.Cast("int16", k.load(k.arg("xq"), x0 + e)), n)) for e in range(4)]
        lower, upper = [], []
        for at in range(0, byte_table.ENTRIES, n):
            first, second, third, fourth = (k.load(k.arg("book"), 256 * e + at, n) * x[e] for e in range(4))
            held = k.local(n, "int16")
            k.store(held, 0, (first + second) + (third + fourth), n)
            products = k.load(held, 0, n)
            lower.append(T.Cast(f"int8x{n}", products))
            if not self.x86:  # lower bytes are signed: what they lack is in the upper ones
                products = products + k.splat(T.int16(128), n)
            upper.append(T.Cast(f"int8x{n}", products >> k.splat(T.int16(8), n)))
        byte_table.store(k, k.arg("products"), to, lower)
        byte_table.store(k, k.arg("products"), to + byte_table.ENTRIES, upper)

    def _add_all(self, word: Any, at: Any, vectors: int) -> None:
        for i in range(vectors):
            self._add(word, at + i * self.lanes)

    def _add(self, word: Any, at: Any) -> None:
        T, k, n = self.T, self.k, self.lanes
        if self.x86:  # the next word's codes lie a page or more ahead
            prefetch(k, k.arg("codes"), ((word + 1) * self.rows + self.first + at) * self.units)
        found = []
        for unit in range(self.units):
            codes = k.local(2 * n, "int8")
            from_ = (word * self.rows + self.first + at) * self.units + unit * n
            k.store(codes, 0, T.reinterpret(f"int8x{n}", k.load(k.arg("codes"), from_, n)), n)
            k.store(codes, n, k.load(codes, 0, n) & k.splat(T.int8(127), n), n)
            table = unit * 2 * byte_table.ENTRIES
            starts = (table, table + byte_table.ENTRIES)
            lower, upper = byte_table.look_up(k, k.arg("products"), starts, k.load(codes, n, n))
            found.append((lower, upper, k.load(codes, 0, n)))
        if self.x86:
            self._add_words(at, found)
        else:
            self._add_bytes(at, found)

    def _add_words(self, at: Any, found: list[tuple[Any, Any, Any]]) -> None:
        T, k, n, half = self.T, self.k, self.lanes, self.lanes // 2
        eight = k.splat(T.int16(8), half)
        ones = k.splat(T.int8(1), n)
        for part in range(2):
            # what unpacking puts side by side in every 128 bits; `pack` has the codes in the order that this asks for
            order = [
                lane + side
                for first in range(0, n, 16)
                for lane in range(first + 8 * part, first + 8 * part + 8)
                for side in (0, n)
            ]
            low, high = [], []
            for lower, upper, codes in found:
                product, sign = (
                    T.reinterpret(f"int16x{half}", k.shuffle(a, b, order)) for a, b in ((lower, upper), (ones, codes))
                )
                signed = k.local(half, "int16")
                value = T.call_llvm_pure_intrin(f"int16x{half}", "llvm.x86.avx2.psign.w", product, sign)
                k.store(signed, 0, value, half)
                low.append(k.load(signed, 0, half))
                high.append(k.load(signed, 0, half) >> eight)
            for name, values in (("low", low), ("high", high)):
                to = at + part * half
                k.store(k.arg(name), to, k.load(k.arg(name), to, half) + sum(values[1:], values[0]), half)

    def _add_bytes(self, at: Any, found: list[tuple[Any, Any, Any]]) -> None:
        T, k, n = self.T, self.k, self.lanes
        for lower, upper, codes in found:
            signs = k.local(n, "int8")
            k.store(signs, 0, (codes >> k.splat(T.int8(7), n)) | k.splat(T.int8(1), n), n)
            for name, values in (("low", lower), ("high", upper)):
                wide = T.Cast(f"int16x{n}", values) * T.Cast(f"int16x{n}", k.load(signs, 0, n))
                k.store(k.arg(name), at, k.load(k.arg(name), at, n) + wide, n)

    def _whole(self, at: Any, n: int) -> Any:
        if self.x86:
            return super()._whole(at, n)
        T, k = self.T, self.k
        low, high = (T.Cast(f"int32x{n}", k.load(k.arg(name), at, n)) for name in ("low", "high"))
        return (high << k.i32(8, n)) + low
