"""The truncated singular value decomposition is the nearest matrix of its rank, with weighed inputs too."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.errors import WeightError
from sparsec.passes.factor.svd import input_sizes, svd
from tests.passes.factor.problems import output_error


@pytest.mark.parametrize(("rows", "cols", "rank"), [(7, 12, 3), (13, 5, 5), (1, 9, 1), (6, 6, 2)])
@pytest.mark.parametrize("weighed", [False, True])
def test_what_is_lost_are_the_small_singular_values(rows: int, cols: int, rank: int, weighed: bool) -> None:
    rng = np.random.default_rng(rows)
    weight, sizes = rng.standard_normal((rows, cols)), rng.uniform(0.1, 3, cols)
    left, right = svd(weight, rank, sizes if weighed else None)
    scale = sizes if weighed else np.ones(cols)
    np.testing.assert_allclose(left.T @ left, np.eye(rank), atol=1e-12)
    singular = np.linalg.svd(weight * scale, compute_uv=False)
    lost = np.square((weight - left @ right) * scale).sum()
    np.testing.assert_allclose(lost, np.square(singular[rank:]).sum(), atol=1e-12)


def test_no_other_factors_come_nearer() -> None:
    """Gradient descent from many starts, on a problem small enough for it (C. Eckart and G. Young, 1936)."""
    from scipy.optimize import minimize

    rng = np.random.default_rng(3)
    weight = rng.standard_normal((4, 5))

    def lost(flat: np.ndarray) -> float:
        return float(np.square(weight - flat[:8].reshape(4, 2) @ flat[8:].reshape(2, 5)).sum())

    found = min(minimize(lost, rng.standard_normal(18)).fun for _ in range(6))
    left, right = svd(weight, 2)
    assert np.square(weight - left @ right).sum() == pytest.approx(found, rel=1e-5)


def test_sizes_help_where_inputs_differ() -> None:
    """ASVD beats the plain decomposition when some inputs are a hundred times others."""
    rng = np.random.default_rng(5)
    weight, moment = rng.standard_normal((24, 20)), np.diag(np.logspace(-2, 2, 20))
    plain, weighed = svd(weight, 4), svd(weight, 4, input_sizes(moment))
    assert output_error(weight, weighed[0] @ weighed[1], moment) < 0.7 * output_error(
        weight, plain[0] @ plain[1], moment
    )


def test_sizes_of_dead_inputs() -> None:
    np.testing.assert_allclose(input_sizes(np.diag([4.0, 0.0, 16.0])), [2**0.5, 2**0.5, 2])
    np.testing.assert_allclose(input_sizes(np.zeros((2, 2))), 1)


@pytest.mark.parametrize("rank", [0, 4])
def test_ranks_that_there_are_not(rank: int) -> None:
    with pytest.raises(WeightError, match=r"ranks from 1 to 3; found"):
        svd(np.ones((3, 5)), rank)
