"""Paired comparison of two models on the same examples: bootstrap intervals, McNemar's test, Holm's correction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["bootstrap", "holm", "mcnemar"]


def bootstrap(
    difference: Callable[[NDArray[np.intp]], float],
    count: int,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a paired difference (Efron, "Bootstrap methods: another look at the jackknife", 1979).

    Examples are drawn with replacement, both models' results of an example together; the same seed gives the same interval.

    Args:
        difference: the difference of the two scores over the examples at these indices [count], which may repeat.
        count: examples, at least one.
        resamples: how often they are drawn.
        confidence: share of the draws that lies within the interval.
    """
    rng = np.random.default_rng(seed)
    found = [difference(rng.integers(count, size=count)) for _ in range(resamples)]
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Two-sided exact p-value that two models are right equally often (McNemar, "Note on the sampling error of the difference
    between correlated proportions or percentages", 1947): the examples that only one of them gets right are coin tosses.

    Args:
        first, second: bool [N], whether each model is right on each example.
    """
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    tosses = only_first + only_second
    return float(binomtest(only_first, tosses, 0.5).pvalue) if tosses else 1.0


def holm(values: Sequence[float] | NDArray[Any]) -> NDArray[np.float64]:
    """p-values [N] of N tests, corrected for their number (Holm, "A simple sequentially rejective multiple test procedure", 1979)."""
    p = np.asarray(values, np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return corrected
