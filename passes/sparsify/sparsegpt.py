"""SparseGPT (Frantar, Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", 2023).

Inputs are visited from the first to the last. What is pruned of an input is compensated on the inputs after it, as OBS does with
the inverse Hessian of these alone, so one Cholesky factor serves all rows. Which weights go is decided for `block_size` inputs at
a time from the weights as compensated so far; for N:M at each group.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.formats import NM, FanIn, Structure, expand_block_mask
from sparsec.passes import hessian
from sparsec.passes.sparsify.masks import Mask, block_scores, drop_lowest, mask_of_scores, zeros

__all__ = ["sparsegpt"]

Matrix = NDArray[np.float64]


def sparsegpt(
    weight: ArrayLike, second_moment: ArrayLike, structure: Structure, *, damping: float = 0.01, block_size: int = 128
) -> tuple[Mask, NDArray[np.float32]]:
    """(keep-mask bool [N, K], weight float32 [N, K] that is zero off it) for a sparse structure.

    weight: [N, K]; second_moment: E[x x^T] [K, K], [G, K, K] for G equal parts of the rows; damping: see `hessian.damped`;
    block_size: inputs decided on together, rounded down to whole blocks or groups of the structure. Every run of inputs loses its
    share of the zeros; unstructured weights and blocks compete across all rows. Weights of dead inputs become 0.
    """
    cols = np.shape(weight)[1]
    moments = np.asarray(second_moment).reshape(-1, cols, cols)
    # [G, K, N / G]: inputs are visited one by one.
    work = np.array(np.asarray(weight).reshape(len(moments), -1, cols).transpose(0, 2, 1), np.float64, order="C")
    work[np.stack([hessian.dead(moment) for moment in moments])] = 0.0
    upper = np.stack([hessian.inverse_upper_cholesky(hessian.damped(moment, damping)) for moment in moments])
    unit = structure.m if isinstance(structure, NM) else structure.block[1]
    step = max(unit, block_size // unit * unit)
    mask = np.ones(work.shape, bool)
    for start in range(0, cols, step):
        stop = min(cols, start + step)
        part, factor = work[:, start:stop], upper[:, start:stop, start:stop]
        keep, errors = mask[:, start:stop], np.zeros_like(work[:, start:stop])
        if not isinstance(structure, NM):
            keep[:] = _choose(part, factor, structure, start, cols)
        for j in range(stop - start):
            if isinstance(structure, NM) and j % structure.m == 0:
                group = slice(j, j + structure.m)
                score = _by_row(np.square(part[:, group] / _diagonals(factor)[:, group, None]))
                keep[:, group] = _by_input(mask_of_scores(score, structure), len(moments))
            errors[:, j] = np.where(keep[:, j], 0.0, part[:, j] / factor[:, j, j, None])
            part[:, j:] -= factor[:, j, j:, None] * errors[:, j, None]
        work[:, stop:] -= upper[:, start:stop, stop:].transpose(0, 2, 1) @ errors
    work[~mask] = 0.0
    return np.ascontiguousarray(_by_row(mask)), np.ascontiguousarray(_by_row(work), np.float32)


def _choose(part: Matrix, factor: Matrix, structure: Structure, start: int, cols: int) -> Mask:
    """Keep-mask [G, width, N / G] of the inputs [start, start + width) of `cols`, given their compensated weights.

    A block costs w A^-1 w^T for each row w of it, where A = T^T T is its part of the inverse Hessian of the inputs from its first
    one on, and T the block on the diagonal of the factor.
    """
    (r, c), (groups, width, _) = structure.block, part.shape
    cost = np.square(part / _diagonals(factor)[:, :, None])
    for j in range(0, width if c > 1 else 0, c):
        own = slice(j, j + c)
        cost[:, own] = np.square(np.linalg.solve(factor[:, own, own].transpose(0, 2, 1), part[:, own]))
    score = _by_row(cost)
    blocks = block_scores(score, (r, c), "sum")
    first, length = start // c, -(-cols // c)
    last = first + blocks.shape[1]
    if isinstance(structure, FanIn):
        drop = cols - structure.kept(cols)
        keep = np.stack([drop_lowest(row, drop * last // length - drop * first // length) for row in blocks])
    else:
        drop = zeros(structure, (blocks.shape[0], length))
        keep = drop_lowest(blocks.reshape(-1), drop * last // length - drop * first // length).reshape(blocks.shape)
    return _by_input(expand_block_mask(keep, (r, c), *score.shape), groups)


def _diagonals(factor: Matrix) -> Matrix:
    """[G, width] of [G, width, width]."""
    return np.diagonal(factor, axis1=1, axis2=2)


def _by_row(values: NDArray[Any]) -> NDArray[Any]:
    """[N, width] of [G, width, N / G]."""
    return values.transpose(0, 2, 1).reshape(-1, values.shape[1])


def _by_input(values: NDArray[Any], groups: int) -> NDArray[Any]:
    """[G, width, N / G] of [N, width]."""
    return values.reshape(groups, -1, values.shape[1]).transpose(0, 2, 1)
