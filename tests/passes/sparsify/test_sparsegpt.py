"""SparseGPT: legal masks, weights that compensate, less error than Wanda, near the optimum on tiny problems."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.passes import hessian
from sparsec.passes.sparsify.magnitude import magnitude_masks
from sparsec.passes.sparsify.sparsegpt import sparsegpt
from sparsec.passes.sparsify.wanda import wanda
from tests.passes.sparsify.problems import SIZES, STRUCTURES, best_error, check, layer, planted, structure_of


@pytest.mark.parametrize("scheme", STRUCTURES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("block_size", [8, 128])
def test_legal_and_exact(size: tuple[int, int], scheme: str, block_size: int) -> None:
    weight, second = layer(*size, samples=20)  # fewer samples than inputs: singular
    structure = structure_of(scheme)
    for w, h in [(weight, second), (np.zeros_like(weight), second), (weight, np.zeros_like(second))]:
        mask, pruned = sparsegpt(w, h, structure, block_size=block_size)
        check(mask, structure, size)
        assert pruned.dtype == np.float32
        assert np.isfinite(pruned).all()
        assert not pruned[~mask].any()
        again = sparsegpt(w, h, structure, block_size=block_size)
        assert np.array_equal(again[0], mask)
        assert np.array_equal(again[1], pruned)


@pytest.mark.parametrize("scheme", STRUCTURES)
def test_beats_wanda_which_beats_magnitude(scheme: str) -> None:
    weight, second = layer(64, 96)
    structure = structure_of(scheme)
    _, pruned = sparsegpt(weight, second, structure)
    (plain,) = magnitude_masks([weight], [structure])
    ours = hessian.error(weight, pruned, second)
    theirs = hessian.error(weight, weight * wanda(weight, second, structure), second)
    assert ours < 0.9 * theirs
    assert theirs < hessian.error(weight, weight * plain, second)


@pytest.mark.parametrize(
    ("scheme", "ratio"), [("s1:2", 1.6), ("s2:4", 1.6), ("sf50", 1.9), ("s4x1@50", 1.9), ("s4x2@50", 1.9)]
)
def test_near_the_best_of_all_masks(scheme: str, ratio: float) -> None:
    structure = structure_of(scheme)
    found, best = 0.0, 0.0
    for seed in range(12):
        weight, second = layer(4, 8, seed=seed)
        found += hessian.error(weight, sparsegpt(weight, second, structure, damping=1e-6)[1], second)
        best += best_error(weight, structure, hessian.damped(second, 0))
    assert best <= found * (1 + 1e-5)
    assert found <= ratio * best


@pytest.mark.parametrize("scheme", ["s50", "s2:4", "s4x1@50"])
def test_planted_zeros_are_found_and_cost_nothing(scheme: str) -> None:
    structure = structure_of(scheme)
    wanted, weight, second = planted(structure, 24, 40)
    mask, pruned = sparsegpt(weight, second, structure, block_size=40 if scheme != "s2:4" else 128)
    assert np.array_equal(mask, wanted)
    assert np.allclose(pruned, weight, atol=1e-6)


def test_dead_inputs_go_first() -> None:
    weight, second = layer(8, 20)
    dead = np.arange(0, 20, 3)
    second[dead], second[:, dead] = 0, 0
    mask, _ = sparsegpt(weight, second, structure_of("s50"))
    assert not mask[:, dead].any()


def test_copies_of_an_input_are_merged() -> None:
    rng = np.random.default_rng(0)
    weight, root = rng.normal(size=(6, 10)), rng.normal(size=(10, 30))
    second = root @ root.T / 30
    twice = np.tile(second, (2, 2))
    both = np.concatenate([weight, weight], 1)
    mask, pruned = sparsegpt(both, twice, structure_of("s50"), damping=1e-6)
    assert np.array_equal(mask, np.repeat([[False], [True]], 10, 1).reshape(1, -1).repeat(6, 0))
    assert np.allclose(pruned[:, 10:], 2 * weight, atol=1e-3)
