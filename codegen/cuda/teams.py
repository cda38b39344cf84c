"""Rows computed by teams of threads: a warp for a short row, a block for a long one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparsec.codegen.cuda.launch import Launch, lines

Expr = Any
Combine = Callable[[Expr, Expr], Expr]

_WARP, _WARPS = 32, 4
_BLOCK = 256
# Elements of a row up to which a warp is enough, where there are rows for many warps; of few rows the block's threads share each.
_SHORT, _FEW_ROWS, _SHORT_OF_FEW = 2048, 1024, 256


def team_size(rows: int, n: int) -> int:
    """Threads that share a row of n elements."""
    return _WARP if n <= (_SHORT if rows >= _FEW_ROWS else _SHORT_OF_FEW) else _BLOCK


def team_launch(rows: int, n: int) -> Launch:
    """Blocks for all rows."""
    if team_size(rows, n) == _WARP:
        return lines(-(-rows // _WARPS), _WARPS * _WARP)
    return lines(rows, _BLOCK)


class Team:
    """Inside `with team.row() as row`: the team's row, in which this thread is number `lane` of `size`."""

    def __init__(self, k: Any, rows: int, n: int) -> None:
        self.k, self.rows, self.n, self.size = k, rows, n, team_size(rows, n)
        self.per_thread = -(-n // self.size)
        thread = k.thread[0]
        self.lane = k.let(k.T.truncmod(thread, _WARP) if self.size == _WARP else thread)
        self.index = k.let(k.block[0] * _WARPS + k.T.truncdiv(thread, _WARP) if self.size == _WARP else k.block[0])

    def each(self, body: Callable[[Expr, Expr], None]) -> None:
        """body(i, step) for the elements i of this thread, the step-th one each."""
        T = self.k.T
        with T.serial(0, self.per_thread) as step:
            i = self.lane + step * self.size
            if self.n % self.size == 0:
                body(i, step)
            else:
                with T.If(i < self.n), T.Then():
                    body(i, step)

    def reduce(self, value: Expr, combine: Combine, dtype: str = "float32") -> Expr:
        """`value` of all threads combined, in every thread. combine(a, b) must not depend on the order."""
        k, T = self.k, self.k.T
        held = k.local(1, dtype)
        k.store(held, 0, value)

        def warp() -> None:
            for step in (16, 8, 4, 2, 1):
                other = k.let(k.device(dtype, "spc_lane_xor", held[0], step), dtype)
                k.store(held, 0, combine(held[0], other))

        warp()
        if self.size == _WARP:
            return held[0]
        shared = k.shared(_BLOCK // _WARP, dtype)
        with T.If(T.truncmod(self.lane, _WARP) == 0), T.Then():
            k.store(shared, T.truncdiv(self.lane, _WARP), held[0])
        k.sync()
        k.store(held, 0, shared[0])
        for i in range(1, _BLOCK // _WARP):
            k.store(held, 0, combine(held[0], shared[i]))
        k.sync()  # the next reduction writes there again
        return held[0]

    def row(self) -> Any:
        """The part of the program in which the team has a row."""
        return self.k.T.If(self.index < self.rows)
