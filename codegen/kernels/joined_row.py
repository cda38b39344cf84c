"""Products of one row of x with 7-bit tables on x86 without VNNI, several quads summed in 16 bits (gemv.py).

Sums may wrap as long as what is wanted fits and they begin at the correction of the table's offset (joined.py says why). Two quads
always fit: their four inputs of a lane add up to 508 at most. Four quads take a sixth fewer instructions for products and sums; at
every fourth the kernel asks whether the inputs are small enough. Even where each 32 of them have a scale of their own, nine times in
ten they are (normally distributed).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

from sparsec.codegen.isa import dot
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels.gemv_rounding import STEP, padded_width
from sparsec.codegen.kernels.gemv_weights import Reader
from sparsec.codegen.kernels.joined import MOST, SURE
from sparsec.codegen.program import Arg
from sparsec.int8 import TABLE_MAX
from sparsec.target import Target

# What the |inputs| of a 16-bit lane may add up to: a table has entries of at most TABLE_MAX.
LIMIT = 32767 // TABLE_MAX
# `begins` has four words for every four quads: where the sum of all begins, where those of the first and of the last two begin, and
# what is not 0 where the inputs are too large.
_OF_MOST, _OF_SURE, _LARGE = 0, (1, 2), 3


def applies(p: Mapping[str, Any], target: Target) -> bool:
    """Whether the kernel joins quads of one row: against a table, blocks of whole fours."""
    w = p["w"]
    x86 = target.arch == "x86_64" and not target.vnni
    return bool(x86 and p["m"] == 1 and w["kind"] == "table" and not w["sparse"] and w["block"] % (4 * MOST) == 0)


def work_arguments(p: Mapping[str, Any], target: Target) -> list[Arg]:
    """Scratch: where sums begin, two 16-bit numbers a word."""
    return [Arg("begins", "int32", ceil(padded_width(p["w"]) / (4 * target.lanes)) * target.lanes, "work")]


class JoinedRow:
    """Writes the code (`k`: KernelBuilder; `vectors`: of a tile)."""

    def __init__(self, p: Mapping[str, Any], k: Any, vectors: int) -> None:
        self.k, self.T, self.vectors = k, k.T, vectors
        self.dot, self.width, self.block = dot.ByteDot(k), padded_width(p["w"]), int(p["w"]["block"])

    def prepare(self) -> None:
        """`begins` of the rounded row. The last vector may reach into what is no input."""
        T, k, n = self.T, self.k, self.dot.lanes
        nb, half = 4 * n, 2 * n
        with T.serial(0, ceil(self.width / nb)) as i:
            held = k.local(nb, "int8")
            k.store(held, 0, k.load(k.arg("xq"), i * nb, nb), nb)
            x = k.load(held, 0, nb)
            sure = self._added(self.dot.pairs(k.splat(T.uint8(1), nb), x), 2)
            most = self._added(sure, 4)
            size = self.dot.pairs(T.max(x, k.splat(T.int8(0), nb) - x), k.splat(T.int8(1), nb))
            size = self._added(self._added(size, 2), 4) + k.splat(T.int16(32767 - LIMIT), half)
            large = self._words(size & k.splat(T.int16(-32768), half))  # the sign bits tell
            by = k.splat(T.int16(-dot.TABLE_OFFSET), half)
            begins = k.shuffle(self._words(most * by), self._words(sure * by), self._where(_OF_SURE))
            k.store(k.arg("begins"), i * n, k.shuffle(begins, large, self._where((_LARGE,))), n)

    def _where(self, words: tuple[int, ...]) -> list[int]:
        """The order that takes these words of every four from a second vector."""
        n = self.dot.lanes
        return [n + i if i % MOST in words else i for i in range(n)]

    def _added(self, sums: Any, by: int) -> Any:
        """Numbers `by` apart (int16), added up in both."""
        held = self._held(sums)
        return held + self.T.Shuffle([held], [self.T.int32(i ^ by) for i in range(2 * self.dot.lanes)])

    def _held(self, sums: Any) -> Any:
        half = 2 * self.dot.lanes
        held = self.k.local(half, "int16")
        self.k.store(held, 0, sums, half)
        return self.k.load(held, 0, half)

    def _words(self, sums: Any) -> Any:
        return self.T.reinterpret(f"int32x{self.dot.lanes}", sums)

    def products(self, block: Any, weights: Callable[[Any], Reader], acc: Any) -> None:
        """acc += the products of one block; weights(step): how the quads of a step are read."""
        T, k, each = self.T, self.k, STEP // 4
        whole, rest = divmod(self.block // 4, each)

        def step(number: Any, quads: int) -> None:
            quad0 = bind(k, block * (self.block // 4) + number * each)
            for first in range(0, quads, MOST):
                with T.If(k.load(k.arg("begins"), quad0 + (first + _LARGE)) == 0):
                    with T.Then():
                        self._join(quad0, first, MOST, _OF_MOST, weights(number), acc)
                    with T.Else():
                        for part, word in enumerate(_OF_SURE):
                            self._join(quad0, first + part * SURE, SURE, word, weights(number), acc)

        if whole > 2:
            with T.serial(0, whole) as number:
                step(number, each)
        else:
            for at in range(whole):
                step(T.int32(at), each)
        if rest:
            step(T.int32(whole), rest)

    def _join(self, quad0: Any, first: int, quads: int, word: int, read: Reader, acc: Any) -> None:
        """acc += the products of `quads` quads, the step's `first` and those behind it. `word`: of four, where the sum begins."""
        T, k, n = self.T, self.k, self.dot.lanes
        half = 2 * n
        pairs = k.local(self.vectors * half, "int16")
        begin = k.load(k.arg("begins"), quad0 + (first // MOST * MOST + word))
        for v in range(self.vectors):
            k.store(pairs, v * half, T.reinterpret(f"int16x{half}", k.splat(begin, n)), half)
        for quad in range(first, first + quads):
            x = self.dot.broadcast(T.reinterpret("int32", k.load(k.arg("xq"), (quad0 + quad) * 4, 4)))
            for v in range(self.vectors):
                k.store(pairs, v * half, k.load(pairs, v * half, half) + self.dot.pairs(read(quad, v), x), half)
        for v in range(self.vectors):
            k.store(acc, v * n, k.load(acc, v * n, n) + self.dot.widen(k.load(pairs, v * half, half)), n)
