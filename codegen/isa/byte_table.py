"""Tables of 128 bytes, looked up a vector of 7-bit codes at a time by byte shuffles (AVX2) or tbl (aarch64).

vpshufb sees 16 entries and gives zero where the index is negative. Slices of the table are stored as differences (exclusive or) to
the slice before, so that the looked-up bytes of all slices up to the code's own add up to its entry: an index 16 less for every
slice is all it takes. tbl sees 64 entries, tbx keeps what it has where the index is out of range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ENTRIES = 128
_SLICE = 16


def store(k: Any, buffer: Any, at: Any, slices: Sequence[Any]) -> None:
    """Write a table, eight vectors of 16 int8, as `look_up` reads it."""
    n, before = _SLICE, None
    for i, value in enumerate(slices):
        held = k.local(n, "int8")
        k.store(held, 0, value, n)
        now = k.load(held, 0, n)
        k.store(buffer, at + i * n, now if before is None or k.target.arch != "x86_64" else now ^ before, n)
        before = now


def look_up(k: Any, buffer: Any, tables: Sequence[Any], codes: Any) -> list[Any]:
    """What each of the tables that begin at buffer[`tables`] has for `codes` (int8 vector, 0 to 127, held in a register)."""
    if k.target.arch == "x86_64":
        return _by_shuffles(k, buffer, tables, codes)
    return [_by_tbl(k, buffer, first, codes) for first in tables]


def _held(k: Any, value: Any) -> Any:
    n = 4 * k.lanes
    held = k.local(n, "int8")
    k.store(held, 0, value, n)
    return k.load(held, 0, n)


def _by_shuffles(k: Any, buffer: Any, tables: Sequence[Any], codes: Any) -> list[Any]:
    n = 4 * k.lanes
    found: list[Any] = [None] * len(tables)
    for i in range(ENTRIES // _SLICE):
        if i:
            codes = _held(k, codes - k.splat(k.T.int8(_SLICE), n))
        for number, first in enumerate(tables):
            entries = k.load(buffer, first + i * _SLICE, _SLICE)
            both = k.shuffle(entries, entries, range(n))
            part = k.T.call_llvm_pure_intrin(f"int8x{n}", "llvm.x86.avx2.pshuf.b", both, codes)
            found[number] = _held(k, part if found[number] is None else found[number] ^ part)
    return found


def _by_tbl(k: Any, buffer: Any, first: Any, codes: Any) -> Any:
    def four(at: int) -> list[Any]:
        return [k.load(buffer, first + at + i * _SLICE, _SLICE) for i in range(4)]

    low = k.T.call_llvm_pure_intrin("int8x16", "llvm.aarch64.neon.tbl4.v16i8", *four(0), codes)
    above = codes - k.splat(k.T.int8(64), 16)
    return _held(k, k.T.call_llvm_pure_intrin("int8x16", "llvm.aarch64.neon.tbx4.v16i8", low, *four(64), above))
