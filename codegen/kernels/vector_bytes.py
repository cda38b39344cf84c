"""Products of rounded inputs and a mirrored vector codebook looked up byte by byte, for vector_gemv.py on aarch64.

A table of 128 products of 16 bits is two of 128 bytes (isa/byte_table.py), which fill half of the registers; the last bit of a code says
whether its product is subtracted. Sums are exact: there are products that widen, so the lower bytes are signed, and both are multiplied
by 1 or -1 and summed in 16 bits each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsec.codegen.isa import byte_table
from sparsec.codegen.kernels.vector_sums import WholeSums


class FromBytes(WholeSums):
    """A word is the code of one unit."""

    units = 1

    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.lanes = 4 * k.lanes
        super().__init__(p, k)

    def _span(self, span: Any, words: Any) -> None:
        with self._words(span, words) as word:
            self._table(word * 4)
            self._each(self.lanes, lambda at: self._add_two(word, at), step=2)
        self._each(16, lambda at: self._flush(span, at, self._sums_of_bytes(at, 16)))

    def _table(self, x0: Any) -> None:
        """Products of four inputs with half the codebook: lower bytes, upper bytes."""
        T, k, n = self.T, self.k, 16
        lower, upper = [], []
        for products in self._products(x0):
            lower.append(T.Cast(f"int8x{n}", products))
            # lower bytes are signed: what they lack is in the upper ones
            upper.append(T.Cast(f"int8x{n}", (products + k.splat(T.int16(128), n)) >> k.splat(T.int16(8), n)))
        byte_table.store(k, k.arg("products"), 0, lower)
        byte_table.store(k, k.arg("products"), byte_table.ENTRIES, upper)

    def _add_two(self, word: Any, at: Any) -> None:
        for i in range(2):
            self._add(word, at + i * self.lanes)

    def _add(self, word: Any, at: Any) -> None:
        T, k, n = self.T, self.k, self.lanes
        codes = k.local(2 * n, "int8")
        k.store(codes, 0, T.reinterpret(f"int8x{n}", k.load(k.arg("codes"), word * self.rows + self.first + at, n)), n)
        k.store(codes, n, k.load(codes, 0, n) & k.splat(T.int8(127), n), n)
        found = byte_table.look_up(k, k.arg("products"), (0, byte_table.ENTRIES), k.load(codes, n, n))
        signs = k.local(n, "int8")
        k.store(signs, 0, (k.load(codes, 0, n) >> k.splat(T.int8(7), n)) | k.splat(T.int8(1), n), n)
        for name, values in zip(("low", "high"), found, strict=True):
            wide = T.Cast(f"int16x{n}", values) * T.Cast(f"int16x{n}", k.load(signs, 0, n))
            k.store(k.arg(name), at, k.load(k.arg(name), at, n) + wide, n)
