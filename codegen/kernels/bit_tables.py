"""Tables of sums of four rounded inputs, one sum for each choice of them, for bit_words.py.

An entry (bit_inputs.py) is at most the sum of the four |x|. Where that is no byte, the table is of two of its inputs alone, and codes
are looked up again in a table of the other two: `again` lists bytes of codes by blocks of inputs (block b's from firsts[b] to
firsts[b + 1]), their tables lie behind all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels.bit_inputs import ENTRIES, Inputs
from sparsec.codegen.kernels.bit_weights import spans, width
from sparsec.codegen.program import Arg

_LARGEST = 255


def work_arguments(p: Mapping[str, Any]) -> list[Arg]:
    """Scratch: tables, and the list."""
    inputs, blocks = width(p), width(p) // p["block"]
    return [
        Arg("tables", "uint8", 2 * inputs // 4 * ENTRIES, "work"),
        Arg("again", "int32", inputs * p["bits"] // 8, "work"),
        Arg("firsts", "int32", blocks + 1, "work"),
    ]


class Tables:
    """Writes the code (`k`: KernelBuilder) that makes tables; of_byte: bytes of the tables for a byte of codes."""

    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.p, self.k, self.T = p, k, k.T
        self.inputs, self.width = Inputs(p, k), width(p)
        self.quads = 3 - p["bits"]  # of a byte of codes
        self.bytes = p["block"] * p["bits"] // 8
        self.of_byte = self.quads * ENTRIES

    def again(self, number: Any) -> Any:
        """Where the tables of an entry of the list begin."""
        return number * self.of_byte + self.width // 4 * ENTRIES

    def write(self) -> None:
        T, k = self.T, self.k
        self.inputs.write()
        masks = [bind(k, mask) for mask in self._masks()]
        count = k.local(1, "int32")
        k.store(count, 0, T.int32(0))
        k.store(k.arg("firsts"), 0, T.int32(0))
        with T.serial(0, spans(self.p)) as block:
            with T.serial(0, self.bytes) as i:
                self._byte(bind(k, block * self.bytes + i), masks, count)
            k.store(k.arg("firsts"), block + 1, k.load(count, 0))

    def _masks(self) -> list[Any]:
        """All ones in the entries for which input number 0, 1, 2, 3 is chosen."""
        T, k, n = self.T, self.k, ENTRIES
        return [
            T.reinterpret(f"int8x{n}", k.splat(T.int16(-(1 << 8)), n // 2)),
            T.reinterpret(f"int8x{n}", k.splat(T.int32(-(1 << 16)), n // 4)),
            T.reinterpret(f"int8x{n}", k.splat(T.int64(-(1 << 32)), n // 8)),
            k.shuffle(k.splat(T.int8(0), 8), k.splat(T.int8(-1), 8), range(n)),
        ]

    def _byte(self, byte: Any, masks: Sequence[Any], count: Any) -> None:
        """The tables of a byte of codes."""
        T, k = self.T, self.k
        first = bind(k, byte * self.quads)
        size = k.load(k.arg("sizes"), first)
        for i in range(1, self.quads):
            size = T.max(size, k.load(k.arg("sizes"), first + i))
        with T.If(size <= _LARGEST):
            with T.Then():
                for i in range(self.quads):
                    lowest = k.splat(T.Cast("int8", k.load(k.arg("negatives"), first + i)), ENTRIES)
                    self._store((first + i) * ENTRIES, lowest, [self._chosen(first + i, e, masks) for e in range(4)])
            with T.Else():
                number = bind(k, k.load(count, 0))
                k.store(k.arg("again"), number, byte)
                k.store(count, 0, number + 1)
                for i in range(self.quads):
                    for to, two in (((first + i) * ENTRIES, (0, 1)), (self.again(number) + i * ENTRIES, (2, 3))):
                        lowest = self._below(first + i, two[0]) + self._below(first + i, two[1])
                        self._store(to, lowest, [self._chosen(first + i, e, masks) for e in two])

    def _store(self, to: Any, lowest: Any, chosen: list[Any]) -> None:
        table = sum(chosen, lowest)
        self.k.store(self.k.arg("tables"), to, self.T.reinterpret(f"uint8x{ENTRIES}", table), ENTRIES)

    def _input(self, quad: Any, number: int) -> Any:
        return bind(self.k, self.k.splat(self.k.load(self.k.arg("xq"), quad * 4 + number), ENTRIES))

    def _chosen(self, quad: Any, number: int, masks: Sequence[Any]) -> Any:
        return self._input(quad, number) & masks[number]

    def _below(self, quad: Any, number: int) -> Any:
        zero = self.k.splat(self.T.int8(0), ENTRIES)
        return self.T.max(zero - self._input(quad, number), zero)
