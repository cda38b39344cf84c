"""Rows in an order in which blocks of several outputs lose less.

A block of R rows keeps the same inputs for all of them, so rows that live on the same inputs belong together: the reordering that
makes coarse pruning nearly as good as fine (Ji, Liang, Deng, Zhang, Zhang, Xie, "TETRIS: TilE-matching the TRemendous Irregular
Sparsity", 2018). Blocks are grown around large rows, or taken as they are where that loses less; then rows of two blocks trade places
while that lowers the loss, as inputs do in Pool and Yu, "Channel Permutations for N:M Sparsity" (2021).

Blocks of a weight compete: those below a limit go. With the limit held, what is lost is the sum of min(score, limit), less a constant; so a
trade costs one addition and one comparison a score, and the limit of the blocks after it can only make it worse. Which trades to look at is
told by what their rows would lose if no block chose anew; a trade stands if what is lost then does go down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["block_order", "lost"]

Matrix = NDArray[np.float32]
Indices = NDArray[np.intp]

_PASSES = 30
_TRIED = 64
"""Trades of a block that are computed before the best is made: those that promise most."""
_LEAST = 1e-3
"""A pass over all blocks that lowers the loss by less than this share is the last."""
_ROUNDING = 1e-6
"""A trade that promises to lower the loss of its two blocks by a smaller share is not made."""
_MOST_WORK = 4e10
"""Scores that trades may touch: about a minute."""


def lost(scores: Sequence[ArrayLike], gone: Sequence[int], size: int) -> float:
    """The sum of the scores of the blocks that go.

    scores: of one or more weights with N rows in the same order, [N, L] each, 0 or more. gone: of each, how many blocks of `size`
    consecutive rows and one column go, those with the lowest sums; the last rows may be fewer.
    """
    total = 0.0
    for score, drop in zip(scores, gone, strict=True):
        values = np.asarray(score, np.float64)
        sums = np.add.reduceat(values, np.arange(0, len(values), size), axis=0).reshape(-1)
        total += float(np.sort(sums)[:drop].sum())
    return total


def block_order(scores: Sequence[ArrayLike], gone: Sequence[int], size: int) -> Indices:
    """The order of rows, int [N]: with `score[order]` blocks never lose more than as given, by `lost` (same arguments).

    Rows of a block keep their order, and blocks that of their first rows. Equal arguments give equal orders, on any number of threads.
    """
    arrays = [np.asarray(score, np.float64) for score in scores]
    as_given = np.arange(len(arrays[0]))
    problem = _Problem.of(arrays, gone, size)
    if len(as_given) <= size or not problem.chooses():
        return as_given

    def loses(order: Indices) -> float:
        return lost([array[order] for array in arrays], gone, size)

    grown = problem.grown()
    start = grown if loses(_flat(grown, problem.real)) < loses(as_given) else problem.given()
    found = _flat(problem.traded(start), problem.real)
    return found if loses(found) < loses(as_given) else as_given


def _flat(blocks: Indices, rows: int) -> Indices:
    """Numbers of rows [blocks, R] one after the other; the block that is not full comes last."""
    ordered = np.sort(blocks, axis=1)
    short = (ordered >= rows).any(1)
    ordered = ordered[np.lexsort((ordered[:, 0], short))].reshape(-1)
    return np.asarray(ordered[ordered < rows], np.intp)


@dataclass(frozen=True, eq=False)
class _Problem:
    """Scores side by side, float32 [N, L], with rows of zeros that fill the last block; the columns of each weight and how many of its
    blocks go; how many rows there `real`ly are."""

    values: Matrix
    parts: tuple[tuple[slice, int], ...]
    size: int
    real: int

    @classmethod
    def of(cls, scores: Sequence[NDArray[np.float64]], gone: Sequence[int], size: int) -> _Problem:
        together = np.concatenate(scores, 1)
        values = np.zeros((-(-len(together) // size) * size, together.shape[1]), np.float32)
        values[: len(together)] = together * (values.size / (float(together.sum()) or 1.0))  # around 1
        ends = np.cumsum([score.shape[1] for score in scores]).tolist()
        parts = zip(
            (slice(end - score.shape[1], end) for score, end in zip(scores, ends, strict=True)), gone, strict=True
        )
        return cls(values, tuple(parts), size, len(together))

    def chooses(self) -> bool:
        """Whether some blocks go, and others of the same weight stay."""
        count = len(self.values) // self.size
        return any(0 < drop < count * (part.stop - part.start) for part, drop in self.parts)

    def given(self) -> Indices:
        """Blocks as they are, [n, R]."""
        return np.arange(len(self.values)).reshape(-1, self.size)

    def limits(self, sums: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        """Of blocks with these sums [n, L]: of each column [L], what parts the scores that go from those that stay; and what is lost."""
        result, total = np.zeros(sums.shape[1]), 0.0
        for part, drop in self.parts:
            flat = sums[:, part].flatten()
            if drop == flat.size:
                result[part] = np.inf
            elif drop:
                flat.partition((drop - 1, drop))
                result[part] = flat[drop - 1 : drop + 1].mean()
            total += float(flat[:drop].sum())
        return result, total

    def grown(self) -> Indices:
        """Blocks [n, R]: each begins with the largest row left and grows by the rows of which the smallest share would go with its
        cheapest columns, as many at a time as it has."""
        totals = np.maximum(self.values.sum(1), np.finfo(np.float32).tiny)
        free = np.ones(len(self.values), bool)
        free[self.real :] = False
        count = len(self.values) // self.size
        blocks = []
        for _ in range(self.real // self.size):
            members = [int(np.where(free, totals, -1.0).argmax())]
            free[members] = False
            while len(members) < self.size:
                sums, cheap = self.values[members].sum(0), np.zeros(self.values.shape[1], np.float32)
                for part, drop in self.parts:
                    cheap[part][np.argsort(sums[part], kind="stable")[: round(drop / count)]] = 1
                share = np.where(free, np.einsum("nl,l->n", self.values, cheap) / totals, np.inf)
                more = np.argsort(share, kind="stable")[: min(len(members), self.size - len(members))].tolist()
                free[more] = False
                members += more
            blocks.append(members)
        rest = [*np.flatnonzero(free).tolist(), *range(self.real, len(self.values))]
        return np.array([*blocks, rest] if rest else blocks, np.intp)

    def traded(self, blocks: Indices) -> Indices:
        """Rows of two blocks trade places, the best trade of a block first, until hardly anything is gained."""
        state = _State(self, blocks)
        most = int(_MOST_WORK / (2 * self.values.size))
        before = state.lost
        for _ in range(_PASSES):
            for block in range(len(blocks)):
                while state.made < most and state.trade(block):
                    pass
            if state.lost >= before * (1 - _LEAST) or state.made >= most:
                break
            before = state.lost
        return state.blocks


class _State:
    """Blocks [n, R] while rows trade places. Of the limits held: sums [n, L], what blocks lose [n], which scores go [n, L], and what rows
    would lose in each block [n, N] if it kept its choice; `made`: trades so far."""

    def __init__(self, problem: _Problem, blocks: Indices) -> None:
        self.values, self.problem, self.blocks, self.made = problem.values, problem, blocks.copy(), 0
        self.columns = np.ascontiguousarray(self.values.T)
        self.block = np.repeat(np.arange(len(blocks)), problem.size)
        self.sums = self.values[blocks].sum(1, dtype=np.float64)  # a row may be nearly all of a sum, and leave
        self.gone = np.zeros(self.sums.shape, bool)
        self.cost = np.zeros((len(blocks), len(self.values)), np.float32)
        self.renew()

    def renew(self) -> None:
        """Take the limits of the blocks as they are now."""
        self.limit, self.lost = self.problem.limits(self.sums)
        self.held = np.minimum(self.sums, self.limit).sum(1)
        gone = self.sums < self.limit
        for block in np.flatnonzero((gone != self.gone).any(1)).tolist():
            self._choose(block, gone[block])

    def _choose(self, block: int, gone: NDArray[np.bool_]) -> None:
        moved = np.flatnonzero(gone != self.gone[block])
        sign = np.where(gone[moved], np.float32(1), np.float32(-1))
        self.cost[block] += (self.columns[moved] * sign[:, None]).sum(0)
        self.gone[block] = gone

    def trade(self, a: int) -> bool:
        """Make the trade of a row of block `a` that promises most of those that lower the loss, if there is one."""
        rows, every = self.blocks[a], self.blocks.reshape(-1)
        gain = self.cost[a, rows, None] - np.repeat(self.cost[:, rows].T, len(rows), axis=1)
        gain += self.cost[self.block, every] - self.cost[a, every]
        gain[:, a * len(rows) : (a + 1) * len(rows)] = -np.inf
        if self.problem.real < len(self.values):
            gain[rows >= self.problem.real] = -np.inf
            gain[:, every >= self.problem.real] = -np.inf
        flat = gain.reshape(-1)
        last = flat.size - min(_TRIED, flat.size)
        tried = np.sort(np.argpartition(flat, last)[last:])
        tried = tried[flat[tried] > -np.inf]
        if not tried.size:
            return False
        i, place = np.divmod(tried, every.size)
        b = self.block[place]
        change = self.values[every[place]] - self.values[rows[i]].astype(np.float64)
        new = np.minimum(self.sums[a] + change, self.limit).sum(1)
        new += np.minimum(self.sums[b] - change, self.limit).sum(1)
        now = self.held[a] + self.held[b]
        promise = now - new
        for best in np.argsort(-promise, kind="stable")[: np.count_nonzero(promise > _ROUNDING * now)].tolist():
            trade = a, int(i[best]), int(b[best]), int(place[best]) % len(rows)
            before = self.lost
            self._swap(*trade)
            if self.lost < before:
                return True
            self._swap(*trade)
        return False

    def _swap(self, a: int, i: int, b: int, j: int) -> None:
        self.blocks[a, i], self.blocks[b, j] = self.blocks[b, j], self.blocks[a, i]
        self.made += 1
        for block in (a, b):
            self.sums[block] = self.values[self.blocks[block]].sum(0, dtype=np.float64)
        self.renew()
