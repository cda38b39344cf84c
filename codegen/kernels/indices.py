"""Run-time indices in kernels: checked against their axis, counted from the end when negative."""

from __future__ import annotations

from typing import Any

OUT_OF_RANGE = 1  # what a kernel returns for an index outside its axis; the runtime reports it as an error of the step


def checked_index(k: Any, buffer: Any, at: Any, size: int, dtype: str) -> Any:
    """buffer[at] as int32 in [0, size), `size` added when negative; leaves the kernel with OUT_OF_RANGE otherwise.

    The check is made on the stored `dtype` (int32 or int64), so that no 64-bit index is cut to a legal one.
    """
    T = k.T
    const = T.int64 if dtype == "int64" else T.int32
    index = T.bind(k.load(buffer, at))
    with T.If(T.Or(index < const(-size), index >= const(size))), T.Then():
        k.fail(OUT_OF_RANGE)
    return T.bind(T.Cast("int32", T.Select(index < const(0), index + const(size), index)))
