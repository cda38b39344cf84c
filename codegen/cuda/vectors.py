"""Runs of neighbouring elements between memory and registers: 16 bytes at once where addresses allow it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Expr = Any

WIDTH = 8
"""Elements of a run: 16 bytes of halves."""
_BYTES = {"float32": 4, "int32": 4, "uint32": 4, "int64": 8, "uint64": 8, "float64": 8, "float16": 2, "bfloat16": 2,
          "int16": 2, "uint16": 2, "int8": 1, "uint8": 1}  # fmt: skip


def _pieces(dtype: str) -> tuple[int, int]:
    """(bytes of a piece, elements of a piece) that runs of this type are moved in."""
    size = min(16, WIDTH * _BYTES[dtype])
    return size, size // _BYTES[dtype]


def aligned(k: Any, places: Sequence[tuple[Any, Expr]]) -> Expr:
    """Whether the runs that begin at these (buffer, index) can be moved as a whole."""
    T = k.T
    found: Any = None
    for buffer, index in places:
        test = T.call_extern("int32", f"spc_aligned{_pieces(str(buffer.dtype))[0]}", k.at(buffer, index)) > 0
        found = test if found is None else T.And(found, test)
    return T.bool(True) if found is None else found


def run(k: Any, dtype: str) -> Any:
    """Registers for a run."""
    return k.local(WIDTH, dtype)


def move(k: Any, to: Any, to_index: Expr, source: Any, source_index: Expr) -> None:
    """WIDTH elements from one buffer to another of the same type; both places are aligned (registers always are)."""
    size, count = _pieces(str(source.dtype))
    for i in range(0, WIDTH, count):
        k.do(f"spc_move{size}", k.at(to, to_index + i), k.at(source, source_index + i))
