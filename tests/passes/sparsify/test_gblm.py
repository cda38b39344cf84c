"""Gradients move Wanda's choice to what the loss feels."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.errors import CalibrationError
from sparsec.passes.sparsify.gblm import gblm, gblm_scores
from sparsec.passes.sparsify.wanda import wanda
from tests.passes.sparsify.problems import SIZES, STRUCTURES, check, layer, structure_of


@pytest.mark.parametrize("scheme", STRUCTURES)
@pytest.mark.parametrize("size", SIZES)
def test_legal_and_exact(size: tuple[int, int], scheme: str) -> None:
    weight, second = layer(*size)
    gradient = np.random.default_rng(0).random(size)
    for w, g in [(weight, gradient), (weight * 0, gradient), (weight, gradient * 0)]:
        check(gblm(w, second, g, structure_of(scheme)), structure_of(scheme), size)
    flat = gblm(weight, second, gradient * 0, structure_of(scheme))
    assert np.array_equal(flat, wanda(weight, second, structure_of(scheme)))


def test_the_score_of_the_paper() -> None:
    weight, second = layer(5, 8)
    gradient = np.random.default_rng(1).random((5, 8))
    wanted = np.abs(weight) * np.sqrt(second.diagonal()) + 7 * np.abs(weight) * gradient
    assert np.allclose(np.sqrt(gblm_scores(weight, second, gradient**2, alpha=7)), wanted)


def test_beats_wanda_where_outputs_matter_unequally() -> None:
    """A loss that reads some outputs more than others, all weights competing: Wanda cannot know."""
    rng = np.random.default_rng(2)
    weight, x = rng.normal(size=(40, 30)), rng.normal(size=(500, 30))
    matters = np.exp(2 * rng.normal(size=40))
    target = x @ weight.T + rng.normal(size=(500, 40))
    slope = (x @ weight.T - target) * matters
    gradient = np.square(slope).T @ np.square(x) / 500
    second, structure = x.T @ x / 500, structure_of("s60")

    def loss(mask: np.ndarray) -> float:
        return float((np.square(x @ (weight * mask).T - target) * matters).mean())

    ours = loss(gblm(weight, second, gradient, structure, by_row=False))
    assert ours < 0.8 * loss(wanda(weight, second, structure, by_row=False))


def test_gradients_of_another_shape() -> None:
    with pytest.raises(CalibrationError, match="gradients"):
        gblm_scores(np.ones((2, 3)), np.eye(3), np.ones((3, 2)))
