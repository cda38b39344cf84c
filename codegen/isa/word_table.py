"""Tables of up to 256 words of 32 bits, or 512 of 16 bits, in AVX-512 registers.

A permutation of two registers looks up 5 (6) bits of a code, selections by its higher bits choose among the permutations: 8 and 7
instructions for 16 codes of 8 bits. Where gathers are slowed down by microcode they take three times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_SELECT = 0xCA  # vpternlog: a ? b : c, bit by bit


def in_registers(target: Any, entries: int, bits: int) -> bool:
    """Whether `entries` words of 32 bits, looked up by codes of `bits` bits, fit the registers beside everything else."""
    return bool(target.arch == "x86_64" and target.lanes == 16 and bits >= 4 and entries <= 256)


class WordTable:
    """A table in registers (`k`: KernelBuilder)."""

    def __init__(self, k: Any, parts: Sequence[Any], dtype: str = "int32") -> None:
        """parts: the entries, a vector of 512 bits each; dtype int16 or int32."""
        self.k, self.dtype, self.width = k, dtype, int(dtype[-2:])
        self.lanes = 512 // self.width
        self._table = k.local(len(parts) * self.lanes, dtype)
        for i, part in enumerate(parts):
            k.store(self._table, i * self.lanes, part, self.lanes)

    @classmethod
    def load(cls, k: Any, buffer: Any, first: Any, size: int) -> WordTable:
        """A table of `size` int32 entries (whole registers) of `buffer` from index `first` on."""
        return cls(k, [k.load(buffer, first + at, 16) for at in range(0, size, 16)])

    def __call__(self, words: Any, bit: int, bits: int, first: int = 0, masks: dict[int, Any] | None = None) -> Any:
        """table[first + codes], the codes at bits [bit, bit + bits) of every lane of `words` (as wide as entries, held in a
        register). masks: where selections by a bit of the same words are kept for the next table."""
        k, T, n, dtype = self.k, self.k.T, self.lanes, self.dtype
        within = n.bit_length() - 1  # bits of an index into one register
        masks = {} if masks is None else masks
        index = self._held(words >> self._splat(bit)) if bit else words

        def part(at: int) -> Any:
            return k.load(self._table, first + at * n, n)

        suffix = "hi" if self.width == 16 else "si"
        if bits <= within:
            return T.call_llvm_pure_intrin(f"{dtype}x{n}", f"llvm.x86.avx512.permvar.{suffix}.512", part(0), index)
        suffix = "hi" if self.width == 16 else "d"
        name = f"llvm.x86.avx512.vpermi2var.{suffix}.512"
        found = [
            self._held(T.call_llvm_pure_intrin(f"{dtype}x{n}", name, part(at), index, part(at + 1)))
            for at in range(0, 1 << (bits - within), 2)
        ]
        if len(found) == 2:  # for one selection a test is cheaper than a mask of sign bits
            return T.Select(self.has(words, bit + within + 1), found[1], found[0])
        for level in range(within + 1, bits):
            if bit + level not in masks:
                masks[bit + level] = self.sign(words, bit + level)
            found = [
                self._select(masks[bit + level], high, low) for low, high in zip(found[::2], found[1::2], strict=True)
            ]
        return found[0]

    def has(self, words: Any, bit: int) -> Any:
        """Which lanes have bit number `bit` set."""
        T, zero = self.k.T, self._splat(0)
        if bit == self.width - 1:
            return words < zero
        return (words & self.k.splat(T.int16(1 << bit) if self.width == 16 else T.int32(1 << bit), self.lanes)) != zero

    def sign(self, words: Any, bit: int) -> Any:
        """All ones in the lanes whose bit number `bit` is set, else zeros."""
        up = self._splat(self.width - 1 - bit)
        return self._held((words << up if bit < self.width - 1 else words) >> self._splat(self.width - 1))

    def _select(self, mask: Any, then: Any, other: Any) -> Any:
        T = self.k.T
        parts = [T.reinterpret("int32x16", value) for value in (mask, then, other)]
        chosen = T.call_llvm_pure_intrin("int32x16", "llvm.x86.avx512.pternlog.d.512", *parts, T.int32(_SELECT))
        return self._held(T.reinterpret(f"{self.dtype}x{self.lanes}", chosen))

    def _splat(self, value: int) -> Any:
        T = self.k.T
        return self.k.splat(T.int16(value) if self.width == 16 else T.int32(value), self.lanes)

    def _held(self, value: Any) -> Any:
        """`value`, computed once."""
        held = self.k.local(self.lanes, self.dtype)
        self.k.store(held, 0, value, self.lanes)
        return self.k.load(held, 0, self.lanes)
