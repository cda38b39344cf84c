"""Instructions about memory that TIR has no words for."""

from __future__ import annotations

from typing import Any

_LINE = 64
_AHEAD = 2 * 4096
"""Bytes: one page of 4 KB is not far enough where one core reads memory alone (two: 0.88 to 0.98 of the time); with three `s16x1@50`
is slower in cache (1.05)."""


def prefetch(k: Any, buffer: Any, index: Any) -> None:
    """Ask for the cache line of `buffer[index]`, to be read soon; an address outside of the buffer does no harm."""
    T = k.T
    read, soon, data = T.int32(0), T.int32(3), T.int32(1)
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", T.address_of(buffer[index]), read, soon, data))


def prefetch_vector(k: Any, buffer: Any, index: Any) -> None:
    """Ask for the vector of 32-bit numbers at `buffer[index]` where one is a whole cache line (AVX-512)."""
    if 4 * k.lanes == _LINE:
        prefetch(k, buffer, index)


def prefetch_stream(k: Any, buffer: Any, index: Any, itemsize: int) -> None:
    """Ask for what lies `_AHEAD` of `buffer[index]` in a stream of weights read once, in order.

    The hardware's own prefetching stops at the end of each page of 4 KB, so a core that reads alone waits there. Left out on ARM,
    where nothing has been measured.
    """
    if k.target.arch == "x86_64":
        prefetch(k, buffer, index + _AHEAD // itemsize)
