"""Least squares between factors, and the error they are judged by."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsec.passes.hessian import damped

__all__ = ["error", "least_squares"]

Matrix = NDArray[np.float64]

_TINY = 1e-9


def least_squares(target: Matrix, inner: Matrix, second_moment: Matrix | None) -> tuple[Matrix, Matrix]:
    """(the F [N, r] with the least tr((W - F V) H (W - F V)^T), the second moment V H V^T [r, r] of what it reads).

    target: W [N, K]; inner: V [r, K]; second_moment: H [K, K], None for the unit matrix. Where V's rows depend on each other F is
    the damped solution.
    """
    moved = inner if second_moment is None else inner @ second_moment
    moment = moved @ inner.T
    return np.asarray(np.linalg.solve(damped(moment, _TINY), moved @ target.T).T, np.float64), moment


def error(target: Matrix, found: NDArray[Any], second_moment: Matrix | None) -> float:
    """tr((W - V) H (W - V)^T), H None for the unit matrix."""
    rest = target - found
    return float(np.vdot(rest if second_moment is None else rest @ second_moment, rest))
