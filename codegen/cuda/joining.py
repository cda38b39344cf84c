"""Kernels whose blocks have equal shares (shares.py): a block's pieces one after the other, and how those of a cut panel become one.

What is computed of a piece goes to the scratch argument `parts`; the block that arrives last, by a counter, adds the pieces of the panel
in order. No block waits for another one, so it does not matter how many of them run at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sparsec.codegen.cuda import shares
from sparsec.codegen.cuda.units import COUNTERS

Expr = Any
Piece = Mapping[str, Expr]
Each = Callable[[Callable[..., None]], None]


def each_piece(k: Any, share: Expr, body: Callable[[Piece, Expr], None]) -> None:
    """body(piece, whether it is the first) for the pieces of a share; a piece has shares.FIELDS but for the last two."""
    T, fields, table = k.T, shares.FIELDS, k.arg("pieces")
    mine = share * len(fields)
    count, rest = (k.let(k.load(table, mine + fields.index(name))) for name in ("count", "rest"))
    with T.serial(0, count) as turn:
        row = k.let(T.Select(turn == 0, share, rest + turn) * len(fields))
        body({name: k.let(k.load(table, row + i)) for i, name in enumerate(fields[:-2])}, turn == 0)


def finish(
    k: Any,
    piece: Piece,
    size: int,
    base: Expr,
    flag: Expr,
    each: Each,
    value: Callable[..., Expr],
    store: Callable[..., None],
) -> None:
    """Store the outputs of a piece, or of its whole panel if the block is the last one that has a piece of it.

    each(body): body(index, *where) for every output, index < size; value(*where): the block's sum; store(total, *where). base: the place of
    the first piece of all; flag: the address of a word of shared memory. All threads come here, none while `value` may change."""
    T, parts = k.T, piece["parts"]

    def hand_over(index: Expr, *where: Expr) -> None:
        k.do("spc_hand_over", k.at(k.arg("parts"), mine + index), value(*where))

    def add(index: Expr, *where: Expr) -> None:
        total = k.local(1)
        k.store(total, 0, k.device("float32", "spc_take_over", k.at(k.arg("parts"), first + index)))
        with T.serial(1, parts) as part:
            more = k.device("float32", "spc_take_over", k.at(k.arg("parts"), first + part * size + index))
            k.store(total, 0, total[0] + more)
        store(total[0], *where)

    with T.If(parts == 1):
        with T.Then():
            each(lambda index, *where: store(value(*where), *where))
        with T.Else():
            mine = k.let((base + piece["place"]) * size)
            each(hand_over)
            counter = k.at(k.arg(COUNTERS), base + piece["first_place"])
            last = k.let(k.device("int32", "spc_is_last", counter, parts, flag))
            first = k.let((base + piece["first_place"]) * size)
            with T.If(last != 0), T.Then():
                each(add)
