"""Products of rounded inputs and a vector codebook looked up in the level-1 cache, for vector_gemv.py on x86 without AVX-512.

Tables of several units of inputs (four each) lie there at once, 1 KB each. An output's sum takes one load and one addition a code.
Half of the codes are loaded byte by byte, half are taken out of words, so that neither loads nor integer operations are the limit
(Zen 5: 4.4 cycles for eight codes, 5.0 with bytes alone, 5.6 with words alone). Mirrored codebooks are looked up faster
(vector_mixed.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels.vector_sums import WholeSums


class FromMemory(WholeSums):
    """A word is `p["units"]` codes; sums are int32."""

    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.units, self.lanes = p["units"], k.lanes
        super().__init__(p, k)

    def _span(self, span: Any, words: Any) -> None:
        T, k, n = self.T, self.k, self.lanes
        self._clear("sums", k.i32(0, n), n)
        with T.serial(0, words) as i:
            word = bind(k, span * self.span + i)
            with T.serial(0, self.units) as unit:
                self._table(word * (4 * self.units) + 4 * unit, unit * 256)
            with T.serial(0, self.count) as at:
                self._add(word, at)
        self._each(16, lambda at: self._flush(span, at, k.load(k.arg("sums"), at, 16)))

    def _table(self, x0: Any, to: Any) -> None:
        """Products of four inputs with the codebook."""
        T, k, n = self.T, self.k, 2 * self.lanes
        x = [bind(k, k.splat(T.Cast("int16", k.load(k.arg("xq"), x0 + e)), n)) for e in range(4)]
        with T.serial(0, 256 // n) as i:
            first, second, third, fourth = (k.load(k.arg("book"), i * n + 256 * e, n) * x[e] for e in range(4))
            products = T.Cast(f"int32x{n}", (first + second) + (third + fourth))
            k.store(k.arg("products"), i * n + to, products, n)

    def _add(self, word: Any, at: Any) -> None:
        """The products of an output's codes."""
        T, k, codes = self.T, self.k, self.k.arg("codes")
        first = bind(k, (word * self.rows + self.first + at) * self.units)
        total = k.local(1, "int32")
        k.store(total, 0, k.load(k.arg("sums"), at))

        def add(unit: int, code: Any) -> None:
            k.store(total, 0, k.load(total, 0) + k.load(k.arg("products"), T.Cast("int32", code) + 256 * unit))

        for start in range(0, self.units, 4):
            if start % 8:
                for unit in range(start, start + 4):
                    add(unit, k.load(codes, first + unit))
                continue
            packed = k.local(1, "uint32")
            k.store(packed, 0, T.reinterpret("uint32", k.load(codes, first + start, 4)))
            for i in range(4):
                add(start + i, T.Cast("uint8", k.load(packed, 0) >> T.uint32(8 * i)))
        k.store(k.arg("sums"), at, k.load(total, 0))
