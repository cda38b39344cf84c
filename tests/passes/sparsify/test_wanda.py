"""Wanda keeps small weights on large inputs, and so loses less than magnitude where inputs differ in size."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.errors import CalibrationError
from sparsec.passes import hessian
from sparsec.passes.sparsify.magnitude import magnitude_masks
from sparsec.passes.sparsify.wanda import wanda
from tests.passes.sparsify.problems import SIZES, STRUCTURES, check, layer, structure_of


@pytest.mark.parametrize("scheme", STRUCTURES)
@pytest.mark.parametrize("size", SIZES)
def test_legal_and_exact(size: tuple[int, int], scheme: str) -> None:
    weight, second = layer(*size)
    for w, h in [(weight, second), (np.zeros_like(weight), second), (weight, np.zeros_like(second))]:
        mask = wanda(w, h, structure_of(scheme))
        check(mask, structure_of(scheme), size)
        assert np.array_equal(mask, wanda(w, h, structure_of(scheme)))


@pytest.mark.parametrize("scheme", STRUCTURES)
def test_beats_magnitude_on_outlier_inputs(scheme: str) -> None:
    weight, second = layer(64, 96)
    structure = structure_of(scheme)
    (plain,) = magnitude_masks([weight], [structure])
    assert plain is not None
    assert hessian.error(weight, weight * wanda(weight, second, structure), second) < 0.8 * hessian.error(
        weight, weight * plain, second
    )


def test_the_score_of_the_paper_row_by_row() -> None:
    weight, second = layer(11, 20)
    mask = wanda(weight, second, structure_of("s50"))
    score = np.abs(weight) * np.sqrt(second.diagonal())
    for row, keep in zip(score, mask, strict=True):
        assert np.array_equal(np.sort(np.argsort(row)[10:]), np.flatnonzero(keep))
    assert np.array_equal(mask, wanda(weight, second.diagonal(), structure_of("s50")))


def test_independent_inputs_make_it_optimal() -> None:
    rng = np.random.default_rng(0)
    weight, second = rng.normal(size=(6, 9)), np.diag(rng.random(9))
    mask = wanda(weight, second, structure_of("s40"), by_row=False)
    assert mask.sum() == 54 - round(54 * 0.4)
    cost = weight**2 * second.diagonal()
    assert cost[mask].min() >= cost[~mask].max()


def test_dead_inputs_go_first() -> None:
    weight, second = layer(8, 20)
    dead = np.arange(0, 20, 3)
    second[dead], second[:, dead], weight[:, dead] = 0, 0, 100
    assert not wanda(weight, second, structure_of("s50"))[:, dead].any()


def test_another_layer_s_moments() -> None:
    with pytest.raises(CalibrationError, match="7 inputs"):
        wanda(np.zeros((3, 7)), np.eye(6), structure_of("s50"))
