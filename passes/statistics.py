"""What calibration finds out about the inputs of a linear layer y = W x + b."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Moments", "Statistics"]

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Statistics:
    """Moments of the K inputs x of one layer (of one group of a grouped convolution), over `samples` columns x.

    second_moment: float32 [K, K], E[(x - m)(x - m)^T] where m is `mean` if the layer's bias takes the mean's part (`centred`),
    else 0. mean: float32 [K], E[x]. cross: float32 [K, K], E[(d - x)(x - m)^T] with d the same inputs in the uncompressed model
    (their mean difference taken out likewise), or None where they are the same. mean_dense: float32 [K], E[d]. residual: float32 [N, K],
    E[(s - r)(x - m)^T] with r what another branch adds to the N outputs and s the same in the uncompressed model (their mean difference
    taken out likewise), or None where nothing is added; mean_residual: float32 [N], E[s - r].
    """

    samples: int
    second_moment: NDArray[np.float32]
    mean: NDArray[np.float32]
    mean_dense: NDArray[np.float32]
    cross: NDArray[np.float32] | None
    centred: bool
    residual: NDArray[np.float32] | None = None
    mean_residual: NDArray[np.float32] | None = None


class Moments:
    """Sums up `Statistics` over batches of inputs; products in float32, sums in float64.

    Sums are of differences to an origin near the mean, so that an input that hardly varies, or not at all, has the
    variance it has and not what rounding leaves of E[x^2] - m^2 (Chan, Golub and LeVeque, "Algorithms for computing the
    sample variance", 1983).
    """

    def __init__(self, inputs: int, *, with_dense: bool) -> None:
        self._count = 0
        self._origin: NDArray[np.float32] | None = None  # the mean of the first batch
        self._second = np.zeros((inputs, inputs))
        self._sum = np.zeros(inputs)
        self._cross = np.zeros((inputs, inputs)) if with_dense else None
        self._missing = np.zeros(inputs)
        self._residual: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def add(self, x: Floats, dense: Floats | None = None, residual: Floats | None = None) -> None:
        """x: float32 [T, K], one input a row; dense: the same inputs in the uncompressed model; residual: float32 [T, N], how much
        more another branch adds to the outputs there."""
        if not len(x):
            return
        if self._origin is None:
            self._origin = x.mean(0, dtype=np.float64).astype(np.float32)
        off = x - self._origin
        self._count += len(x)
        self._second += off.T @ off
        self._sum += off.sum(0, dtype=np.float64)
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
        n = max(self._count, 1)
        origin = np.zeros(len(self._sum)) if self._origin is None else self._origin.astype(np.float64)
        off = self._sum / n
        aim = -off if centred else origin  # moments about the origin become those about the mean, or about 0
        second = self._second / n + np.outer(off, aim) + (0 if centred else np.outer(origin, off + origin))
        np.fill_diagonal(second, np.maximum(np.diag(second), 0))
        cross = residual = missing = ahead = None
        if self._cross is not None:
            missing = self._missing / n
            cross = self._cross / n + np.outer(missing, aim)
        if self._residual is not None:
            ahead = self._residual[1] / n
            residual = self._residual[0] / n + np.outer(ahead, aim)
        mean = origin + off
        return Statistics(
            self._count,
            second.astype(np.float32),
            mean.astype(np.float32),
            (mean if missing is None else mean + missing).astype(np.float32),
            None if cross is None else cross.astype(np.float32),
            centred,
            None if residual is None else residual.astype(np.float32),
            None if ahead is None else ahead.astype(np.float32),
        )
