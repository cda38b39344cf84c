"""FLAP (An, Zhao, Yu, Tang, Wang, "Fluctuation-based Adaptive Structured Pruning for Large Language Models", 2023).

An input channel that hardly varies over the calibration samples can go: its mean times its weights becomes part of the bias. What
is lost then is the variance of the channel times the squared norm of its weights. Scores of each layer are standardised, so that
all layers' channels (or heads) compete for one share.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.errors import CalibrationError, SchemeError
from sparsec.passes.sparsify.masks import Mask, drop_lowest

__all__ = ["compensating_bias", "fluctuation_masks", "fluctuation_scores"]

Vector = NDArray[np.float64]


def fluctuation_scores(weight: ArrayLike, variance: ArrayLike, *, width: int = 1) -> Vector:
    """Var(x_k) * ||W[:, k]||^2, float64 [K / width], summed over units of `width` neighbouring inputs (heads).

    weight: [N, K] of the layer that reads the inputs; variance: [K], 0 or more: the diagonal of the centred second moment.
    """
    w, spread = np.asarray(weight, np.float64), np.asarray(variance, np.float64)
    if spread.shape != w.shape[1:] or not (spread >= 0).all():
        raise CalibrationError(
            f"a weight of {w.shape[1]} inputs needs as many variances, none negative; found {spread.shape}"
        )
    if w.shape[1] % width:
        raise SchemeError(f"{w.shape[1]} inputs do not divide into units of {width}")
    scores: Vector = spread * np.square(w).sum(0)
    return np.asarray(scores.reshape(-1, width).sum(1))


def fluctuation_masks(
    scores: Sequence[Vector], percent: float, *, costs: Sequence[float] | None = None, least: int = 1
) -> list[Mask]:
    """Which units of each layer stay, bool, so that `percent` of what all units cost goes: the lowest of the standardised scores.

    costs: parameters of one unit of each layer (1 each), so that a head may count for more than a channel; the unit with which the
    share is reached goes too. Every layer keeps at least `least` units. Layers of equal scores stand at the average.
    """
    if not 0 <= percent < 100:
        raise SchemeError(f"{percent:g} percent of the units is out of range; 0 to below 100 is allowed")
    if not scores:
        return []
    prices = [1.0] * len(scores) if costs is None else list(costs)
    standard = [(s - s.mean()) / s.std() if s.std() > 0 else np.zeros_like(s) for s in scores]
    protected = [drop_lowest(s, max(0, s.size - least)) for s in scores]
    flat = np.concatenate([np.where(p, np.inf, s) for p, s in zip(protected, standard, strict=True)])
    price = np.concatenate([np.full(s.size, cost) for s, cost in zip(scores, prices, strict=True)])
    order = np.argsort(flat, kind="stable")
    before = np.cumsum(price[order]) - price[order]  # gone when a unit's turn comes
    # A thousandth of a unit is rounding of the sums.
    goes = (before < price.sum() * percent / 100 - 1e-3 * min(prices)) & np.isfinite(flat[order])
    keep = np.ones(flat.size, bool)
    keep[order[goes]] = False
    return np.split(keep, np.cumsum([s.size for s in scores])[:-1])


def compensating_bias(weight: ArrayLike, mean: ArrayLike, keep: ArrayLike) -> NDArray[np.float32]:
    """What the bias gains when inputs go, float32 [N]: W[:, gone] E[x_gone]. weight [N, K], mean [K], keep bool [K]."""
    gone = ~np.asarray(keep, bool)
    return np.asarray(np.asarray(weight, np.float64)[:, gone] @ np.asarray(mean, np.float64)[gone], np.float32)
