"""Instructions about memory that TIR has no words for."""

from __future__ import annotations

from typing import Any


def prefetch(k: Any, buffer: Any, index: Any) -> None:
    """Ask for the cache line of `buffer[index]`, to be read soon; an address outside of the buffer does no harm."""
    T = k.T
    read, soon, data = T.int32(0), T.int32(3), T.int32(1)
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", T.address_of(buffer[index]), read, soon, data))
