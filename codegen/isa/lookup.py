"""Table lookup on vectors of codes, per instruction set."""

from __future__ import annotations

from typing import Any


def permute_width(target: Any) -> int:
    """Largest table one lookup can hold in registers (0: none; lookups go through memory)."""
    return 16 if target.arch == "x86_64" else 0


class RegisterTable:
    """A table of at most 16 float32 held in vector registers: vpermps on AVX2 (two halves and a blend) and AVX-512."""

    def __init__(self, k: Any, buffer: Any, base: Any) -> None:
        """Load 16 entries of `buffer` from index `base` on (the buffer is padded to 16)."""
        self.k = k
        step = k.lanes
        self.parts = [k.T.Bind(k.load(buffer, base + at, step)) for at in range(0, 16, step)]

    def __call__(self, codes: Any) -> Any:
        """float32 vector table[codes] for an int32 vector of `k.lanes` codes."""
        k, T = self.k, self.k.T
        if k.lanes == 16:
            return T.call_llvm_pure_intrin("float32x16", "llvm.x86.avx512.permvar.sf.512", self.parts[0], codes)
        low, high = (T.call_llvm_pure_intrin("float32x8", "llvm.x86.avx2.permps", part, codes) for part in self.parts)
        return T.Select(codes > k.i32(7, 8), high, low)


def gather(buffer: Any, index: Any) -> Any:
    """buffer[index] lane by lane."""
    return buffer[index]
