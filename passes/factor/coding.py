"""Factors in their schemes: one is coded, the next is solved for again and takes up what rounding did to it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.formats import EncodedWeight, Scheme, decode, encode
from sparsec.passes.factor.form import Factor
from sparsec.passes.hessian import damped
from sparsec.passes.quantise import quantise
from sparsec.recipe import Quantize

__all__ = ["coded", "coded_pair", "least_squares"]

Matrix = NDArray[np.float64]

_TINY = 1e-9


def coded(values: ArrayLike, second_moment: ArrayLike | None, scheme: Scheme, how: Quantize) -> EncodedWeight:
    """F [N, K] in its scheme; second_moment: of its inputs [K, K], or [G, K, K] for G equal runs of rows, None where it is not known."""
    matrix = np.ascontiguousarray(values, np.float32)
    if second_moment is None or how.algorithm == "nearest":
        return encode(matrix, scheme)
    return quantise(matrix, second_moment, scheme, damping=how.damping)


def coded_pair(
    target: Matrix, left: Matrix, right: Matrix, second_moment: Matrix | None, scheme: Scheme, how: Quantize
) -> tuple[Factor, Factor]:
    """Factors v and u of U V near W: V [r, K] coded, then the best U for it coded.

    target: W [N, K]; left, right: U and V; second_moment: of the inputs [K, K], None for the unit matrix.
    """
    v = coded(right, second_moment, scheme, how)
    inner = decode(v).astype(np.float64)
    u, moment = least_squares(target, inner, second_moment)
    if not inner.any():
        u = left
    return Factor("v", v), Factor("u", coded(u, moment, scheme, how))


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
