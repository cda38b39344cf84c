"""Products of 7-bit tables on x86 without VNNI, with four quads summed in 16 bits (gemv.py).

A product of a pair of weights (in [1, 127]: the table's entries plus 64) and inputs nearly fills 16 bits. But what is wanted is the
product with the entries, [-63, 63]: a sum of eight of those fits as long as the eight |inputs| add up to at most 520. So
sums may wrap if they begin at -64 times the sum of their inputs, which is the same for all weights. Inputs that are rounded with a
scale for the whole row are small enough nearly everywhere; for steps in which one of the rows is not, products go the slow way.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from sparsec.codegen.isa import dot
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels.gemv_rounding import ROWS_AT_ONCE, STEP, padded_width, rows_of_block
from sparsec.codegen.program import Arg
from sparsec.int8 import TABLE_MAX
from sparsec.target import Target

# Quads summed in 16 bits.
QUADS = 4
_INPUTS = 4 * QUADS
# Bytes of a tile's decoded weights that stay in the first cache beside the rest.
_NEAR = 16 << 10
# What the |inputs| of a 16-bit lane may add up to.
LIMIT = 32767 // TABLE_MAX


def applies(p: Mapping[str, Any], target: Target) -> bool:
    """Whether the kernel joins quads: several rows of x against tables, blocks of one step, one scale for a row of x."""
    w = p["w"]
    tables = w["kind"] != "affine" and not w["sparse"] and w["block"] == STEP and not w["one_block"]
    x86 = target.arch == "x86_64" and not target.vnni
    return bool(x86 and tables and not p["x_group"] and rows_of_block(p["m"]) > ROWS_AT_ONCE)


def work_arguments(p: Mapping[str, Any]) -> list[Arg]:
    """Scratch: where sums begin, two 16-bit numbers for four quads; and by step whether the inputs are too large."""
    inputs = rows_of_block(p["m"]) * padded_width(p["w"])
    return [Arg("begins", "int32", inputs // _INPUTS + 4, "work"), Arg("large", "int32", inputs // STEP + 2, "work")]


class Joined:
    """Writes the code (`k`: KernelBuilder; `vectors`: of a tile)."""

    def __init__(self, p: Mapping[str, Any], k: Any, vectors: int) -> None:
        self.k, self.T, self.vectors = k, k.T, vectors
        self.dot, self.width = dot.ByteDot(k), padded_width(p["w"])
        # Sums of four rows do not all fit the registers: three are faster, unless weights come from the second cache.
        near = self.width * self.vectors * self.dot.bytes // 4 <= _NEAR
        self.rows_at_once = ROWS_AT_ONCE - 1 if self.dot.wide and near else ROWS_AT_ONCE

    def prepare(self, rows: int) -> None:
        """`begins` and `large` of the rounded rows. The last vector of a row may reach into what the next row overwrites."""
        T, k, nb = self.T, self.k, self.dot.bytes
        half = nb // 2
        with T.serial(0, rows) as row, T.serial(0, ceil(self.width / nb)) as i:
            held = k.local(nb, "int8")
            k.store(held, 0, k.load(k.arg("xq"), row * self.width + i * nb, nb), nb)
            x = k.load(held, 0, nb)
            sums = self._over_quads(self.dot.pairs(k.splat(T.uint8(1), nb), x))
            begins = self._words(sums * k.splat(T.int16(-dot.TABLE_OFFSET), half))
            for part in range(nb // _INPUTS):
                at = row * (self.width // _INPUTS) + (i * (nb // _INPUTS) + part)
                k.store(k.arg("begins"), at, k.load(begins, part * 4))
            size = T.max(x, k.splat(T.int8(0), nb) - x)
            sums = self._over_quads(self.dot.pairs(size, k.splat(T.int8(1), nb)))
            # the sign bit tells
            large = self._words((sums + k.splat(T.int16(32767 - LIMIT), half)) & k.splat(T.int16(-32768), half))
            for part in range(nb // STEP):
                either = k.load(large, part * 8) | k.load(large, part * 8 + 4)
                k.store(k.arg("large"), row * (self.width // STEP) + (i * (nb // STEP) + part), either)

    def _over_quads(self, sums: Any) -> Any:
        """Of the pairs of four quads (int16), in all four of them."""
        half = self.dot.bytes // 2
        for by in (4, 2):
            held = self.k.local(half, "int16")
            self.k.store(held, 0, sums, half)
            sums = self.k.load(held, 0, half)
            order = [self.T.int32(i // 8 * 8 + (i + by) % 8) for i in range(half)]
            sums = sums + self.T.Shuffle([sums], order)
        return sums

    def _words(self, sums: Any) -> Any:
        n = self.dot.lanes
        words = self.k.local(n, "int32")
        self.k.store(words, 0, self.T.reinterpret(f"int32x{n}", sums), n)
        return words

    def fits(self, row0: Any, rows: int, block: Any) -> Any:
        """Whether no row has large inputs in a block."""
        k, result = self.k, None
        for row in range(rows):
            large = k.load(k.arg("large"), (row0 + row) * (self.width // STEP) + block)
            result = large if result is None else result | large
        return result == 0

    def products(self, row0: Any, rows: int, block: Any, acc: Any) -> None:
        """acc = the products of one block; decoded weights."""
        T, k, n, nb = self.T, self.k, self.dot.lanes, self.dot.bytes
        half = nb // 2
        at = bind(k, block * (STEP // 4 * self.vectors * nb))
        x0 = [bind(k, (row0 + row) * self.width + block * STEP) for row in range(rows)]
        for join in range(STEP // _INPUTS):
            pairs = k.local(rows * self.vectors * half, "int16")
            for row in range(rows):
                begin = k.load(
                    k.arg("begins"), (row0 + row) * (self.width // _INPUTS) + block * (STEP // _INPUTS) + join
                )
                spread = T.reinterpret(f"int16x{half}", k.splat(begin, n))
                for v in range(self.vectors):
                    k.store(pairs, (row * self.vectors + v) * half, spread, half)
            for quad in range(join * QUADS, join * QUADS + QUADS):
                weights = k.local(self.vectors * nb, "uint8")
                for v in range(self.vectors):
                    held = k.load(k.arg("decoded"), at + (quad * self.vectors + v) * nb, nb)
                    k.store(weights, v * nb, held, nb)
                for row in range(rows):
                    x = self.dot.broadcast(T.reinterpret("int32", k.load(k.arg("xq"), x0[row] + quad * 4, 4)))
                    for v in range(self.vectors):
                        place = (row * self.vectors + v) * half
                        product = self.dot.pairs(k.load(weights, v * nb, nb), x)
                        k.store(pairs, place, k.load(pairs, place, half) + product, half)
            for slot in range(rows * self.vectors):
                wide = self.dot.widen(k.load(pairs, slot * half, half))
                k.store(acc, slot * n, wide + k.load(acc, slot * n, n) if join else wide, n)
