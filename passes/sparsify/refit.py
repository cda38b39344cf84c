"""The best weights on a given mask: argmin over V, zero off it, of tr((W - V) H (W - V)^T).

Each row is a linear system in its kept weights, H_SS v = (H w)_S. Rows that share a mask (strips) share a Cholesky factor and are
solved exactly; all others at once by conjugate gradients preconditioned with the diagonal, one product with H an iteration, as
after the pruning of Meng, Behdin, Wang and Mazumder, "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large
Language Models" (2024).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.errors import WeightError
from sparsec.passes import hessian
from sparsec.passes.masked_solve import solve_on_mask

__all__ = ["refit"]

Matrix = NDArray[np.float64]

_SHARED = 4
"""Rows that must share a mask for a factor of their own; below, iterations are cheaper."""


def refit(
    weight: ArrayLike,
    second_moment: ArrayLike,
    mask: ArrayLike,
    *,
    start: ArrayLike | None = None,
    damping: float = 0.01,
    tolerance: float = 1e-3,
    iterations: int = 200,
) -> NDArray[np.float32]:
    """Float32 weights [N, K], zero off the mask, of the smallest error on H = `hessian.damped(second_moment, damping)`.

    weight: W [N, K], what the outputs should be; second_moment: E[x x^T] [K, K], [G, K, K] for G equal parts of the rows; mask:
    bool [N, K]; start: weights to begin with (W itself); only their values on the mask count. tolerance: the iterations of a row
    end when its residual's norm (of the system scaled to a unit diagonal) fell to this share; iterations: at most as many. No row
    ends worse than it started. Weights of dead inputs become 0.
    """
    if (moment := np.asarray(second_moment)).ndim == 3:
        parts = hessian.parts(moment, weight, mask, weight if start is None else start)
        found = [
            refit(w, h, kept, start=v, damping=damping, tolerance=tolerance, iterations=iterations)
            for h, w, kept, v in parts
        ]
        return np.concatenate(found)
    w, keep = np.asarray(weight, np.float64), np.asarray(mask, bool)
    if keep.shape != w.shape:
        raise WeightError(f"a weight {w.shape} needs a mask of its shape; found {keep.shape}")
    dead = hessian.dead(second_moment)
    keep = keep & ~dead
    h = hessian.damped(second_moment, damping)
    # In units in which H has a unit diagonal conjugate gradients are preconditioned, and rounding treats all inputs alike.
    unit = np.sqrt(h.diagonal())
    h /= unit
    h /= unit[:, None]
    target = np.where(dead, 0.0, w) * unit
    result = np.where(keep, target if start is None else np.asarray(start, np.float64) * unit, 0.0)
    _, which, counts = np.unique(np.packbits(keep, axis=1), axis=0, return_inverse=True, return_counts=True)
    which = which.reshape(-1)
    for shared in np.flatnonzero(counts >= _SHARED):
        rows = np.flatnonzero(which == shared)
        result[rows] = _exact(target[rows], h, keep[rows[0]])
    alone = np.flatnonzero(counts[which] < _SHARED)
    if alone.size:
        result[alone] = solve_on_mask(
            target[alone], result[alone], keep[alone], lambda v: v @ h, np.ones(len(h)),
            tolerance=tolerance, iterations=iterations, alike=True,
        )  # fmt: skip
    return np.asarray(result / unit, np.float32)


def _exact(target: Matrix, h: Matrix, kept: NDArray[np.bool_]) -> Matrix:
    """Rows that share one mask [K]."""
    from scipy.linalg import cho_factor, cho_solve

    chosen = np.flatnonzero(kept)
    result = np.zeros_like(target)
    if chosen.size:
        factor = cho_factor(h[np.ix_(chosen, chosen)], lower=True, overwrite_a=True, check_finite=False)
        result[:, chosen] = cho_solve(factor, (target @ h[:, chosen]).T, check_finite=False).T
    return result
