"""How far a second moment of few samples is to be believed: parts of them are held back in turn and tell.

Rounding that makes up for itself (compensate.py) turns an error e of one value into e t over the values that follow, where t is a row of
the unit upper triangular T of H^-1 = T^T D T. Errors of rounding are alike and independent, so on other samples with the second moment
S they come to the trace of T S T^T. H of the samples that are left, damped, is tried on those held back. (Rows of one image are alike:
how many there are does not tell.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsec.passes import hessian
from sparsec.passes.statistics import Fold

__all__ = ["raised"]

_STEP, _MOST = 10**0.5, 3.0
"""Damping is raised in such steps, up to where hardly anything is made up for."""

_GAIN = 0.01
"""What a step must gain. Below, errors are as flat as they are uncertain, and what a layer makes up for of earlier ones, which T does
not count, suffers: with any gain ResNet-20 lost 0.3 points in 3 and 4 bits."""


def raised(damping: float, folds: Sequence[Fold]) -> float:
    """The damping, a share of the mean diagonal, or more where errors on the folds held back ask for it.

    Fewer than two folds, or inputs that are all constant, ask for nothing.
    """
    if len(folds) < 2 or not any(fold.second_moment.any() for fold in folds):
        return damping
    pairs = [_in_order(_together([f for f in folds if f is not held]), held) for held in folds]

    def error(level: float) -> float:
        return sum(_error(rest, held, level) for rest, held in pairs)

    found = error(damping)
    while damping * _STEP <= _MOST and (more := error(damping * _STEP)) < found * (1 - _GAIN):
        damping, found = damping * _STEP, more
    return damping


def _together(folds: Sequence[Fold]) -> hessian.Square:
    """The second moment, float64 [K, K], of all samples of some folds."""
    count = sum(fold.samples for fold in folds)
    total = np.zeros(folds[0].second_moment.shape)
    for fold in folds:
        total += fold.samples / count * fold.second_moment
    return total


def _in_order(rest: hessian.Square, held: Fold) -> tuple[hessian.Square, hessian.Square]:
    """Both second moments with large inputs first, the order in which they are rounded."""
    order = np.argsort(-rest.diagonal(), kind="stable")
    places = np.ix_(order, order)
    return rest[places], held.samples * held.second_moment.astype(np.float64)[places]


def _error(rest: hessian.Square, held: hessian.Square, level: float) -> float:
    rows = hessian.inverse_upper_cholesky(hessian.damped(rest, level))
    rows /= rows.diagonal()[:, None].copy()
    return float(np.vdot(rows @ held, rows))
