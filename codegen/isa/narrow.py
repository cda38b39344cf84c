"""Whole numbers in 32 bits to bytes, several vectors at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# 32-bit lanes in the order of the numbers, after AVX2 has packed four vectors half by half.
_IN_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


def store_bytes(k: Any, buffer: Any, at: Any, vectors: Sequence[Any], plus: int = 0) -> None:
    """buffer[at:] = the numbers (int32, in [-128, 127]) of `vectors`, which lie side by side, as int8; `plus` more, modulo 256.

    AVX2 truncates a vector with five instructions, and packs four with four.
    """
    T, n = k.T, k.lanes
    fours = len(vectors) // 4 if k.target.arch == "x86_64" and n == 8 else 0
    for i in range(0, 4 * fours, 4):
        halves = [_pack(k, "packssdw", "int16x16", *vectors[v : v + 2]) for v in (i, i + 2)]
        words = T.reinterpret("int32x8", _pack(k, "packsswb", "int8x32", *halves))
        ordered = T.Shuffle([words], [T.int32(lane) for lane in _IN_ORDER])
        k.store(buffer, at + i * n, _plus(k, T.reinterpret("int8x32", ordered), plus, 4 * n), 4 * n)
    for i in range(4 * fours, len(vectors)):
        k.store(buffer, at + i * n, _plus(k, T.Cast(f"int8x{n}", vectors[i]), plus, n), n)


def _pack(k: Any, name: str, dtype: str, low: Any, high: Any) -> Any:
    return k.T.call_llvm_pure_intrin(dtype, f"llvm.x86.avx2.{name}", low, high)


def _plus(k: Any, values: Any, plus: int, lanes: int) -> Any:
    wrapped = (plus + 128) % 256 - 128
    return values + k.splat(k.T.int8(wrapped), lanes) if wrapped else values
