"""The second moment of a layer's inputs, H = E[x x^T], as the Hessian of its output error: damped, factored, applied.

For a weight W [N, K] and its replacement V the expected squared error of the outputs is tr((W - V) H (W - V)^T). Methods that
compensate one weight's error on others (OBS: Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain
Surgeon", 1992) need H^-1, which exists only after damping: inputs may be dead, constant or equal, samples fewer than inputs.

In a grouped convolution each of G equal parts of the rows reads inputs of its own; their second moments are one array [G, K, K].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.errors import CalibrationError

__all__ = ["damped", "dead", "diagonals", "error", "inverse", "inverse_upper_cholesky", "parts"]

Square = NDArray[np.float64]


def damped(second_moment: ArrayLike, share: float = 0.01) -> Square:
    """H + share * d * I as float64 [K, K], where d is the mean of the diagonal over live inputs.

    A dead input (zero diagonal: it was never anything but 0) loses what rounding left off its diagonal, so it is independent
    of all others and costs next to nothing to remove. Where share is 0 its diagonal becomes d, and 1 where all inputs are dead.
    H is symmetrised. Raises CalibrationError unless H is square and finite with no negative diagonal.
    """
    result = np.array(second_moment, np.float64)
    if result.ndim != 2 or result.shape[0] != result.shape[1]:
        raise CalibrationError(f"a second moment of inputs is a square matrix; found the shape {result.shape}")
    if not np.isfinite(result).all():
        raise CalibrationError("the second moment of a layer's inputs holds NaN or Inf; check the calibration inputs")
    if share < 0:
        raise CalibrationError(f"damping is a share of the mean diagonal, 0 or more; found {share}")
    diagonal = result.diagonal().copy()
    if diagonal.min(initial=0.0) < 0:
        raise CalibrationError(f"input {int(diagonal.argmin())} has the negative second moment {diagonal.min():.3g}")
    result += result.T.copy()
    result *= 0.5
    never = dead(result)
    result[never, :] = 0
    result[:, never] = 0
    level = 1.0 if never.all() else float(diagonal[~never].mean())
    added = share * level
    diagonal += added
    diagonal[never] = level if added == 0 or never.all() else added
    np.fill_diagonal(result, diagonal)
    return result


def dead(second_moment: ArrayLike) -> NDArray[np.bool_]:
    """bool [K]: inputs that were never anything but 0, whose weights may be anything."""
    found: NDArray[np.bool_] = np.asarray(second_moment).diagonal() == 0
    return found


def diagonals(second_moment: ArrayLike, rows: int) -> Square:
    """What a squared error counts at each input [K], or, of second moments [G, K, K], at each position [N, K]."""
    moment = np.asarray(second_moment, np.float64)
    if moment.ndim == 2:
        return moment.diagonal()
    return np.repeat(np.diagonal(moment, axis1=1, axis2=2), rows // len(moment), 0)


def parts(second_moment: NDArray[Any], *matrices: ArrayLike) -> Iterator[tuple[Any, ...]]:
    """(second moment [K, K], its rows of each matrix [N, K]), part by part of second moments [G, K, K]."""
    return zip(second_moment, *(np.split(np.asarray(m), len(second_moment)) for m in matrices), strict=True)


def inverse_upper_cholesky(hessian: Square) -> Square:
    """The upper triangular U with H^-1 = U^T U, float64 [K, K], of a positive definite H (see `damped`).

    Row k of U holds what GPTQ and SparseGPT need when the inputs before k are fixed: U[k, k]^2 is the k-th diagonal element of
    the inverse of H[k:, k:], and U[k, k:] / U[k, k] its first row over that element. Raises CalibrationError if H is not
    positive definite.
    """
    from scipy.linalg.lapack import dtrtri

    # H = R R^T with R upper triangular is the Cholesky factor of H read backwards; then U = R^-1. No inverse is formed.
    lower = _cholesky(hessian[::-1, ::-1])
    upper, info = dtrtri(np.asfortranarray(lower[::-1, ::-1]), lower=0)
    if info:
        raise _not_definite()
    return np.ascontiguousarray(upper)


def inverse(hessian: Square) -> Square:
    """H^-1 as float64 [K, K], exactly symmetric. Raises CalibrationError if H is not positive definite."""
    upper = inverse_upper_cholesky(hessian)
    result: Square = upper.T @ upper
    return (result + result.T) * 0.5


def error(weight: ArrayLike, changed: ArrayLike, hessian: ArrayLike) -> float:
    """tr((W - V) H (W - V)^T) of W, V [N, K] and H [K, K]: the expected squared error of the outputs, summed over them."""
    difference = np.asarray(weight, np.float64) - np.asarray(changed, np.float64)
    return float(np.vdot(difference @ np.asarray(hessian, np.float64), difference))


def _cholesky(hessian: Square) -> Square:
    try:
        return np.asarray(np.linalg.cholesky(hessian), np.float64)
    except np.linalg.LinAlgError:
        raise _not_definite() from None


def _not_definite() -> CalibrationError:
    return CalibrationError("the second moment of a layer's inputs is not positive definite; use more damping")
