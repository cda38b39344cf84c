"""FLAP removes what a bias can stand in for, and shares the cuts between layers."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.errors import CalibrationError, SchemeError
from sparsec.passes.sparsify.fluctuation import compensating_bias, fluctuation_masks, fluctuation_scores


def test_a_score_is_what_is_lost_after_compensation() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 12)) * rng.random(12) + 5 * rng.normal(size=12)
    weight = rng.normal(size=(7, 12))
    scores = fluctuation_scores(weight, x.var(0))
    pairs = fluctuation_scores(weight, x.var(0), width=2)
    assert np.allclose(pairs, scores.reshape(6, 2).sum(1))
    for k in range(12):
        keep = np.arange(12) != k
        bias = compensating_bias(weight, x.mean(0), keep)
        lost = x @ weight.T - (x[:, keep] @ weight[:, keep].T + bias)
        assert (lost**2).sum() / 300 == pytest.approx(scores[k], rel=1e-4)


def test_compensation_beats_pruning_by_size_on_inputs_with_means() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 40)) * np.exp(rng.normal(size=40)) + 4 * rng.normal(size=40)
    weight = rng.normal(size=(20, 40))

    def lost(keep: np.ndarray, bias: np.ndarray | float) -> float:
        return float(np.square(x @ weight.T - x[:, keep] @ weight[:, keep].T - bias).sum())

    (keep,) = fluctuation_masks([fluctuation_scores(weight, x.var(0))], 50)
    assert keep.sum() == 20
    by_size = np.square(x).mean(0) * np.square(weight).sum(0)
    plain = by_size > np.median(by_size)
    assert lost(keep, compensating_bias(weight, x.mean(0), keep)) < 0.5 * lost(plain, 0.0)


def test_layers_share_the_cuts() -> None:
    rng = np.random.default_rng(2)
    even, steep = rng.uniform(0.9, 1.1, 50), np.exp(3 * rng.normal(size=100))
    for percent in (0.0, 10.0, 40.0, 77.0):
        masks = fluctuation_masks([even, steep * 1e6], percent)
        assert sum(np.count_nonzero(~mask) for mask in masks) == pytest.approx(150 * percent / 100, abs=1)
        for scores, mask in zip((even, steep), masks, strict=True):
            assert scores[mask].min() >= scores[~mask].max(initial=0)
    scaled = fluctuation_masks([even * 1e-9, steep], 77.0)
    assert all(np.array_equal(a, b) for a, b in zip(masks, scaled, strict=True))


def test_costs_count() -> None:
    scores = [np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 3, 4])]
    heads, channels = fluctuation_masks(scores, 50, costs=[3.0, 1.0])
    gone = 3 * np.count_nonzero(~heads) + np.count_nonzero(~channels)
    assert 8 <= gone <= 8 + 3


def test_every_layer_keeps_some() -> None:
    for least in (1, 3):
        masks = fluctuation_masks([np.arange(5.0), np.ones(7), np.zeros(3)], 99, least=least)
        assert [int(mask.sum()) for mask in masks] == [least] * 3
    assert fluctuation_masks([], 50) == []


def test_bad_arguments() -> None:
    with pytest.raises(CalibrationError, match="variances"):
        fluctuation_scores(np.ones((2, 3)), np.ones(2))
    with pytest.raises(CalibrationError, match="negative"):
        fluctuation_scores(np.ones((2, 3)), -np.ones(3))
    with pytest.raises(SchemeError, match="units of 2"):
        fluctuation_scores(np.ones((2, 3)), np.ones(3), width=2)
    with pytest.raises(SchemeError, match="percent"):
        fluctuation_masks([np.ones(3)], 100)
