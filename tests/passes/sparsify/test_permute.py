"""Permuted inputs retain more under N:M, up to the best permutation on tiny problems."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from sparsec.passes import hessian
from sparsec.passes.sparsify.masks import mask_of_scores
from sparsec.passes.sparsify.permute import permutation, retained
from sparsec.passes.sparsify.wanda import wanda, wanda_scores
from tests.passes.sparsify.problems import SIZES, layer, structure_of


@pytest.mark.parametrize("scheme", ["s1:2", "s2:4", "s3:5", "s1:8"])
@pytest.mark.parametrize("size", [*SIZES, (40, 64)])
def test_retains_no_less_and_no_trade_retains_more(size: tuple[int, int], scheme: str) -> None:
    score = np.random.default_rng(size).random(size) ** 4
    structure = structure_of(scheme)
    order = permutation(score, structure)
    assert sorted(order.tolist()) == list(range(size[1]))
    assert np.array_equal(order, permutation(score, structure))
    best = retained(score[:, order], structure)
    assert best >= retained(score, structure) * (1 - 1e-6)
    rng = np.random.default_rng(0)
    for _ in range(50):
        i, j = rng.integers(0, size[1], 2)
        other = order.copy()
        other[[i, j]] = other[[j, i]]
        assert retained(score[:, other], structure) <= best * (1 + 1e-5)


def test_retained_is_what_the_mask_keeps() -> None:
    score = np.random.default_rng(1).random((9, 22))
    structure = structure_of("s2:4")
    assert retained(score, structure) == pytest.approx(score[mask_of_scores(score, structure)].sum())


def test_a_planted_order_is_undone() -> None:
    rng = np.random.default_rng(2)
    planted = mask_of_scores(rng.random((50, 32)), structure_of("s2:4"))
    score = np.where(planted, rng.uniform(0.5, 1, planted.shape), 0)
    shuffled = score[:, rng.permutation(32)]
    lost = [
        1 - retained(s, structure_of("s2:4")) / score.sum()
        for s in (shuffled, shuffled[:, permutation(shuffled, structure_of("s2:4"))])
    ]
    assert lost[1] < 0.5 * lost[0]


@pytest.mark.parametrize("scheme", ["s2:4", "s1:2"])
def test_near_the_best_of_all_permutations(scheme: str) -> None:
    structure = structure_of(scheme)
    gains = np.zeros(2)
    for seed in range(8):
        score = np.random.default_rng(seed).random((4, 6)) ** 3
        before = retained(score, structure)
        best = max(retained(score[:, list(p)], structure) for p in permutations(range(6)))
        gains += retained(score[:, permutation(score, structure)], structure) - before, best - before
    assert 0.8 * gains[1] <= gains[0] <= gains[1] * (1 + 1e-6)


def test_output_error_falls() -> None:
    weight, second = layer(64, 96)
    structure = structure_of("s2:4")
    order = permutation(wanda_scores(weight, second), structure)
    there = (weight[:, order], second[np.ix_(order, order)])
    before = hessian.error(weight, weight * wanda(weight, second, structure), second)
    after = hessian.error(there[0], there[0] * wanda(*there, structure), there[1])
    assert after < 0.9 * before


def test_nothing_to_gain() -> None:
    for score in (np.zeros((3, 9)), np.ones((3, 9))):
        assert permutation(score, structure_of("s2:4")).tolist() == list(range(9))


def test_many_rows_are_told_by_some_of_them() -> None:
    rng = np.random.default_rng(3)
    score = rng.random((500, 24)) ** 4 * np.where(np.arange(24) % 8 < 4, 1, 0.1)
    structure = structure_of("s2:4")
    order = permutation(score, structure)
    every = np.mean([retained(score[:, rng.permutation(24)], structure) for _ in range(20)])
    assert retained(score[:, order], structure) > every > retained(score, structure)
    # Where rows have nothing in common, what some of them gain may be lost in the others; then nothing changes.
    noise = rng.random((1000, 8))
    assert retained(noise[:, permutation(noise, structure)], structure) >= retained(noise, structure)
