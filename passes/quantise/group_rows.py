"""Rows in an order in which neighbours are alike, so that codebooks for runs of rows fit them.

The reordering of neurons of E. Yvinec, A. Dapogny, K. Bailly, "Network Memory Footprint Compression Through Jointly Learnable Codebooks and
Mappings" (JLCM), 2023. A codebook sees a row as a distribution of values; how far two of them are apart is told by their quantiles
(the Wasserstein distance of one dimension). Groups of equal size around their means are found as in k-means.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["row_order"]

Matrix = NDArray[np.floating]
Indices = NDArray[np.intp]

_QUANTILES = 32
_MOST_ASSIGNED = 1024
"""Of more rows the order of the first principal component stays: the exact assignment takes the cube of their number."""


def row_order(weight: Matrix, span: int, *, rounds: int = 20) -> Indices:
    """The order of rows int [N]: `weight[order]` has rows that are alike in each run of `span`; inside a run they keep their order.

    weight: [N, K]; weights whose rows must be ordered alike lie side by side. The spread of quantiles within runs is never larger
    than in the given order.
    """
    from scipy.optimize import linear_sum_assignment

    quantiles = _quantiles(np.asarray(weight, np.float64))
    rows = len(quantiles)
    run = np.arange(rows) // span
    best = run.copy()
    centred = quantiles - quantiles.mean(0)
    along = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    found = np.empty(rows, np.intp)
    found[np.argsort(along, kind="stable")] = run
    lowest = _spread(quantiles, best)
    for _ in range(rounds):
        spread = _spread(quantiles, found)
        if spread < lowest * (1 - 1e-9):
            best, lowest = found, spread
        elif found is not best and spread > lowest:
            break
        if rows > _MOST_ASSIGNED:
            break
        means = np.stack([quantiles[found == group].mean(0) for group in range(run[-1] + 1)])
        cost = np.square(quantiles).sum(1)[:, None] - 2 * quantiles @ means.T + np.square(means).sum(1)
        _, chosen = linear_sum_assignment(cost[:, run])
        new = run[chosen]
        if np.array_equal(new, found):
            break
        found = new
    return np.asarray(np.argsort(best, kind="stable"), np.intp)


def _quantiles(weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Equally many values of each row, ascending."""
    ordered = np.sort(weight, axis=1)
    cols = ordered.shape[1]
    if cols <= _QUANTILES:
        return ordered
    return np.asarray(np.quantile(ordered, (np.arange(_QUANTILES) + 0.5) / _QUANTILES, axis=1).T)


def _spread(quantiles: NDArray[np.float64], run: Indices) -> float:
    """Sum of squares around the means of the runs."""
    groups = int(run.max()) + 1
    counts = np.bincount(run, minlength=groups)
    sums = np.stack([np.bincount(run, column, groups) for column in quantiles.T], 1)
    return float(np.square(quantiles).sum() - (np.square(sums) / counts[:, None]).sum())
