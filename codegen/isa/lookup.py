"""Table lookup on vectors of codes, per instruction set."""

from __future__ import annotations

from typing import Any

from sparsec.codegen.isa.vecmath import bind
from sparsec.target import Target

_FEWEST_ENTRIES = 16
# Entries that are looked up in registers sooner than in memory, by lanes of a vector: permutations of 8, of twice 16.
_MOST_ENTRIES = {8: 64, 16: 256}


def permute_width(target: Target) -> int:
    """Largest table one lookup can hold in registers (0: none; lookups go through memory)."""
    return _MOST_ENTRIES[target.lanes] if target.arch == "x86_64" else 0


def padded_entries(size: int) -> int:
    """Entries of the buffer of a RegisterTable of `size`: a power of two of at least 16."""
    return max(_FEWEST_ENTRIES, 1 << (size - 1).bit_length())


class RegisterTable:
    """A table of float32 held in vector registers: permutations of its parts (vpermps, vpermi2ps), of which the upper bits of a code
    choose one."""

    def __init__(self, k: Any, buffer: Any, base: Any, entries: int = _FEWEST_ENTRIES) -> None:
        """Load `entries` of `buffer` from index `base` on: a power of two, of at least as many as a vector has."""
        self.k = k
        self.parts = [bind(k, k.load(buffer, base + at, k.lanes)) for at in range(0, entries, k.lanes)]

    def __call__(self, words: Any, bit: int = 0) -> Any:
        """float32 vector of what the table has for the code that begins at `bit` of each word (int32); higher bits do not count."""
        k, T, n = self.k, self.k.T, self.k.lanes
        index = words >> k.i32(bit, n) if bit else words
        found = self._permuted(index)
        upper = bit + (n * len(self.parts) // len(found)).bit_length() - 1
        while len(found) > 1:
            top = bind(k, words << k.i32(31 - upper, n) if upper < 31 else words)
            pairs = zip(found[::2], found[1::2], strict=True)
            found, upper = [T.Select(top < k.i32(0, n), b, a) for a, b in pairs], upper + 1
        return found[0]

    def _permuted(self, index: Any) -> list[Any]:
        """What the parts have for the lower bits of `index`, which permutations read alone; AVX-512 sees two parts at once."""
        n, parts = self.k.lanes, self.parts
        if n == 16 and len(parts) > 1:
            pairs = zip(parts[::2], parts[1::2], strict=True)
            return [self._call("avx512.vpermi2var.ps.512", a, index, b) for a, b in pairs]
        return [self._call("avx512.permvar.sf.512" if n == 16 else "avx2.permps", part, index) for part in parts]

    def _call(self, name: str, *operands: Any) -> Any:
        return self.k.T.call_llvm_pure_intrin(f"float32x{self.k.lanes}", f"llvm.x86.{name}", *operands)


def gather(buffer: Any, index: Any) -> Any:
    """buffer[index] lane by lane."""
    return buffer[index]
