"""Exact greedy OBS: blocks leave one after the other, each time the one that costs least, all others compensate.

Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon" (1992), layer by layer as in Frantar and
Alistarh, "Optimal Brain Compression" (2022). Outputs are independent given the inputs' second moment H, so every strip (R outputs
that share a mask; single rows for R = 1) has an inverse of its own, of the inputs it still has. Removing the block b costs
tr(W_b A^-1 W_b^T), A the block of that inverse, and takes W_b A^-1 times the inverse's rows b off W.

The inverse is kept as M - V^T V: a removal adds C rows to V and reads C rows of the inverse (a matrix-vector product), and V is
multiplied out only when it has `_PENDING` rows (a matrix product), over the inputs still there. So exact greed costs
0.3 K^3 multiplications a strip at 50 percent, nearly all of them in BLAS.

Blocks of one output and G inputs, or of R outputs and one input (16x1), that leave by this saliency while the others make up for
them are the first stage of Zeng et al., "GQSA: Group Quantization and Sparsity for Accelerating Large Language Model Inference" (2024);
its second stage is recovery.

In a grouped convolution strips read different inputs, each with the inverse of its own. Where even the rows of a strip do
(groups narrower than R), they are laid end to end: one row of R K inputs, in blocks of R C.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.formats import NM, FanIn, Structure, expand_block_mask
from sparsec.passes import hessian
from sparsec.passes.sparsify.masks import Mask, drop_lowest, zeros
from sparsec.passes.sparsify.refit import refit
from sparsec.passes.sparsify.swap import swap

__all__ = ["obs", "obs_mask"]

Array = NDArray[np.float32]
Indices = NDArray[np.intp]

_PENDING = 96
_BATCH_BYTES = 64 << 20


def obs(
    weight: ArrayLike,
    second_moment: ArrayLike,
    structure: Structure,
    *,
    damping: float = 0.01,
    spread: float | None = None,
) -> tuple[Mask, Array]:
    """(keep-mask bool [N, K], the best weights float32 [N, K] on it): `obs_mask`, then `refit`."""
    mask = obs_mask(weight, second_moment, structure, damping=damping, spread=spread)
    return mask, refit(weight, second_moment, mask, damping=damping)


def obs_mask(
    weight: ArrayLike,
    second_moment: ArrayLike,
    structure: Structure,
    *,
    damping: float = 0.01,
    spread: float | None = None,
) -> Mask:
    """Keep-mask bool [N, K] for a sparse structure; `refit` gives the weights that belong to it.

    weight: [N, K]; second_moment: E[x x^T] [K, K], [G, K, K] for G equal parts of the rows; damping: see `hessian.damped`. spread:
    how far the zeros of a strip may be from the average (0.1: by a tenth), so that strips which lose less by it are pruned more;
    None: 0.5 for single rows, 0.1 for strips, which differ less. Structures that fix the number of zeros per row or group ignore
    it. About float32 accuracy in what decides. Groups of N:M restrict the greedy choice, so that exchanges still improve it: `swap`
    follows.
    """
    (r, c), (rows, cols) = structure.block, np.shape(weight)
    strips, length = -(-rows // r), -(-cols // c)
    total = zeros(structure, (strips, length))
    least = total // strips
    most = least
    if spread is None:
        spread = 0.5 if r == 1 else 0.1
    if not isinstance(structure, NM | FanIn):
        least, most = int(least * (1 - spread)), min(length, int(least * (1 + spread)) + (total % strips > 0))
    problem = _Problem(weight, second_moment, (r, c), damping)
    groups = _groups(structure, length)
    size = max(1, _BATCH_BYTES // (4 * problem.inputs**2))
    parts = [_removals(problem.strips(start, start + size), most, groups) for start in range(0, strips, size)]
    order, costs = (np.concatenate(values) for values in zip(*parts, strict=True))
    keep = np.ones((strips, length), bool)
    np.put_along_axis(keep, order, ~_prefixes(costs, least, total), axis=1)
    mask = expand_block_mask(keep, (r, c), rows, cols)
    return swap(weight, second_moment, mask, structure, damping=damping)[0] if isinstance(structure, NM) else mask


@dataclass(frozen=True)
class _Strips:
    weight: Array  # [B, R, K]
    inverses: list[Array]  # of the damped second moments, B times [K, K]
    diagonals: Array  # of the damped second moments, [B, K]
    c: int


class _Problem:
    """A weight as strips, with what they read."""

    def __init__(self, weight: ArrayLike, second_moment: ArrayLike, block: tuple[int, int], damping: float) -> None:
        rows, cols = np.shape(weight)
        self._block, self._length = block, -(-cols // block[1])
        moments = np.asarray(second_moment).reshape(-1, cols, cols)
        hessians = [hessian.damped(moment, damping) for moment in moments]
        width, height = self._length * block[1], -(-rows // block[0]) * block[0]
        self._inverses = [_padded(hessian.inverse(h), width) for h in hessians]
        self._diagonals = np.stack([_padded(np.diag(h.diagonal()), width).diagonal() for h in hessians])
        dead = np.stack([hessian.dead(moment) for moment in moments])
        self._part = np.minimum(np.arange(height), rows - 1) // (rows // len(moments))  # of each row
        self._weight = np.zeros((height, width), np.float32)
        self._weight[:rows, :cols] = np.where(dead[self._part[:rows]], 0.0, weight)
        self._apart = len(moments) > 1 and (rows // len(moments)) % block[0] > 0
        self.inputs = width * block[0] if self._apart else width

    def strips(self, start: int, stop: int) -> _Strips:
        r, c = self._block
        weight = self._weight[start * r : stop * r].reshape(-1, r, self._weight.shape[1])
        part = self._part[start * r : stop * r].reshape(-1, r)
        if not self._apart:
            return _Strips(weight, [self._inverses[p] for p in part[:, 0]], self._diagonals[part[:, 0]], c)
        inverses = [self._end_to_end([self._inverses[p] for p in own]) for own in part]
        rows, diagonals = (
            x.reshape(len(part), r, self._length, c).transpose(0, 2, 1, 3).reshape(len(part), -1)
            for x in (weight, self._diagonals[part])
        )
        return _Strips(rows[:, None], inverses, diagonals, r * c)

    def _end_to_end(self, inverses: list[Array]) -> Array:
        """Inverses [L C, L C] of R rows as the one of a row of L R C inputs."""
        r, c = self._block
        result = np.zeros((self._length, r, c) * 2, np.float32)
        for row, inverse in enumerate(inverses):
            result[:, row, :, :, row] = inverse.reshape(self._length, c, self._length, c)
        return result.reshape(self.inputs, self.inputs)


def _padded(matrix: NDArray[np.float64], size: int) -> Array:
    """float32 [size, size] with ones on the rest of the diagonal: inputs that W does not have."""
    result = np.eye(size, dtype=np.float32)
    result[: len(matrix), : len(matrix)] = matrix
    return result


def _groups(structure: Structure, length: int) -> tuple[Indices, Indices] | None:
    """(group of each input [length], how many each may lose) of N:M."""
    if not isinstance(structure, NM):
        return None
    groups = np.arange(length) // structure.m
    return groups, np.maximum(np.bincount(groups) - structure.n, 0)


def _prefixes(costs: NDArray[np.float64], least: int, total: int) -> Mask:
    """Which removals [strips, steps] happen: the first `least` of every strip and the cheapest of the others, `total` together."""
    rising = np.maximum.accumulate(costs, axis=1)
    rising[:, :least] = -np.inf
    return ~drop_lowest(rising.reshape(-1), total).reshape(costs.shape)


def _removals(
    strips: _Strips, steps: int, groups: tuple[Indices, Indices] | None
) -> tuple[Indices, NDArray[np.float64]]:
    """The blocks that leave each strip, in this order, [B, steps], and what each costs."""
    batch = len(strips.weight)
    order, costs = np.zeros((batch, steps), np.intp), np.zeros((batch, steps))
    state = _State(strips, groups)
    for step in range(steps):
        if state.pending == state.capacity:
            state.multiply_out()
        order[:, step], costs[:, step] = state.remove_cheapest()
    return order, costs


class _State:
    """Weights and inverses of a batch of strips while blocks leave: alive blocks [B, L], weights [B, R, L C], V [B, pending, L C]."""

    def __init__(self, strips: _Strips, groups: tuple[Indices, Indices] | None) -> None:
        batch, _, cols = strips.weight.shape
        self.c = strips.c
        self.index = np.arange(batch)
        self.blocks = np.repeat(np.arange(cols // self.c)[None], batch, 0)
        self.weight = strips.weight.copy()
        self.base = list(strips.inverses)
        self.floor = 1 / strips.diagonals  # no diagonal of an inverse is below: what exactness gives
        self.capacity = max(1, _PENDING // self.c)
        self.closed = np.zeros(self.blocks.shape, np.float32)  # inf where a block has left or may not
        self.groups = self.left = None
        if groups is not None:
            self.groups = np.repeat(groups[0][None], batch, 0)
            self.left = np.repeat(groups[1][None], batch, 0)
            self.closed[:, groups[1][groups[0]] == 0] = np.inf
        self.gone = np.zeros(self.blocks.shape, bool)
        self._start()

    def _start(self) -> None:
        batch, cols = self.weight.shape[0], self.weight.shape[2]
        self.pending = 0
        self.rows = np.zeros((batch, self.capacity * self.c, cols), np.float32)
        blocks = np.arange(cols).reshape(-1, self.c)
        self.corner = np.stack([base[blocks[:, :, None], blocks[:, None, :]] for base in self.base])  # [B, L, C, C]

    def remove_cheapest(self) -> tuple[Indices, Array]:
        """Remove one block of every strip; (their numbers [B], what they cost [B])."""
        index, c = self.index, self.c
        cost = self._costs()
        best = cost.argmin(1)
        done = self.pending * c
        columns = best[:, None] * c + np.arange(c)
        inverse = np.stack([base[chosen] for base, chosen in zip(self.base, columns, strict=True)])  # [B, C, K]
        if done:
            pending = self.rows[:, :done]
            inverse -= pending[index[:, None], :, columns] @ pending
        own = self.weight[index[:, None], :, columns].transpose(0, 2, 1)  # [B, R, C]
        if c == 1:
            root = np.sqrt(np.maximum(self.corner[index, best], self.floor[index, best, None, None]))
            rows, own = inverse / root, own / root
            self.weight -= own * rows
        else:
            corner = inverse[index[:, None, None], np.arange(c)[:, None], columns[:, None]].astype(np.float64)
            root = np.linalg.cholesky((corner + corner.transpose(0, 2, 1)) * 0.5)
            rows = np.linalg.solve(root, inverse).astype(np.float32)
            own = np.linalg.solve(root, own.transpose(0, 2, 1)).transpose(0, 2, 1).astype(np.float32)
            self.weight -= own @ rows
        self.rows[:, done : done + c] = rows
        split = rows.reshape(len(index), c, -1, c)
        self.corner -= np.einsum("bsli,bslj->blij", split, split) if c > 1 else np.square(rows)[:, 0, :, None, None]
        self.pending += 1
        self.gone[index, best] = True
        self.closed[index, best] = np.inf
        if self.groups is not None and self.left is not None:
            group = self.groups[index, best]
            self.left[index, group] -= 1
            full = self.left[index, group] == 0
            self.closed[(self.groups == group[:, None]) & full[:, None]] = np.inf
        return self.blocks[index, best], cost[index, best]

    def _costs(self) -> Array:
        if self.c == 1:
            diagonal = np.maximum(self.corner[:, :, 0, 0], self.floor)
            return np.asarray(np.einsum("brk,brk->bk", self.weight, self.weight) / diagonal + self.closed)
        batch, rows, _ = self.weight.shape
        own = self.weight.reshape(batch, rows, -1, self.c).transpose(0, 2, 3, 1)  # [B, L, C, R]
        corner = self.corner.copy()
        corner[self.gone] = np.eye(self.c, dtype=np.float32)
        cost = (own * np.linalg.solve(corner, own)).sum((2, 3))
        return np.asarray(cost + self.closed)

    def multiply_out(self) -> None:
        """M - V^T V becomes the new M, without the blocks that have left; V is empty again."""
        c = self.c
        alive = np.stack([np.flatnonzero(~gone) for gone in self.gone])  # as many in every strip
        columns = (alive[:, :, None] * c + np.arange(c)).reshape(len(alive), -1)
        for b, chosen in enumerate(columns):
            rows = self.rows[b].take(chosen, 1)
            base = self.base[b].take(chosen, 0).take(chosen, 1)
            base -= rows.T @ rows
            self.base[b] = base
        self.weight = np.take_along_axis(self.weight, columns[:, None], 2)
        self.floor = np.take_along_axis(self.floor, columns, 1)
        self.blocks = np.take_along_axis(self.blocks, alive, 1)
        self.closed = np.take_along_axis(self.closed, alive, 1)
        if self.groups is not None:
            self.groups = np.take_along_axis(self.groups, alive, 1)
        self.gone = np.zeros(alive.shape, bool)
        self._start()
