"""Least squares on a mask for all rows of a weight at once: conjugate gradients, every row with step sizes of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["solve_on_mask"]

Matrix = NDArray[np.floating[Any]]


def solve_on_mask(
    target: Matrix,
    start: Matrix,
    keep: NDArray[np.bool_],
    times: Callable[[Matrix], Matrix],
    diagonal: Matrix,
    *,
    tolerance: float,
    iterations: int,
    alike: bool,
) -> Matrix:
    """V [N, K], zero where `keep` is not, that nearly minimises (w - v) H (w - v)^T of each row w of `target`; no row ends worse than
    it started. Dtype of `target`, float32 or float64.

    start: V to begin with, zero off `keep`. times: V -> V H. diagonal: of H, [K] or [N, K]; it preconditions. tolerance: a row ends
    when its residual's norm fell to this share; iterations: at most as many. alike: `times` takes any rows, not only all of them;
    rows that have converged then leave.
    """
    inverse = np.where(keep, 1 / diagonal, 0).astype(target.dtype)
    result = start.copy()
    rows = np.arange(len(target))
    solution = start
    residual = np.where(keep, times(target - start), 0)
    downhill = inverse * residual
    direction = downhill
    size = _dot(residual, downhill)
    limit = size * tolerance**2
    for _ in range(iterations):
        going = size > limit
        if not going.any():
            break
        if alike and not going.all():
            result[rows[~going]] = solution[~going]
            rows, keep, inverse, limit, size = rows[going], keep[going], inverse[going], limit[going], size[going]
            solution, residual, direction, going = solution[going], residual[going], direction[going], going[going]
        moved = np.where(keep, times(direction), 0)
        curvature = _dot(direction, moved)
        going &= curvature > 0
        length = np.where(going, size / np.where(going, curvature, 1), 0)[:, None].astype(target.dtype)
        solution = solution + length * direction
        residual = residual - length * moved
        downhill = inverse * residual
        previous, size = size, _dot(residual, downhill)
        size = np.where(going, size, 0)
        ratio = np.where(going, size / np.where(previous > 0, previous, 1), 0)[:, None].astype(target.dtype)
        direction = downhill + ratio * direction
    result[rows] = solution
    return result


def _dot(a: Matrix, b: Matrix) -> NDArray[np.float64]:
    return np.asarray(np.einsum("nk,nk->n", a, b, dtype=np.float64), np.float64)
