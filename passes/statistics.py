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
    """Sums up `Statistics` over batches of inputs; products in float32, sums in float64."""

    def __init__(self, inputs: int, *, with_dense: bool) -> None:
        self._count = 0
        self._second = np.zeros((inputs, inputs))
        self._sum = np.zeros(inputs)
        self._cross = np.zeros((inputs, inputs)) if with_dense else None
        self._dense_sum = np.zeros(inputs)
        self._residual: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def add(self, x: Floats, dense: Floats | None = None, residual: Floats | None = None) -> None:
        """x: float32 [T, K], one input a row; dense: the same inputs in the uncompressed model; residual: float32 [T, N], how much
        more another branch adds to the outputs there."""
        self._count += len(x)
        self._second += x.T @ x
        self._sum += x.sum(0, dtype=np.float64)
        if self._cross is not None:
            assert dense is not None
            self._cross += (dense - x).T @ x
            self._dense_sum += dense.sum(0, dtype=np.float64)
        if residual is not None:
            product, total = self._residual or (np.zeros((residual.shape[1], x.shape[1])), np.zeros(residual.shape[1]))
            self._residual = product + residual.T @ x, total + residual.sum(0, dtype=np.float64)

    def statistics(self, *, centred: bool) -> Statistics:
        """What was added so far; at least one input."""
        n = max(self._count, 1)
        mean, second = self._sum / n, self._second / n
        dense, cross = mean, None
        residual = ahead = None
        if self._cross is not None:
            dense, cross = self._dense_sum / n, self._cross / n
        if self._residual is not None:
            residual, ahead = self._residual[0] / n, self._residual[1] / n
        if centred:
            second = second - np.outer(mean, mean)
            if cross is not None:
                cross = cross - np.outer(dense - mean, mean)
            if residual is not None and ahead is not None:
                residual = residual - np.outer(ahead, mean)
            np.fill_diagonal(second, np.maximum(np.diag(second), 0))
        return Statistics(
            self._count,
            second.astype(np.float32),
            mean.astype(np.float32),
            dense.astype(np.float32),
            None if cross is None else cross.astype(np.float32),
            centred,
            None if residual is None else residual.astype(np.float32),
            None if ahead is None else ahead.astype(np.float32),
        )
