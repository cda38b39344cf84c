"""Tables of 128 bytes, looked up a vector of 7-bit codes at a time by byte shuffles (AVX2) or tbl (aarch64).

vpshufb sees 16 entries and gives zero where the index is negative. Slices of the table are stored as differences to the slice before,
so that the looked-up bytes of all slices up to the code's own add up to its entry: an index 16 less for every slice is all it
takes. Exclusive or and addition take turns, so that LLVM makes no tree of them, for which there are too few registers.
tbl sees 64 entries, tbx keeps what it has where the index is out of range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

ENTRIES = 128
_SLICE = 16


def store(k: Any, buffer: Any, at: Any, slices: Sequence[Any]) -> None:
    """Write a table, eight vectors of 16 int8, as it will be read."""
    n, before = _SLICE, None
    for i, value in enumerate(slices):
        held = k.local(n, "int8")
        k.store(held, 0, value, n)
        now = k.load(held, 0, n)
        stored = now
        if before is not None and k.target.arch == "x86_64":
            stored = now ^ before if i % 2 else now - before
        k.store(buffer, at + i * n, stored, n)
        before = now


def look_up(k: Any, buffer: Any, tables: Sequence[Any], codes: Any) -> list[Any]:
    """aarch64: what each of the tables that begin at buffer[`tables`] has for `codes` (int8 vector, 0 to 127, held in a register)."""
    return [_by_tbl(k, buffer, first, codes) for first in tables]


def look_up_together(k: Any, buffer: Any, tables: Sequence[Any], codes: Sequence[Any]) -> list[list[Any]]:
    """AVX2: [vector of codes][table] as `look_up`, for several vectors at once, so that slices are loaded once."""
    T, n = k.T, 4 * k.lanes
    # 16, but LLVM does not know that no thread begins below 0: it would load a constant of its own for every slice.
    width = k.splat(T.Cast("int8", T.int32(_SLICE) - (k.lo >> T.int32(31))), n)
    now = list(codes)
    found: list[list[Any]] = [[None] * len(tables) for _ in codes]
    for i in range(ENTRIES // _SLICE):
        entries = [k.load(buffer, first + i * _SLICE, _SLICE) for first in tables]
        both = [_held(k, k.shuffle(e, e, range(n))) for e in entries]
        for v, of_vector in enumerate(found):
            if i:
                now[v] = _held(k, now[v] - width)
            for number, table in enumerate(both):
                part = T.call_llvm_pure_intrin(f"int8x{n}", "llvm.x86.avx2.pshuf.b", table, now[v])
                before = of_vector[number]
                of_vector[number] = _held(k, part if not i else before ^ part if i % 2 else before + part)
    return found


def look_up_nibbles(k: Any, entries: Any, codes: Any) -> Any:
    """What a table of 16 int8 has for `codes` (int8 vector, 0 to 15)."""
    n = 4 * k.lanes
    if k.target.arch != "x86_64":
        return _held(k, k.T.call_llvm_pure_intrin("int8x16", "llvm.aarch64.neon.tbl1.v16i8", entries, codes))
    both = k.shuffle(entries, entries, range(n))
    return _held(k, k.T.call_llvm_pure_intrin(f"int8x{n}", "llvm.x86.avx2.pshuf.b", both, codes))


def unpacked(k: Any, lower: Any, upper: Any, part: int) -> Any:
    """AVX2: half of the words (int16) that two vectors of bytes are, what lies side by side in every 128 bits; `UNPACKED` says which."""
    n = 4 * k.lanes
    order = [
        lane + side
        for first in range(0, n, 16)
        for lane in range(first + 8 * part, first + 8 * part + 8)
        for side in (0, n)
    ]
    return k.T.reinterpret(f"int16x{n // 2}", k.shuffle(lower, upper, order))


UNPACKED = np.arange(32).reshape(2, 2, 8).transpose(1, 0, 2).reshape(-1)
"""Of 32 bytes in this order the first half of the words are those of the bytes 0 to 15."""


def _held(k: Any, value: Any) -> Any:
    n = 4 * k.lanes
    held = k.local(n, "int8")
    k.store(held, 0, value, n)
    return k.load(held, 0, n)


def _by_tbl(k: Any, buffer: Any, first: Any, codes: Any) -> Any:
    def four(at: int) -> list[Any]:
        return [k.load(buffer, first + at + i * _SLICE, _SLICE) for i in range(4)]

    low = k.T.call_llvm_pure_intrin("int8x16", "llvm.aarch64.neon.tbl4.v16i8", *four(0), codes)
    above = codes - k.splat(k.T.int8(64), 16)
    return _held(k, k.T.call_llvm_pure_intrin("int8x16", "llvm.aarch64.neon.tbx4.v16i8", low, *four(64), above))
