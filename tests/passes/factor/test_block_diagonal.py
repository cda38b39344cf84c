"""ARMOR: wrapping a sparse core costs less accuracy than the zeros alone, step by step and at the same sparsity."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.formats import Scheme
from sparsec.passes.factor.block_diagonal import Wrapped, after, armor, on_mask, times_left, times_right
from sparsec.passes.factor.form import block_diagonal
from sparsec.passes.sparsify.masks import mask_of_scores
from sparsec.passes.sparsify.obs import obs_mask
from sparsec.passes.sparsify.refit import refit
from tests.passes.factor.problems import output_error, second_moment

NM = Scheme.parse("s2:4").structure


def problem(rows: int = 32, cols: int = 48, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    weight = np.random.default_rng(seed).standard_normal((rows, cols))
    return weight, second_moment(cols, seed + 1, decay=0.15)


def dense(found: Wrapped) -> np.ndarray:
    count, size = found.after.shape[:2]
    a = block_diagonal(found.after.reshape(count * size, size), count)
    b = block_diagonal(found.before.reshape(-1, size), len(found.before))
    return np.asarray(a @ found.core @ b)


@pytest.mark.parametrize("seed", range(2))
def test_beats_n_m_pruning_at_the_same_sparsity(seed: int) -> None:
    """The best mask and values that plain pruning finds, and what wrapping makes of them."""
    weight, moment = problem(seed=seed)
    mask = obs_mask(weight.astype(np.float32), moment, NM)
    start = refit(weight, moment, mask, damping=0.0)
    found = armor(weight, mask, NM, 8, moment, start=start)
    assert output_error(weight, dense(found), moment) < 0.75 * output_error(weight, start, moment)
    assert (found.mask.reshape(32, -1, 4).sum(2) == 2).all()
    assert not found.core[~found.mask].any()
    np.testing.assert_allclose(found.product(), dense(found), atol=1e-10)


def test_more_rounds_and_wider_blocks_are_better() -> None:
    weight, moment = problem(seed=3)
    mask = mask_of_scores(np.square(weight), NM)
    by_rounds = [
        output_error(weight, dense(armor(weight, mask, NM, 8, moment, rounds=n)), moment) for n in (0, 1, 3, 9)
    ]
    assert by_rounds == sorted(by_rounds, reverse=True)
    by_width = [output_error(weight, dense(armor(weight, mask, NM, d, moment)), moment) for d in (2, 4, 16)]
    assert by_width == sorted(by_width, reverse=True)


def test_exchanges_of_the_mask_pay() -> None:
    weight, moment = problem(seed=4)
    mask = mask_of_scores(np.square(weight), NM)
    other = Scheme.parse("s50").structure  # the same mask, but nobody may change it
    fixed, free = (armor(weight, mask, structure, 4, moment) for structure in (other, NM))
    assert (fixed.mask == mask).all()
    assert not (free.mask == mask).all()
    assert output_error(weight, dense(free), moment) < 0.97 * output_error(weight, dense(fixed), moment)


def test_a_planted_wrapped_core_is_recovered_better_than_by_zeros_alone() -> None:
    rng = np.random.default_rng(5)
    core = np.where(mask_of_scores(rng.random((24, 24)), NM), rng.standard_normal((24, 24)), 0)
    turns = [np.eye(4) + 0.2 * rng.standard_normal((6, 4, 4)) for _ in range(2)]
    weight = times_left(turns[0], times_right(core, turns[1]))
    mask = mask_of_scores(np.square(weight), NM)
    plain = np.square(weight * ~mask).sum()
    assert np.square(weight - armor(weight, mask, NM, 4, rounds=60).product()).sum() < 0.15 * plain


def test_values_on_the_mask_are_those_of_least_squares() -> None:
    """All values at once by a dense solve of a tiny problem."""
    rng = np.random.default_rng(6)
    weight, moment = rng.standard_normal((4, 6)), second_moment(6, 1, decay=0.2)
    mask = rng.random((4, 6)) < 0.5
    blocks = rng.standard_normal((2, 2, 2)), rng.standard_normal((3, 2, 2))
    found = Wrapped(blocks[0], np.zeros((4, 6)), blocks[1], mask)
    found.core = on_mask(weight, found, moment, steps=60)
    a, b = block_diagonal(blocks[0].reshape(4, 2), 2), block_diagonal(blocks[1].reshape(6, 2), 3)
    values, vectors = np.linalg.eigh(moment)
    root = vectors * np.sqrt(np.maximum(values, 0))
    places = np.argwhere(mask)
    columns = np.stack([np.outer(a[:, n], (b @ root)[k]).ravel() for n, k in places], 1)
    wanted = np.linalg.lstsq(columns, (weight @ root).ravel(), rcond=None)[0]
    np.testing.assert_allclose(found.core[tuple(places.T)], wanted, atol=1e-4)


def test_the_outer_blocks_are_those_of_least_squares() -> None:
    rng = np.random.default_rng(7)
    weight, moment = rng.standard_normal((4, 6)), second_moment(6, 1, decay=0.2)
    found = Wrapped(
        np.tile(np.eye(2), (2, 1, 1)), rng.standard_normal((4, 6)), np.tile(np.eye(2), (3, 1, 1)), np.ones((4, 6), bool)
    )
    found.after, moments = after(weight, found, moment)
    error = output_error(weight, dense(found), moment)
    for _ in range(20):
        other = Wrapped(found.after + 0.01 * rng.standard_normal((2, 2, 2)), found.core, found.before, found.mask)
        assert error < output_error(weight, dense(other), moment)
    np.testing.assert_allclose(moments[0], found.core[:2] @ moment @ found.core[:2].T)
