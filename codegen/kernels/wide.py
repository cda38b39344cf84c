"""Products of 8-bit codes on x86 without VNNI (gemv.py): two of them do not fit the 16 bits that byte products have.

Even and odd codes are taken out as numbers of 16 bits, and pairs of them multiplied into 32 bits, exactly. The inputs wait as such numbers
too, in `words`: for each quad its even pair, then its odd one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsec.codegen.isa import dot
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels.gemv_rounding import STEP, padded_width, rows_of_block
from sparsec.codegen.program import Arg
from sparsec.target import Target


def applies(p: Mapping[str, Any], target: Target) -> bool:
    """Whether codes fill bytes and the target has no products of bytes that fit."""
    return bool(p["w"]["bits"] == 8 and target.arch == "x86_64" and not target.vnni)


def work_arguments(p: Mapping[str, Any]) -> list[Arg]:
    """Scratch: the inputs of a block of rows as 16-bit numbers, two to a word."""
    return [Arg("words", "int32", rows_of_block(p["m"]) * padded_width(p["w"]) // 2, "work")]


class Wide:
    """Writes the code (`k`: KernelBuilder)."""

    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.k, self.T, self.width = k, k.T, padded_width(p["w"])
        self.dot = dot.ByteDot(k)

    def prepare(self, rows: int) -> None:
        """xq of `rows` rows, one after the other -> `words`."""
        T, k, quads = self.T, self.k, STEP // 4
        order = [lane for quad in range(quads) for lane in (quad, quads + quad)]
        with T.serial(0, rows * self.width // STEP) as i:
            pairs = T.reinterpret(f"int16x{2 * quads}", k.load(k.arg("xq"), i * STEP, STEP))
            eight = k.splat(T.int16(8), 2 * quads)
            even, odd = (T.reinterpret(f"int32x{quads}", v >> eight) for v in (pairs << eight, pairs))
            k.store(k.arg("words"), i * (2 * quads), k.shuffle(even, odd, order), 2 * quads)

    def products(self, weights: Sequence[Any], x0: Sequence[Any], quad: int, acc: Any) -> None:
        """acc += the products of the vectors of a quad of the tile with every row; x0: where its step begins in xq, by row."""
        T, k, n, half = self.T, self.k, self.dot.lanes, self.dot.bytes // 2
        words = [T.reinterpret(f"uint16x{half}", vector) for vector in weights]
        even = [bind(k, T.reinterpret(f"int16x{half}", v & k.splat(T.uint16(255), half))) for v in words]
        odd = [bind(k, T.reinterpret(f"int16x{half}", v >> k.splat(T.uint16(8), half))) for v in words]
        for row, start in enumerate(x0):
            first = bind(k, start // 2)
            for pair, codes in enumerate((even, odd)):
                word = k.splat(k.load(k.arg("words"), first + (2 * quad + pair)), n)
                x = bind(k, T.reinterpret(f"int16x{half}", word))
                for v, code in enumerate(codes):
                    place = (row * len(weights) + v) * n
                    k.store(acc, place, k.load(acc, place, n) + self.dot.multiply_add(code, x), n)
