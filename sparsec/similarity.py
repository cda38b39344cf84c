"""How close a compressed model's outputs are to the original's, without labels: error, cosine, KL divergence, top-1 agreement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["OutputSimilarity", "Similarity", "decisions"]

Array = NDArray[Any]


@dataclass(frozen=True)
class OutputSimilarity:
    """One output over all samples; what its values do not allow is None.

    error: root of the summed squared differences over the summed squares. largest: largest difference over the largest magnitude.
    cosine, least_cosine: mean and least over samples, each sample's output as one vector. kl: mean KL divergence of the compressed
    model's distributions from the original's, nats. agreement: share of decisions with the same most probable class; of equal
    elements for integers and bools.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    error: float | None
    largest: float | None
    cosine: float | None
    least_cosine: float | None
    kl: float | None
    agreement: float | None


class Similarity:
    """Sums up one output, sample by sample.

    Args:
        name: of the output.
        logits: its last axis holds logits of classes. False: KL and agreement are given only where each row of the original's
            values is a distribution (not negative, sums to one) or the logarithm of one.
    """

    def __init__(self, name: str, logits: bool) -> None:
        self.name, self.logits = name, logits
        self._like: Array = np.empty(0)
        self._squares = self._lost = self._top = self._gap = self._kl = 0.0
        self._cosines: list[float] = []
        self._same = self._decided = 0
        self._distribution = True

    def add(self, dense: Array, found: Array) -> None:
        """One sample: arrays of equal shape and dtype; infinities at equal places do not count."""
        self._like = dense
        if dense.dtype.kind != "f":
            self._same += int((dense == found).sum())
            self._decided += dense.size
            return
        finite = np.isfinite(dense)
        b, a = dense[finite].astype(np.float64), found[finite].astype(np.float64)
        lost, squares = float(((a - b) ** 2).sum()), float((b**2).sum())
        self._lost += lost
        self._squares += squares
        self._top = max(self._top, float(np.abs(b).max(initial=0)))
        self._gap = max(self._gap, float(np.abs(a - b).max(initial=0)))
        norms = np.sqrt(squares) * np.linalg.norm(a)
        self._cosines.append(float(a @ b / norms) if norms else float(lost == 0))
        if self._distribution:
            self._add_distributions(decisions(dense), decisions(found))

    def _add_distributions(self, dense: Array, found: Array) -> None:
        p, q = _log_probabilities(dense, self.logits), _log_probabilities(found, self.logits)
        if p is None or q is None or dense.shape[1] < 2:
            self._distribution = False
            return
        likely = np.isfinite(p)
        self._kl += float((np.exp(p[likely]) * (p[likely] - q[likely])).sum())
        self._same += int((dense.argmax(axis=1) == found.argmax(axis=1)).sum())
        self._decided += len(dense)

    def result(self) -> OutputSimilarity:
        """The figures over the samples so far, at least one."""
        of_classes = self._like.dtype.kind != "f" or self._distribution
        agreement = self._same / self._decided if of_classes and self._decided else None
        kind = (self.name, str(self._like.dtype), self._like.shape)
        if self._like.dtype.kind != "f":
            return OutputSimilarity(*kind, None, None, None, None, None, agreement)
        error = float(np.sqrt(self._lost / self._squares)) if self._squares else float(np.sqrt(self._lost))
        largest = self._gap / self._top if self._top else self._gap
        kl = self._kl / self._decided if self._distribution and self._decided else None
        mean, least = float(np.mean(self._cosines)), min(self._cosines)
        return OutputSimilarity(*kind, error, largest, mean, least, kl, agreement)


def decisions(output: Array) -> Array:
    """An output as [decisions, classes]: classes are its last axis, after axes of size 1 at the end are dropped."""
    while output.ndim > 1 and output.shape[-1] == 1:
        output = output[..., 0]
    return output.reshape(-1, output.shape[-1] if output.ndim else 1)


def _log_probabilities(rows: Array, logits: bool) -> Array | None:
    """float64 logarithms [N, C]; None where rows are no distributions. Probabilities of 0 count as the least float32."""
    x = rows.astype(np.float64)
    if not logits:
        if (x >= 0).all() and np.allclose(x.sum(axis=1), 1, atol=1e-3):
            return np.asarray(np.log(np.maximum(x, np.finfo(np.float32).tiny)))
        if not ((x <= 0).all() and np.allclose(np.exp(x).sum(axis=1), 1, atol=1e-3)):
            return None
    x = x - x.max(axis=1, keepdims=True, initial=-np.inf)
    return np.asarray(x - np.log(np.exp(x).sum(axis=1, keepdims=True)))
