"""Refitted weights are the optimum on their mask, row by row."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.errors import WeightError
from sparsec.passes import hessian
from sparsec.passes.sparsify.refit import refit
from sparsec.passes.sparsify.sparsegpt import sparsegpt
from tests.passes.sparsify.problems import STRUCTURES, layer, optimum, structure_of


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (16, 13), (33, 61)])
@pytest.mark.parametrize("shared", [False, True])
def test_solves_each_row(shape: tuple[int, int], shared: bool) -> None:
    weight, second = layer(*shape, samples=30)
    rng = np.random.default_rng(shape)
    mask = np.repeat(rng.random((1, shape[1])) < 0.6, shape[0], 0) if shared else rng.random(shape) < 0.6
    h = hessian.damped(second)
    found = refit(weight, second, mask, tolerance=1e-8)
    assert found.dtype == np.float32
    assert not found[~mask].any()
    unit = np.sqrt(h.diagonal())
    assert np.allclose(found * unit, optimum(weight, mask, h) * unit, atol=1e-4 * np.abs(weight * unit).max())


@pytest.mark.parametrize("scheme", STRUCTURES)
def test_improves_sparsegpt_nearly_to_the_optimum(scheme: str) -> None:
    weight, second = layer(40, 64)
    h = hessian.damped(second)
    mask, pruned = sparsegpt(weight, second, structure_of(scheme))
    for start in (None, pruned):
        found = hessian.error(weight, refit(weight, second, mask, start=start), h)
        assert found < hessian.error(weight, pruned, h)
        assert found <= 1.0001 * hessian.error(weight, optimum(weight, mask, h), h)


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_no_row_ends_worse_than_it_started(iterations: int) -> None:
    weight, second = layer(20, 48)
    h = hessian.damped(second)
    mask = np.random.default_rng(0).random(weight.shape) < 0.5
    errors = [hessian.error(w, v, h) for w, v in zip(weight[:, None], (weight * mask)[:, None], strict=True)]
    found = refit(weight, second, mask, iterations=iterations)
    for w, v, before in zip(weight[:, None], found[:, None], errors, strict=True):
        assert hessian.error(w, v, h) <= before * (1 + 1e-6)


def test_degenerate_problems() -> None:
    weight, second = layer(9, 30, samples=5)
    rng = np.random.default_rng(1)
    mask = rng.random(weight.shape) < 0.5
    mask[3] = False
    second[:, 4], second[4] = 0, 0
    found = refit(weight, second, mask)
    assert np.isfinite(found).all()
    assert not found[3].any()
    assert not found[:, 4].any()
    assert np.array_equal(found, refit(weight, second, mask))
    assert not refit(np.zeros_like(weight), second, mask).any()
    assert not refit(weight, np.zeros_like(second), mask).any()
    assert np.allclose(refit(weight, second, np.ones_like(mask))[:, 5:], weight[:, 5:], rtol=1e-5)


def test_a_mask_of_another_shape() -> None:
    with pytest.raises(WeightError, match="mask"):
        refit(np.zeros((2, 3)), np.eye(3), np.ones((3, 2), bool))
