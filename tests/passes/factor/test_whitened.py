"""No factors of a rank give nearer outputs than the whitened ones."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.errors import WeightError
from sparsec.passes.factor.svd import input_sizes, svd
from sparsec.passes.factor.whitened import whitened
from tests.passes.factor.problems import inputs, output_error, second_moment


@pytest.mark.parametrize(("rows", "cols", "rank"), [(9, 14, 4), (14, 9, 4), (5, 5, 5), (1, 4, 1), (4, 1, 1)])
def test_what_is_lost_are_the_small_singular_values_of_the_outputs(rows: int, cols: int, rank: int) -> None:
    rng = np.random.default_rng(rows)
    weight, x = rng.standard_normal((rows, cols)), inputs(cols, 50, rows)
    left, right = whitened(weight, x.T @ x, rank)
    np.testing.assert_allclose(left.T @ left, np.eye(rank), atol=1e-10)
    singular = np.linalg.svd(x @ weight.T, compute_uv=False)
    lost = np.square(x @ (weight - left @ right).T).sum()
    np.testing.assert_allclose(lost, np.square(singular[rank:]).sum(), atol=1e-9 * np.square(singular).sum())


@pytest.mark.parametrize("shape", [(4, 5), (5, 4)])
def test_no_other_factors_come_nearer(shape: tuple[int, int]) -> None:
    from scipy.optimize import minimize

    rng = np.random.default_rng(shape[0])
    weight, moment, split = rng.standard_normal(shape), second_moment(shape[1], 1), 2 * shape[0]

    def lost(flat: np.ndarray) -> float:
        return output_error(weight, flat[:split].reshape(-1, 2) @ flat[split:].reshape(2, -1), moment)

    found = min(minimize(lost, rng.standard_normal(2 * sum(shape)), tol=1e-12).fun for _ in range(6))
    left, right = whitened(weight, moment, 2)
    assert output_error(weight, left @ right, moment) == pytest.approx(found, rel=1e-3)


def test_beats_its_ancestors() -> None:
    """Whitened < inputs weighed by size < plain, in output error, where inputs are correlated and of different size."""
    rng = np.random.default_rng(2)
    scale = np.exp(rng.standard_normal(32))
    weight, moment = rng.standard_normal((40, 32)), second_moment(32, 7) * np.outer(scale, scale)
    errors = [
        output_error(weight, u @ v, moment)
        for u, v in (whitened(weight, moment, 6), svd(weight, 6, input_sizes(moment, 1.0)), svd(weight, 6))
    ]
    assert errors[0] < 0.7 * errors[1] < 0.6 * errors[2]


def test_singular_moments() -> None:
    """Inputs that span two directions: rank 2 is exact for them."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 2)) @ rng.standard_normal((2, 8))
    for rows in (5, 11):
        weight = rng.standard_normal((rows, 8))
        left, right = whitened(weight, x.T @ x, 2)
        np.testing.assert_allclose(x @ (left @ right).T, x @ weight.T, atol=1e-6)
    assert np.isfinite(np.concatenate([f.ravel() for f in whitened(np.ones((9, 3)), np.zeros((3, 3)), 2)])).all()


def test_ranks_that_there_are_not() -> None:
    with pytest.raises(WeightError, match="ranks from 1 to 2; found 3"):
        whitened(np.ones((2, 5)), np.eye(5), 3)
