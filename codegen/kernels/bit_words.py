"""Sums of inputs chosen by bits, added up in words of 16 bits, for bit_gemv.py.

A sum of four inputs mostly is a byte (bit_tables.py). Pairs of such bytes are added up as they are, modulo 2**16, and those in odd places
alone, which says what is left for the even ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sparsec.codegen.isa import dot
from sparsec.codegen.isa.memory import prefetch_stream
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels import bit_tables
from sparsec.codegen.kernels.bit_inputs import ENTRIES

# Bytes of codes in one unrolled step.
_STEP = 8
_CACHE_LINE = 64


class Words:
    """Writes the code (`k`: KernelBuilder)."""

    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.p, self.k, self.T = p, k, k.T
        self.dot, self.tables = dot.ByteDot(k), bit_tables.Tables(p, k)
        self.lanes: int = k.lanes
        self.bytes: int = self.dot.bytes
        self.words = self.bytes // 2
        self.vectors: int = p["tile"] // self.bytes
        self.sums = 1 if p["one_sum"] else 2
        self.steps = p["block"] * p["bits"] // 8  # bytes of a row's codes in a block

    def prepare(self) -> None:
        """What all tiles share."""
        self.tables.write()

    def block(self, codes: Any, block: Any, add: Callable[[int, Any], None]) -> None:
        """add(first row, sums of products less what they begin with) for all vectors of a tile's rows; codes: where the tile's begin."""
        T, k, p = self.T, self.k, self.p
        sums = k.local(2 * self.sums * self.vectors * self.words, "uint16")
        from_ = bind(k, codes + block * (self.steps * p["tile"]))
        self._run(from_, bind(k, block * (self.steps * self.tables.of_byte)), sums)
        with T.serial(k.load(k.arg("firsts"), block), k.load(k.arg("firsts"), block + 1)) as again:
            byte = k.load(k.arg("again"), again)
            self._bytes(bind(k, codes + byte * p["tile"]), self.tables.again(again), 1, sums)
        for vector in range(self.vectors):
            self._finish(vector, sums, add)

    def _run(self, codes: Any, tables: Any, sums: Any) -> None:
        """sums = what the codes of a block find in its tables."""
        T, k = self.T, self.k
        whole, rest = divmod(self.steps, _STEP)
        begin = self.steps <= _STEP
        if not begin:
            for at in range(0, 2 * self.sums * self.vectors * self.words, self.words):
                k.store(sums, at, k.splat(T.uint16(0), self.words), self.words)

        def step(number: Any, count: int) -> None:
            first = bind(k, number * _STEP)
            from_, tables_ = codes + first * self.p["tile"], tables + first * self.tables.of_byte
            self._bytes(bind(k, from_), bind(k, tables_), count, sums, begin=begin)

        if whole > 1:
            with T.serial(0, whole) as i:
                step(i, _STEP)
        elif whole:
            step(T.int32(0), _STEP)
        if rest:
            step(T.int32(whole), rest)

    def _bytes(self, codes: Any, tables: Any, count: int, sums: Any, *, begin: bool = False) -> None:
        """Add what `count` bytes of every row's codes find in the tables that begin there; begin: to nothing."""
        T, k, p, nb = self.T, self.k, self.p, self.bytes
        for i in range(count):
            held = [self._table(tables + i * self.tables.of_byte + at) for at in range(0, self.tables.of_byte, ENTRIES)]
            for v in range(self.vectors):
                at = i * p["tile"] + v * nb
                packed = self._held(k.load(k.arg("codes"), codes + at, nb), "uint8", nb)
                if count > 1 and at % _CACHE_LINE == 0:
                    prefetch_stream(k, k.arg("codes"), codes + at, 1)
                for half in range(2):
                    found = self.dot.lookup(held[half % len(held)], self.dot.field(packed, 4 * half, 4))
                    words = self._held(T.reinterpret(f"uint16x{self.words}", found), "uint16", self.words)
                    for part, value in enumerate((words, words >> k.splat(T.uint16(8), self.words))):
                        slot = self._slot(v, half % self.sums, part)
                        if not (begin and i == 0 and half < self.sums):
                            value = k.load(sums, slot, self.words) + value
                        k.store(sums, slot, value, self.words)

    def _slot(self, vector: int, number: int, part: int) -> int:
        """Where the sums of a vector lie: `number` 1 those of bits b0 where they are apart; part 1: those of odd bytes alone."""
        slot: int = ((vector * self.sums + number) * 2 + part) * self.words
        return slot

    def _table(self, at: Any) -> Any:
        """A table in every 128 bits of a vector."""
        k, nb = self.k, self.bytes
        entries = k.load(k.arg("tables"), at, ENTRIES)
        return self._held(
            self.T.Shuffle([entries] * (nb // ENTRIES), [self.T.int32(lane) for lane in range(nb)]), "uint8", nb
        )

    def _held(self, value: Any, dtype: str, lanes: int) -> Any:
        held = self.k.local(lanes, dtype)
        self.k.store(held, 0, value, lanes)
        return self.k.load(held, 0, lanes)

    def _finish(self, vector: int, sums: Any, add: Callable[[int, Any], None]) -> None:
        """Both sums of a vector's rows, multiplied and joined."""
        T, k, n, words = self.T, self.k, self.lanes, self.words
        times = T.reinterpret(f"int16x{words}", k.splat(k.load(k.arg("levels"), 2), n))
        found = []
        for number in range(self.sums):
            both, odd = (k.load(sums, self._slot(vector, number, part), words) for part in range(2))
            even = self._held(both - (odd << k.splat(T.uint16(8), words)), "uint16", words)
            found.append((even, odd))
        for i in range(4):
            side, half = divmod(i, 2)
            other = found[1][side] if self.sums == 2 else k.splat(T.uint16(0), words)
            order = [part * 8 + half * 4 + j + of for part in range(words // 8) for j in range(4) for of in (0, words)]
            pairs = T.reinterpret(f"int16x{words}", k.shuffle(found[0][side], other, order))
            add(vector * self.bytes + i * n, self.dot.multiply_add(pairs, times))
