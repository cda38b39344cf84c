"""Run-time indices in GPU kernels: checked against their axis, counted from the end when negative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sparsec.codegen.cuda.units import STATUS
from sparsec.codegen.kernels.indices import OUT_OF_RANGE

Expr = Any


def checked_indices(k: Any, found: Sequence[tuple[Expr, int]], dtype: str, body: Callable[[list[Expr]], None]) -> None:
    """body(indices), each an int32 in [0, size), for (index of `dtype`, size); an error for the host where one is outside.

    The kernel's signature says `may_fail`.
    """
    T = k.T
    const = T.int64 if dtype == "int64" else T.int32
    values = [(k.let(value, dtype), size) for value, size in found]
    outside: Any = None
    for value, size in values:
        test = T.Or(value < const(-size), value >= const(size))
        outside = test if outside is None else T.Or(outside, test)
    with T.If(outside):
        with T.Then():
            k.do("spc_fail", k.at(k.arg(STATUS), 0), T.int32(OUT_OF_RANGE))
        with T.Else():
            body([
                k.let(T.Cast("int32", T.Select(value < const(0), value + const(size), value))) for value, size in values
            ])  # fmt: skip
