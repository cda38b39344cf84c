"""Greedy OBS: exactly the greedy choice, near the optimum of all masks, better than SparseGPT on the same structure."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.formats import Block, block_mask_of
from sparsec.passes import hessian
from sparsec.passes.sparsify import obs as module
from sparsec.passes.sparsify.obs import obs, obs_mask
from sparsec.passes.sparsify.refit import refit
from sparsec.passes.sparsify.sparsegpt import sparsegpt
from tests.passes.sparsify.problems import SIZES, STRUCTURES, best_error, check, layer, optimum, planted, structure_of


@pytest.mark.parametrize("scheme", STRUCTURES)
@pytest.mark.parametrize("size", SIZES)
def test_legal_and_exact(size: tuple[int, int], scheme: str) -> None:
    weight, second = layer(*size, samples=20)  # fewer samples than inputs: singular
    structure = structure_of(scheme)
    for w, h in [(weight, second), (np.zeros_like(weight), second), (weight, np.zeros_like(second))]:
        mask, pruned = obs(w, h, structure)
        check(mask, structure, size)
        assert np.isfinite(pruned).all()
        assert not pruned[~mask].any()
        assert np.array_equal(mask, obs_mask(w, h, structure))


@pytest.mark.parametrize("scheme", ["s16x1@50", "sf50", "s2:4", "s50"])
def test_any_number_of_batches(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, second = layer(70, 40)
    whole = obs_mask(weight, second, structure_of(scheme))
    monkeypatch.setattr(module, "_BATCH_BYTES", 3 * 4 * 40**2)
    assert np.array_equal(whole, obs_mask(weight, second, structure_of(scheme)))


def greedy(strip: np.ndarray, h: np.ndarray, c: int, count: int) -> list[int]:
    """Blocks in the order in which the cheapest leaves, each time by refitting without every one that is left."""
    length, gone = -(-strip.shape[1] // c), list[int]()
    for _ in range(count):
        errors = {}
        for block in set(range(length)) - set(gone):
            kept = ~np.isin(np.arange(strip.shape[1]) // c, [*gone, block])
            errors[block] = hessian.error(strip, optimum(strip, np.repeat(kept[None], len(strip), 0), h), h)
        gone.append(min(errors, key=errors.__getitem__))
    return gone


@pytest.mark.parametrize("pending", [1, 4, 96])
@pytest.mark.parametrize("shape", [(1, 1), (16, 1), (5, 3), (1, 4)])
def test_it_is_the_greedy_choice(shape: tuple[int, int], pending: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PENDING", pending)
    monkeypatch.setattr(module, "_BATCH_BYTES", 4 * 25**2)  # one strip at a time
    r, c = shape
    weight, second = layer(2 * r, 23)
    structure = Block(r, c, 50) if shape != (1, 1) else structure_of("sf50")
    mask = block_mask_of(obs_mask(weight, second, structure, spread=0), structure.block)
    h = hessian.damped(second)
    for strip, kept in zip(weight.reshape(2, r, 23), mask, strict=True):
        assert sorted(greedy(strip, h, c, int((~kept).sum()))) == np.flatnonzero(~kept).tolist()


@pytest.mark.parametrize(
    ("scheme", "ratio"),
    [("s1:2", 1.1), ("s2:4", 1.1), ("sf50", 1.1), ("s4x1@50", 1.1), ("s4x2@50", 1.1), ("s3x3@34", 1.1)],
)
def test_near_the_best_of_all_masks(scheme: str, ratio: float) -> None:
    structure = structure_of(scheme)
    found, best = 0.0, 0.0
    for seed in range(12):
        weight, second = layer(4, 8, seed=seed)
        found += hessian.error(weight, obs(weight, second, structure, damping=1e-6, spread=0)[1], second)
        best += best_error(weight, structure, hessian.damped(second, 0))
    assert best <= found * (1 + 1e-5)
    assert found <= ratio * best


@pytest.mark.parametrize("scheme", STRUCTURES)
def test_beats_refitted_sparsegpt(scheme: str) -> None:
    weight, second = layer(64, 96)
    structure = structure_of(scheme)
    mask, pruned = sparsegpt(weight, second, structure)
    h = hessian.damped(second)
    ours = hessian.error(weight, obs(weight, second, structure)[1], h)
    assert ours < hessian.error(weight, refit(weight, second, mask), h) < hessian.error(weight, pruned, h)


@pytest.mark.parametrize("scheme", ["s50", "s2:4", "s16x1@50", "s4x4@75", "sf60"])
def test_planted_zeros_are_found_and_cost_nothing(scheme: str) -> None:
    structure = structure_of(scheme)
    wanted, weight, second = planted(structure, 37, 42)
    mask, pruned = obs(weight, second, structure, spread=1.0)
    assert np.array_equal(mask, wanted)
    assert np.allclose(pruned, weight, atol=1e-6)


def test_strips_that_lose_less_are_pruned_more() -> None:
    weight, second = layer(64, 60)
    weight[16:32] *= 0.1
    structure = structure_of("s16x1@50")
    even, spread = (obs(weight, second, structure, spread=s) for s in (0.0, 0.3))
    assert set(even[0][::16].sum(1)) == {30}
    assert spread[0][16].sum() == 21
    assert spread[0][::16].sum(1).max() <= 39
    assert hessian.error(weight, spread[1], second) < hessian.error(weight, even[1], second)


def test_dead_inputs_go_first() -> None:
    weight, second = layer(32, 20)
    dead = np.arange(0, 20, 3)
    second[dead], second[:, dead] = 0, 0
    assert not obs_mask(weight, second, structure_of("s16x1@50"))[:, dead].any()


def test_float32_is_enough_for_ill_conditioned_inputs() -> None:
    weight, second = layer(16, 192, samples=100)
    structure = structure_of("s16x1@50")
    for damping in (1e-2, 1e-4):
        h = hessian.damped(second, damping)
        kept = np.ones(192, bool)
        inverse, w = hessian.inverse(h), weight.astype(np.float64)
        for _ in range(96):
            cost = np.where(kept, (w**2).sum(0) / np.where(kept, inverse.diagonal(), 1), np.inf)
            k = int(cost.argmin())
            w = w - np.outer(w[:, k], inverse[k]) / inverse[k, k]
            inverse = inverse - np.outer(inverse[k], inverse[k]) / inverse[k, k]
            kept[k] = False
        exact = hessian.error(weight, w, h)
        ours = hessian.error(weight, obs(weight, second, structure, damping=damping, spread=0)[1], h)
        assert ours <= 1.01 * exact
