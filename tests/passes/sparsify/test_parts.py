"""Grouped convolutions: equal parts of the rows read inputs of their own, with a second moment [G, K, K]."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sparsec.formats import Structure
from sparsec.passes import hessian
from sparsec.passes.sparsify.dsnot import dsnot
from sparsec.passes.sparsify.gblm import gblm
from sparsec.passes.sparsify.obs import obs
from sparsec.passes.sparsify.refit import refit
from sparsec.passes.sparsify.sparsegpt import sparsegpt
from sparsec.passes.sparsify.swap import swap
from sparsec.passes.sparsify.wanda import wanda
from tests.passes.sparsify.problems import STRUCTURES, check, layer, optimum, structure_of

Found = tuple[np.ndarray, np.ndarray]


def _dsnot(weight: np.ndarray, second: np.ndarray, structure: Structure) -> Found:
    mask = dsnot(weight, second, wanda(weight, second, structure), structure)
    return mask, np.where(mask, weight, 0)


def _gblm(weight: np.ndarray, second: np.ndarray, structure: Structure) -> Found:
    mask = gblm(weight, second, np.abs(weight[::-1]), structure)
    return mask, np.where(mask, weight, 0)


def _swap(weight: np.ndarray, second: np.ndarray, structure: Structure) -> Found:
    return swap(weight, second, wanda(weight, second, structure), structure)


def _wanda(weight: np.ndarray, second: np.ndarray, structure: Structure) -> Found:
    mask = wanda(weight, second, structure)
    return mask, refit(weight, second, mask)


ALGORITHMS = [obs, sparsegpt, _dsnot, _gblm, _swap, _wanda]


CASES = [
    (algorithm, scheme)
    for scheme in (*STRUCTURES, "s4x2@50")
    for algorithm in ALGORITHMS
    if algorithm not in (_dsnot, _swap) or structure_of(scheme).block == (1, 1)  # which exchange single weights
]


@pytest.mark.parametrize(("algorithm", "scheme"), CASES)
@pytest.mark.parametrize("groups", [3, 16, 48])
def test_equal_parts_are_one(algorithm: Callable[..., Found], scheme: str, groups: int) -> None:
    """Parts with the same second moment are one matrix with that moment, strips over several parts too."""
    structure = structure_of(scheme)
    weight, second = layer(48, 18)
    mask, values = algorithm(weight, second, structure)
    apart, found = algorithm(weight, np.stack([second] * groups), structure)
    check(apart, structure, weight.shape)
    assert np.mean(apart != mask) < 0.01  # sums in another order decide what is all but equal
    same = (apart == mask).all(1)
    assert np.allclose(found[same], values[same], atol=2e-2 * np.abs(values).max())


@pytest.mark.parametrize("rows", [1, 2, 16])
@pytest.mark.parametrize("scheme", ["s16x1@50", "s4x1@50", "s50", "s2:4"])
def test_obs_removes_first_what_costs_least(rows: int, scheme: str) -> None:
    """Every part by its own inputs: weights are the best on their mask, errors below Wanda's."""
    structure, groups = structure_of(scheme), 32 // rows
    weight = layer(32, 9)[0]
    second = np.stack([layer(3, 9, seed=part)[1] for part in range(groups)])
    mask, found = obs(weight, second, structure)
    check(mask, structure, weight.shape)
    by_wanda = wanda(weight, second, structure)
    errors = [0.0] * 3
    for h, w, kept, v, other in hessian.parts(second, weight, mask, found, by_wanda):
        h = hessian.damped(h)
        for number, values in enumerate((optimum(w, kept, h), v, np.where(other, w, 0))):
            errors[number] += hessian.error(w, values, h)
    assert errors[0] <= errors[1] * (1 + 1e-6) <= 1.01 * errors[0] + 1e-9
    assert errors[1] < errors[2]
