"""Paired statistics against brute force and simulation."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from sparsec.paired import bootstrap, holm, mcnemar


def test_mcnemar_counts_coin_tosses() -> None:
    first = np.array([True] * 9 + [False] * 2 + [True] * 30 + [False] * 5)
    second = np.array([False] * 9 + [True] * 2 + [True] * 30 + [False] * 5)
    extreme = sum(comb(11, k) for k in range(12) if k <= 2 or k >= 9) / 2**11
    assert mcnemar(first, second) == pytest.approx(extreme)
    assert mcnemar(first, second) == mcnemar(second, first)
    assert mcnemar(first, first) == 1


def test_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng()
    hits = 0
    for trial in range(200):
        gaps = rng.exponential(1.0, 60) - 0.75  # mean 0.25, skewed
        low, high = bootstrap(lambda rows, g=gaps: float(g[rows].mean()), 60, resamples=300, seed=trial)
        hits += low <= 0.25 <= high
    assert 170 <= hits <= 200


def test_bootstrap_is_seeded_and_paired() -> None:
    rng = np.random.default_rng()
    dense = rng.normal(0, 100, 50)
    found = dense + 1
    low, high = bootstrap(lambda rows: float((found[rows] - dense[rows]).mean()), 50, resamples=100)
    assert low == pytest.approx(1)  # the examples' own spread does not count
    assert high == pytest.approx(1)
    noisy = rng.normal(0, 1, 50)
    made = [bootstrap(lambda rows: float(noisy[rows].mean()), 50, seed=s) for s in (3, 3, 4)]
    assert made[0] == made[1] != made[2]
    narrow = bootstrap(lambda rows: float(noisy[rows].mean()), 50, confidence=0.5)
    assert made[0][0] < narrow[0] < narrow[1] < made[0][1]


def test_holm_by_hand() -> None:
    # sorted .01 .02 .04: times 3, 2, 1, never less than the one before
    np.testing.assert_allclose(holm([0.04, 0.01, 0.02]), [0.04, 0.03, 0.04])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1, 1])
    assert holm([]).size == 0
