"""The best values on a mask, before they are coded: what is left out is made up for by what is kept, output by output."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.passes.hessian import Square, diagonals
from sparsec.passes.masked_solve import solve_on_mask
from sparsec.passes.quantise.products import damped, times

__all__ = ["on_support", "solved_on_support"]

Matrix = NDArray[np.float32]

_STEPS = 40
_TOLERANCE = 1e-3


def on_support(weight: Matrix, second_moment: ArrayLike, mask: NDArray[np.bool_], *, damping: float = 0.01) -> Matrix:
    """V [N, K], zero off the mask, that nearly minimises tr((W - V) H (W - V)^T), H the damped second moment ([K, K], or [G, K, K]
    for G equal parts of the rows).

    Optimal Brain Surgeon for all pruned weights of an output at once (B. Hassibi and D. Stork, 1992), solved by conjugate gradients
    for all outputs together, so that every output may have a mask of its own.
    """
    return solved_on_support(weight, damped(second_moment, damping, *weight.shape), mask)


def solved_on_support(weight: Matrix, hessian: Square, mask: NDArray[np.bool_]) -> Matrix:
    """`on_support` for a damped Hessian."""
    wide = hessian.astype(np.float32)
    target = np.asarray(weight, np.float32)
    return np.asarray(
        solve_on_mask(
            target, np.where(mask, target, np.float32(0)), mask, lambda v: times(np.asarray(v, np.float32), wide),
            diagonals(hessian, len(mask)), tolerance=_TOLERANCE, iterations=_STEPS, alike=hessian.ndim == 2,
        ),
        np.float32,
    )  # fmt: skip
