"""Products with the second moment of a layer's inputs: [K, K] for all outputs, or [G, K, K] for G equal parts of them.

In a grouped convolution every part of the outputs reads inputs of its own, while scales and codebooks may be shared by all.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.errors import CalibrationError
from sparsec.passes import hessian as one
from sparsec.passes.hessian import Square

__all__ = ["damped", "error", "row_errors", "times"]

Matrix = NDArray[np.float32]


def damped(second_moment: ArrayLike, share: float, rows: int, cols: int) -> Square:
    """Damped float64 [K, K], or [G, K, K] where G > 1 are given, times the power of two that makes the mean of the diagonal about 1.

    So the size of the inputs never leaves the range of float32 products, and changes no result. Raises CalibrationError for what
    does not fit W [rows, cols].
    """
    moment = np.asarray(second_moment)
    if moment.shape[-2:] != (cols, cols) or moment.ndim not in (2, 3) or (moment.ndim == 3 and rows % len(moment)):
        raise CalibrationError(
            f"a weight [{rows}, {cols}] needs a second moment [{cols}, {cols}], or one for each of G equal parts of its rows; "
            f"found {list(moment.shape)}"
        )
    if moment.ndim == 2 or len(moment) == 1:
        result = one.damped(moment.reshape(cols, cols), share)
    else:
        result = np.stack([one.damped(part, share) for part in moment])
    mean = float(np.diagonal(result, axis1=-2, axis2=-1).mean())
    return np.ldexp(result, -int(np.frexp(mean)[1]))


def times(values: Matrix, hessian: Matrix) -> Matrix:
    """values [N, K] times the second moment of each row's part, float32 [N, K]."""
    if hessian.ndim == 2:
        return np.asarray(values @ hessian, np.float32)
    return np.asarray(values.reshape(len(hessian), -1, values.shape[1]) @ hessian, np.float32).reshape(values.shape)


def error(weight: ArrayLike, changed: ArrayLike, hessian: Square) -> float:
    """tr((W - V) H (W - V)^T), summed over parts."""
    if hessian.ndim == 2:
        return one.error(weight, changed, hessian)
    return sum(one.error(w, v, h) for h, w, v in one.parts(hessian, weight, changed))


def row_errors(weight: ArrayLike, changed: Matrix, hessian: Square) -> NDArray[np.float64]:
    """(w - v) H (w - v)^T of each row, float64 [N]."""
    off = np.asarray(weight, np.float32) - changed
    pull = times(off, hessian.astype(np.float32))
    return np.asarray(np.einsum("nk,nk->n", pull, off, dtype=np.float64), np.float64)
