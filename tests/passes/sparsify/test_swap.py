"""Exchanges never raise the error and end near the best mask; that they keep it legal: test_exchange.py."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.passes import hessian
from sparsec.passes.sparsify.masks import mask_of_scores
from sparsec.passes.sparsify.obs import obs_mask
from sparsec.passes.sparsify.refit import refit
from sparsec.passes.sparsify.swap import swap
from sparsec.passes.sparsify.wanda import wanda
from tests.passes.sparsify.problems import best_error, layer, optimum, structure_of

SINGLE = ["s50", "s90", "s2:4", "s1:3", "s3:7", "sf75"]


@pytest.mark.parametrize("scheme", SINGLE)
@pytest.mark.parametrize(("rounds", "exchanges"), [(1, 1), (1, 5), (4, 32)])
def test_no_row_gets_worse(scheme: str, rounds: int, exchanges: int) -> None:
    weight, second = layer(33, 50)
    structure = structure_of(scheme)
    h = hessian.damped(second)
    for first in (wanda(weight, second, structure), obs_mask(weight, second, structure)):
        before = refit(weight, second, first)
        _, after = swap(weight, second, first, structure, rounds=rounds, exchanges=exchanges)
        for w, old, new in zip(weight[:, None], before[:, None], after[:, None], strict=True):
            assert hessian.error(w, new, h) <= hessian.error(w, old, h) * (1 + 1e-5) + 1e-9


@pytest.mark.parametrize("scheme", SINGLE)
def test_improves_a_refitted_wanda_mask(scheme: str) -> None:
    weight, second = layer(64, 96)
    structure = structure_of(scheme)
    h = hessian.damped(second)
    mask = wanda(weight, second, structure)
    better, pruned = swap(weight, second, mask, structure)
    ours = hessian.error(weight, pruned, h)
    assert ours < 0.97 * hessian.error(weight, refit(weight, second, mask), h)
    assert ours <= 1.0001 * hessian.error(weight, optimum(weight, better, h), h)


@pytest.mark.parametrize("scheme", ["s1:2", "s2:4", "sf50", "sf70"])
def test_near_the_best_of_all_masks(scheme: str) -> None:
    structure = structure_of(scheme)
    found, best = 0.0, 0.0
    for seed in range(12):
        weight, second = layer(4, 8, seed=seed)
        _, pruned = swap(weight, second, wanda(weight, second, structure), structure, damping=1e-6)
        found += hessian.error(weight, pruned, second)
        best += best_error(weight, structure, hessian.damped(second, 0))
    assert best <= found * (1 + 1e-5)
    assert found <= 1.15 * best


def test_a_planted_support_is_found_from_half_of_it() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(400, 40))
    second = x.T @ x / 400
    planted = mask_of_scores(rng.random((12, 40)), structure_of("sf75"))
    weight = np.where(planted, rng.uniform(1, 2, planted.shape), 0)
    first = planted.copy()
    for row in first:
        row[rng.permutation(np.flatnonzero(row))[:5]] = False
        row[rng.permutation(np.flatnonzero(~row))[:5]] = True
    mask, pruned = swap(weight, second, first, structure_of("sf75"))
    assert np.array_equal(mask, planted)
    assert np.allclose(pruned, weight, atol=1e-3)
