"""What calibration finds out about the inputs of a linear layer y = W x + b."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Fold", "Moments", "Statistics"]

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Fold:
    """A part of the samples by itself: `samples` columns x and their second moment, float32 [K, K], about the mean of all."""

    samples: int
    second_moment: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Statistics:
    """Moments of the K inputs x of one layer (of one group of a grouped convolution), over `samples` columns x.

    second_moment: float32 [K, K], E[(x - m)(x - m)^T] where m is `mean` if the layer's bias takes the mean's part (`centred`),
    else 0. mean: float32 [K], E[x]. cross: float32 [K, K], E[(d - x)(x - m)^T] with d the same inputs in the uncompressed model
    (their mean difference taken out likewise), or None where they are the same. mean_dense: float32 [K], E[d]. residual: float32 [N, K],
    E[(s - r)(x - m)^T] with r what another branch adds to the N outputs and s the same in the uncompressed model (their mean difference
    taken out likewise), or None where nothing is added; mean_residual: float32 [N], E[s - r]. folds: parts that make up the whole,
    for choices that samples held back decide; none where they were not kept apart.
    """

    samples: int
    second_moment: NDArray[np.float32]
    mean: NDArray[np.float32]
    mean_dense: NDArray[np.float32]
    cross: NDArray[np.float32] | None
    centred: bool
    residual: NDArray[np.float32] | None = None
    mean_residual: NDArray[np.float32] | None = None
    folds: tuple[Fold, ...] = ()


class _Sums:
    """Of one part of the samples: how many, of off off^T, of off (`off` from the origin)."""

    def __init__(self, inputs: int) -> None:
        self.count = 0
        self.second = np.zeros((inputs, inputs))
        self.first = np.zeros(inputs)


class Moments:
    """Sums up `Statistics` over batches of inputs; products in float32, sums in float64.

    Sums are of differences to an origin near the mean, so that an input that hardly varies, or not at all, has the
    variance it has and not what rounding leaves of E[x^2] - m^2 (Chan, Golub and LeVeque, "Algorithms for computing the
    sample variance", 1983).
    """

    def __init__(self, inputs: int, *, with_dense: bool, folds: int = 1) -> None:
        self._origin: NDArray[np.float32] | None = None  # the mean of the first batch
        self._folds = [_Sums(inputs) for _ in range(folds)]
        self._cross = np.zeros((inputs, inputs)) if with_dense else None
        self._missing = np.zeros(inputs)
        self._residual: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def add(self, x: Floats, dense: Floats | None = None, residual: Floats | None = None, *, fold: int = 0) -> None:
        """x: float32 [T, K], one input a row; dense: the same inputs in the uncompressed model; residual: float32 [T, N], how much
        more another branch adds to the outputs there; fold: which part of the samples they are of."""
        if not len(x):
            return
        if self._origin is None:
            self._origin = x.mean(0, dtype=np.float64).astype(np.float32)
        off = x - self._origin
        sums = self._folds[fold]
        sums.count += len(x)
        sums.second += off.T @ off
        sums.first += off.sum(0, dtype=np.float64)
        if self._cross is not None:
            assert dense is not None
            missing = dense - x
            self._cross += missing.T @ off
            self._missing += missing.sum(0, dtype=np.float64)
        if residual is not None:
            product, total = self._residual or (np.zeros((residual.shape[1], x.shape[1])), np.zeros(residual.shape[1]))
            self._residual = product + residual.T @ off, total + residual.sum(0, dtype=np.float64)

    def statistics(self, *, centred: bool) -> Statistics:
        """What was added so far; at least one input."""
        count, off = 0, np.zeros_like(self._folds[0].first)
        second = np.zeros_like(self._folds[0].second)
        for sums in self._folds:
            count += sums.count
            off += sums.first
            second += sums.second
        n = max(count, 1)
        off /= n
        second /= n
        origin = np.zeros_like(off) if self._origin is None else self._origin.astype(np.float64)
        aim = -off if centred else origin  # moments about the origin become those about the mean, or about 0
        second += _shift(off, aim)
        _without_negatives(second)
        cross = residual = missing = ahead = None
        if self._cross is not None:
            missing = self._missing / n
            cross = self._cross / n + np.outer(missing, aim)
        if self._residual is not None:
            ahead = self._residual[1] / n
            residual = self._residual[0] / n + np.outer(ahead, aim)
        mean = origin + off
        return Statistics(
            count,
            second.astype(np.float32),
            mean.astype(np.float32),
            (mean if missing is None else mean + missing).astype(np.float32),
            None if cross is None else cross.astype(np.float32),
            centred,
            None if residual is None else residual.astype(np.float32),
            None if ahead is None else ahead.astype(np.float32),
            self._apart(aim),
        )

    def _apart(self, aim: NDArray[np.float64]) -> tuple[Fold, ...]:
        """The folds that have samples, if there is more than one."""
        found = []
        for sums in self._folds:
            if sums.count:
                second = sums.second / sums.count + _shift(sums.first / sums.count, aim)
                _without_negatives(second)
                found.append(Fold(sums.count, second.astype(np.float32)))
        return tuple(found) if len(found) > 1 else ()


def _without_negatives(second_moment: NDArray[np.float64]) -> None:
    """What rounding left below 0 on a diagonal becomes 0."""
    np.fill_diagonal(second_moment, np.maximum(np.diag(second_moment), 0))


def _shift(mean: NDArray[np.float64], aim: NDArray[np.float64]) -> NDArray[np.float64]:
    """What second moments gain where every vector, on average `mean`, is moved by `aim`."""
    found: NDArray[np.float64] = np.outer(mean, aim) + np.outer(aim, mean + aim)
    return found
