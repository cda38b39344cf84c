"""Monarch matrices: two block-diagonal factors with a fixed permutation between them, and the nearest ones to a weight.

T. Dao et al., "Monarch: Expressive Structured Matrices for Efficient and Accurate Training", 2022. W is cut into blocks x blocks parts;
part (j, i) has a low rank, its inner factor among those of input block i, its outer one among those of output block j, so that the
nearest Monarch matrix is a truncated singular value decomposition of each part. Outputs stay in their order (the paper's last
permutation only reorders them). Weighed by inputs, parts of one output block share errors: the two factors are solved for in turn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.passes.factor.fit import least_squares
from sparsec.passes.factor.svd import svd
from sparsec.passes.factor.whitened import whitened
from sparsec.passes.hessian import damped, inverse

__all__ = ["inner_rows", "monarch", "outer"]

Matrix = NDArray[np.float64]

_TINY = 1e-9


def monarch(
    weight: ArrayLike, blocks: int, rank: int = 1, second_moment: ArrayLike | None = None, *, turns: int = 3
) -> tuple[Matrix, Matrix]:
    """(L [N, b r], R [b b r, K / b]), float64, of the Monarch matrix near W: block-diagonal factors as in `form.Factor`.

    R's rows are [input block, output block, r]; L reads them as [output block, input block, r]. weight: W [N, K], blocks a divisor of
    both; second_moment: of the inputs [K, K], or None for the nearest W. turns: of solving for L and R, with a second moment.
    Raises WeightError for a rank that the parts have not.
    """
    w = np.asarray(weight, np.float64)
    rows, cols = w.shape[0] // blocks, w.shape[1] // blocks
    h = None if second_moment is None else np.asarray(second_moment, np.float64)
    left = np.zeros((blocks, rows, blocks, rank))
    right = np.zeros((blocks, blocks, rank, cols))
    for i, columns in enumerate(_runs(blocks, cols)):
        own = None if h is None else h[columns, columns]
        for j, lines in enumerate(_runs(blocks, rows)):
            part = w[lines, columns]
            left[j, :, i], right[i, j] = svd(part, rank) if own is None else whitened(part, own, rank)
    if h is not None:
        inverses = [inverse(damped(h[columns, columns], _TINY)) for columns in _runs(blocks, cols)]
        for _ in range(turns):
            left = outer(w, right, h)[0].reshape(left.shape)
            _improve_inner(w, left, right, h, inverses)
        left = outer(w, right, h)[0].reshape(left.shape)
    return left.reshape(w.shape[0], -1), right.reshape(-1, cols)


def outer(weight: Matrix, right: Matrix, second_moment: Matrix | None) -> tuple[Matrix, Matrix]:
    """(the best L [N, b r] for an R [b, b, r, K / b], the second moments [b, b r, b r] of what its blocks read)."""
    blocks = len(right)
    found = [
        least_squares(part, inner_rows(right, j), second_moment) for j, part in enumerate(np.split(weight, blocks))
    ]
    return np.concatenate([left for left, _ in found]), np.stack([moment for _, moment in found])


def inner_rows(right: Matrix, j: int) -> Matrix:
    """What output block j reads, as rows [b r, K] over all inputs."""
    blocks, _, rank, cols = right.shape
    result = np.zeros((blocks, rank, blocks, cols))
    every = np.arange(blocks)
    result[every, :, every] = right[:, j]
    return result.reshape(blocks * rank, blocks * cols)


def _improve_inner(weight: Matrix, left: Matrix, right: Matrix, h: Matrix, inverses: list[Matrix]) -> None:
    """Solve for R's parts one after the other, in place; no step raises the error."""
    blocks, cols = len(right), right.shape[3]
    for j, part in enumerate(np.split(weight, blocks)):
        rest = part - left[j].reshape(len(part), -1) @ inner_rows(right, j)
        for i, columns in enumerate(_runs(blocks, cols)):
            own = left[j, :, i]
            step = np.linalg.solve(damped(own.T @ own, _TINY), own.T @ (rest @ h[:, columns])) @ inverses[i]
            right[i, j] += step
            rest[:, columns] -= own @ step


def _runs(blocks: int, size: int) -> list[slice]:
    return [slice(start * size, (start + 1) * size) for start in range(blocks)]
