"""Products of rounded inputs and a mirrored vector codebook looked up in vectors and in memory at once, for vector_gemv.py on AVX2.

Looking products up by byte shuffles (isa/byte_table.py) keeps the vector unit busy, looking them up in the level-1 cache the integer
unit and the loads. So of each tile of outputs `BY_VECTORS` take the first way, `IN_MEMORY` the second, and the processor runs both
side by side (Zen 5, cycles for 32 codes: 14.1 in vectors alone, 18 in memory alone; 11.3 for 64 + 16 outputs, 11.9 for 64 + 12,
12.1 for 64 + 24).

In vectors a product p of 16 bits is looked up as two bytes of p + 2**15 for the first half of the codebook. The second half is its
negative: all bits are flipped, which is -p - 1 + 2**15, and `starts` says how many ones are lost. Sums are exact: `low` has them modulo
2**16, `high` an estimate, the sum of means of four upper bytes, which are rounded up three times. For n products the sum less 1024 times
the estimate lies in [-256 n, 256 n], starts included, and n = 124 leaves 2**16 no choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from sparsec.codegen.isa import byte_table
from sparsec.codegen.isa.memory import prefetch
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels.vector_sums import WholeSums
from sparsec.codegen.kernels.vector_weights import (
    BY_VECTORS,
    IN_MEMORY,
    MIXED_UNITS,
    padded_rows,
    span_of,
    tiles_at_once,
)
from sparsec.codegen.program import Arg

_TABLE = 2 * byte_table.ENTRIES
_CODES = MIXED_UNITS * (BY_VECTORS + IN_MEMORY)  # of a word of a tile

# Distance of the sums in memory: side by side they would be taken for lanes of a vector, and looked up by inserting products into it.
_APART = 2


def starts(p: Mapping[str, Any]) -> int:
    """How many starts of sums there are."""
    words = ceil(int(p["k"]) / 32) * 8 // MIXED_UNITS
    return ceil(words / span_of(p["group"])) * (padded_rows(p) // int(p["tile"])) * BY_VECTORS


def work_arguments(p: Mapping[str, Any]) -> list[Arg]:
    """Scratch: both kinds of tables, and both kinds of sums."""
    tiles = tiles_at_once(p)
    return [
        Arg("bytes", "int8", MIXED_UNITS * _TABLE, "work"),
        Arg("products", "int32", MIXED_UNITS * 256, "work"),
        Arg("uppers", "int8", MIXED_UNITS * BY_VECTORS, "work"),
        Arg("low", "int16", BY_VECTORS * tiles, "work"),
        Arg("high", "int16", BY_VECTORS * tiles, "work"),
        Arg("sums", "int32", _APART * IN_MEMORY * tiles, "work"),
    ]


class Mixed(WholeSums):
    """A word is the codes of four units."""

    lanes, units = 32, MIXED_UNITS

    def _span(self, span: Any, words: Any) -> None:
        T, k = self.T, self.k
        tiles = bind(k, T.truncdiv(self.count, self.tile))
        first = bind(k, T.truncdiv(self.first, self.tile))
        self._begin(span, first, tiles)
        with T.serial(0, words) as i:
            word = bind(k, span * self.span + i)
            with T.serial(0, MIXED_UNITS) as unit:
                self._tables(word * (4 * MIXED_UNITS) + unit * 4, unit)
            with T.serial(0, tiles) as tile:
                self._add(bind(k, (word * (self.rows // self.tile) + first + tile) * _CODES), tile)
        with T.serial(0, tiles) as tile:
            for part in range(0, self.tile, 16):
                if part < BY_VECTORS:
                    whole = self._sums(tile * BY_VECTORS + part, words)
                else:
                    first_sum = (tile * IN_MEMORY + (part - BY_VECTORS)) * _APART
                    whole = k.arg("sums")[T.ramp(first_sum, _APART, 16)]
                self._flush(span, bind(k, tile * self.tile + part), whole)

    def _begin(self, span: Any, first: Any, tiles: Any) -> None:
        """Sums before the first product."""
        T, k, n = self.T, self.k, 16
        begin = bind(k, (span * (self.rows // self.tile) + first) * BY_VECTORS)
        with T.serial(0, tiles * (BY_VECTORS // n)) as i:
            lost = k.load(k.arg("starts"), begin + i * n, n)
            k.store(k.arg("low"), i * n, T.Cast(f"int16x{n}", lost), n)
            k.store(k.arg("high"), i * n, k.splat(T.int16(0), n), n)
        with T.serial(0, tiles * (_APART * IN_MEMORY // k.lanes)) as i:
            k.store(k.arg("sums"), i * k.lanes, k.i32(0, k.lanes), k.lanes)

    def _tables(self, x0: Any, unit: Any) -> None:
        """Products of four inputs: with half the codebook in bytes, with all of it as int32."""
        T, k, n = self.T, self.k, 16
        lower, upper = [], []
        for i, products in enumerate(self._products(x0)):
            lower.append(T.Cast(f"int8x{n}", products))
            upper.append(T.Cast(f"int8x{n}", products >> k.splat(T.int16(8), n)) ^ k.splat(T.int8(-128), n))
            wide = T.Cast(f"int32x{n}", products)
            k.store(k.arg("products"), unit * 256 + i * n, wide, n)
            k.store(k.arg("products"), unit * 256 + (128 + i * n), k.i32(0, n) - wide, n)
        byte_table.store(k, k.arg("bytes"), unit * _TABLE, lower)
        byte_table.store(k, k.arg("bytes"), unit * _TABLE + byte_table.ENTRIES, upper)

    def _add(self, codes: Any, tile: Any) -> None:
        """The products of a word of a tile, whose codes begin at `codes`."""
        T, k = self.T, self.k
        low = k.local(BY_VECTORS, "int16")
        k.store(low, 0, k.load(k.arg("low"), tile * BY_VECTORS, BY_VECTORS), BY_VECTORS)
        following = bind(k, codes + self.rows * MIXED_UNITS)  # the next word, a page or more ahead
        prefetch(k, k.arg("codes"), following + MIXED_UNITS * BY_VECTORS)
        with T.serial(0, MIXED_UNITS) as unit:
            prefetch(k, k.arg("codes"), following + unit * BY_VECTORS)
            self._add_in_memory(codes, tile, unit)
            self._add_in_vectors(codes, unit, low)
        k.store(k.arg("low"), tile * BY_VECTORS, k.load(low, 0, BY_VECTORS), BY_VECTORS)
        self._estimate(tile)

    def _add_in_vectors(self, codes: Any, unit: Any, low: Any) -> None:
        """A unit of the outputs in vectors: to `low` and `uppers`."""
        T, k, n = self.T, self.k, self.lanes
        vectors = BY_VECTORS // n
        held = k.local(2 * BY_VECTORS, "int8")
        value = T.reinterpret(f"int8x{BY_VECTORS}", k.load(k.arg("codes"), codes + unit * BY_VECTORS, BY_VECTORS))
        k.store(held, 0, value, BY_VECTORS)
        for v in range(0, BY_VECTORS, n):
            k.store(held, BY_VECTORS + v, k.load(held, v, n) & k.splat(T.int8(127), n), n)
        found = byte_table.look_up_together(
            k,
            k.arg("bytes"),
            (unit * _TABLE, unit * _TABLE + byte_table.ENTRIES),
            [k.load(held, BY_VECTORS + v * n, n) for v in range(vectors)],
        )
        for v, (lower, upper) in enumerate(found):
            flip = k.local(n, "int8")
            k.store(flip, 0, k.load(held, v * n, n) >> k.splat(T.int8(7), n), n)
            values = k.local(2 * n, "int8")
            k.store(values, 0, lower ^ k.load(flip, 0, n), n)
            k.store(values, n, upper ^ k.load(flip, 0, n), n)
            for part in range(2):
                to = v * n + part * (n // 2)
                more = byte_table.unpacked(k, k.load(values, 0, n), k.load(values, n, n), part)
                k.store(low, to, k.load(low, to, n // 2) + more, n // 2)
            k.store(k.arg("uppers"), unit * BY_VECTORS + v * n, k.load(values, n, n), n)

    def _estimate(self, tile: Any) -> None:
        """high += the means of the upper bytes."""
        T, k, n = self.T, self.k, self.lanes
        for v in range(0, BY_VECTORS, n):
            first, second, third, fourth = (k.load(k.arg("uppers"), u * BY_VECTORS + v, n) for u in range(MIXED_UNITS))
            mean = self._mean(self._mean(first, second), self._mean(third, fourth))
            for part in range(2):
                to = tile * BY_VECTORS + (v + part * (n // 2))
                more = byte_table.unpacked(k, mean, k.splat(T.int8(0), n), part)
                k.store(k.arg("high"), to, k.load(k.arg("high"), to, n // 2) + more, n // 2)

    def _mean(self, left: Any, right: Any) -> Any:
        """(left + right + 1) / 2 of unsigned bytes: vpavgb."""
        T, k, n = self.T, self.k, self.lanes
        wide = [T.Cast(f"uint16x{n}", T.reinterpret(f"uint8x{n}", side)) for side in (left, right)]
        one = k.splat(T.uint16(1), n)
        held = k.local(n, "int8")
        k.store(held, 0, T.reinterpret(f"int8x{n}", T.Cast(f"uint8x{n}", (wide[0] + wide[1] + one) >> one)), n)
        return k.load(held, 0, n)

    def _add_in_memory(self, codes: Any, tile: Any, unit: Any) -> None:
        """All units of the outputs in memory whose turn it is while a unit of the others is looked up."""
        T, k, each = self.T, self.k, IN_MEMORY // MIXED_UNITS
        for i in range(each):
            output = bind(k, unit * each + i)
            at = bind(k, (tile * IN_MEMORY + output) * _APART)
            total = k.local(1, "int32")
            k.store(total, 0, k.load(k.arg("sums"), at))
            for other in range(MIXED_UNITS):
                code = k.load(k.arg("codes"), codes + (MIXED_UNITS * (BY_VECTORS + output) + other))
                product = k.load(k.arg("products"), T.Cast("int32", code) + 256 * other)
                k.store(total, 0, k.load(total, 0) + product)
            k.store(k.arg("sums"), at, k.load(total, 0))

    def _sums(self, at: Any, words: Any) -> Any:
        """16 sums of vectors as int32."""
        T, k, n = self.T, self.k, 16
        low, high = (k.load(k.arg(name), at, n) for name in ("low", "high"))
        rest = T.Cast(f"int32x{n}", low - (high << k.splat(T.int16(10), n)))
        bias = k.splat(words * (MIXED_UNITS << 15), n)
        return (T.Cast(f"int32x{n}", high) << k.i32(10, n)) + rest - bias
