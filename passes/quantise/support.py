"""The best values on a mask, before they are coded: what is left out is made up for by what is kept, output by output."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.passes.hessian import Square
from sparsec.passes.quantise.products import damped, diagonals, times

__all__ = ["on_support", "solved_on_support"]

Matrix = NDArray[np.float32]

_STEPS = 40
_ENOUGH = 1e-6  # of the first squared gradient


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
    inverse = np.where(mask, (1 / diagonals(hessian, len(mask))).astype(np.float32), np.float32(0))
    target = np.asarray(weight, np.float32)
    values = np.where(mask, target, np.float32(0))

    def dot(a: Matrix, b: Matrix) -> NDArray[np.float64]:
        return np.asarray(np.einsum("nk,nk->n", a, b, dtype=np.float64), np.float64)[:, None]

    residual = np.where(mask, times(target - values, wide), np.float32(0))
    downhill = inverse * residual
    direction = downhill
    size = first = dot(residual, downhill)
    for _ in range(_STEPS):
        moved = np.where(mask, times(direction, wide), np.float32(0))
        curvature = dot(direction, moved)
        going = (curvature > 0) & (size > _ENOUGH * first)
        if not going.any():
            break
        length = np.where(going, size / np.where(going, curvature, 1), 0).astype(np.float32)
        values += length * direction
        residual -= length * moved
        downhill = inverse * residual
        new = dot(residual, downhill)
        ratio = np.where(going, new / np.where(size > 0, size, 1), 0).astype(np.float32)
        direction = downhill + ratio * direction
        size = np.where(going, new, size)
    return values
