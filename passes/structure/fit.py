"""Least squares for a layer that should give other outputs on other inputs, from moments; pure numpy.

W' = W + E[(y - W x) x^T] (E[x x^T] + d I)^-1, with means taken out: the solution of "Channel Pruning for Accelerating Very Deep Neural
Networks" (He, Zhang, Sun, 2017; without its choice of channels), pulled towards the present weight as far as samples are few.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from sparsec.passes import hessian

__all__ = ["Sums", "best_fit", "fitted"]

Array = np.ndarray[Any, Any]
Floats = NDArray[np.float64]

_DAMPINGS = (1.0, 10.0, 100.0)
"""Times the damping asked for; what one half of the samples says about the other half decides."""


@dataclass(eq=False)
class Sums:
    """Sums over rows of inputs x [T, K] and wanted outputs y [T, N], float64; sums may be added."""

    count: int
    x: Floats
    y: Floats
    xx: Floats
    yx: Floats

    @classmethod
    def of(cls, x: Array, y: Array) -> Sums:
        """Of some rows; products in the precision of the arguments."""
        return cls(
            len(x), x.sum(0, dtype=np.float64), y.sum(0, dtype=np.float64), (x.T @ x).astype(np.float64),
            (y.T @ x).astype(np.float64),
        )  # fmt: skip

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.count + other.count, self.x + other.x, self.y + other.y, self.xx + other.xx, self.yx + other.yx
        )

    def centred(self) -> tuple[Floats, Floats, Floats, Floats]:
        """E[x], E[y], and E[x x^T], E[y x^T] with means taken out."""
        n = max(self.count, 1)
        x, y = self.x / n, self.y / n
        second = self.xx / n - np.outer(x, x)
        np.fill_diagonal(second, np.maximum(np.diag(second), 0))
        return x, y, second, self.yx / n - np.outer(y, x)


def fitted(weight: Array, second_moment: Array, cross: Array, damping: float) -> Floats:
    """W + (C - W S) (S + d I)^-1, float64 [N, K].

    weight: [N, K]; second_moment: S = E[x x^T], [K, K]; cross: C = E[y x^T], [N, K], both with means taken out; damping: d as a
    share of the mean of S's diagonal. Inputs that never change keep their weights.
    """
    start = np.asarray(weight, np.float64)
    missing = np.asarray(cross, np.float64) - start @ np.asarray(second_moment, np.float64)
    missing[:, hessian.dead(second_moment)] = 0
    step = linalg.solve(hessian.damped(second_moment, max(damping, 1e-9)), missing.T, assume_a="pos").T
    return np.asarray(start + step, np.float64)


def best_fit(weight: Array, halves: tuple[Sums, Sums], damping: float) -> Floats:
    """`fitted` to both halves of the samples, with the damping (from `damping` up) that does best on the half it has not seen;
    the weight as it is where every fit does worse."""
    moments = [half.centred() for half in halves]
    if min(half.count for half in halves) == 0:
        _, _, second, cross = (halves[0] + halves[1]).centred()
        return fitted(weight, second, cross, damping)
    start = np.asarray(weight, np.float64)
    best = 0.0
    least = sum(_error(start, second, cross) for _, _, second, cross in moments)
    for times in _DAMPINGS:
        found = 0.0
        for (_, _, second, cross), (_, _, unseen, unseen_cross) in zip(moments, moments[::-1], strict=True):
            found += _error(fitted(start, second, cross, damping * times), unseen, unseen_cross)
        if found < least:
            best, least = times, found
    if not best:
        return start
    _, _, second, cross = (halves[0] + halves[1]).centred()
    return fitted(start, second, cross, damping * best)


def _error(weight: Floats, second_moment: Floats, cross: Floats) -> float:
    """E|y - W x|^2 less E|y|^2."""
    return float(np.vdot(weight @ second_moment, weight) - 2 * np.vdot(weight, cross))
