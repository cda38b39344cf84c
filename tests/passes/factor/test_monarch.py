"""Monarch matrices: planted ones are found exactly, others as near as the parts' ranks allow, nearer in outputs with their inputs."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.errors import WeightError
from sparsec.formats import Scheme, encode
from sparsec.passes.factor.form import Factor, block_diagonal
from sparsec.passes.factor.monarch import monarch, outer
from tests.passes.factor.problems import output_error, second_moment


def product(left: np.ndarray, right: np.ndarray, blocks: int) -> np.ndarray:
    """The dense matrix, by the paper's definition: blocks, the permutation that transposes, blocks."""
    inner = block_diagonal(right.astype(np.float64), blocks)
    rank = len(right) // blocks**2
    size = inner.shape[1]
    swapped = inner.reshape(blocks, blocks, rank, size).transpose(1, 0, 2, 3).reshape(-1, size)
    return np.asarray(block_diagonal(left.astype(np.float64), blocks) @ swapped)


@pytest.mark.parametrize(
    ("rows", "cols", "blocks", "rank"), [(9, 9, 3, 1), (12, 20, 4, 2), (10, 6, 2, 3), (7, 5, 1, 2)]
)
@pytest.mark.parametrize("data", [False, True])
def test_a_planted_monarch_matrix_is_found(rows: int, cols: int, blocks: int, rank: int, data: bool) -> None:
    rng = np.random.default_rng(rows)
    left = rng.standard_normal((rows, blocks * rank))
    right = rng.standard_normal((blocks * blocks * rank, cols // blocks))
    weight = product(left, right, blocks)
    moment = second_moment(cols, 1, decay=0.2) if data else None
    found = monarch(weight, blocks, rank, moment)
    assert [f.shape for f in found] == [left.shape, right.shape]
    np.testing.assert_allclose(product(*found, blocks), weight, atol=1e-6)


def test_the_form_says_the_same() -> None:
    """`Factor` with its shuffle is the paper's permutation."""
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal(shape).astype(np.float32) for shape in ((8, 8), (32, 3)))
    inner, outside = (Factor("", encode(f, Scheme.parse("fp32")), 4, shuffle) for f, shuffle in ((right, 0), (left, 4)))
    np.testing.assert_allclose(outside.matrix() @ inner.matrix(), product(left, right, 4), atol=1e-5)


def test_without_data_what_is_lost_are_the_parts_small_singular_values() -> None:
    weight = np.random.default_rng(1).standard_normal((12, 15))
    found = product(*monarch(weight, 3, 2), 3)
    parts = weight.reshape(3, 4, 3, 5).transpose(0, 2, 1, 3).reshape(9, 4, 5)
    lost = sum(np.square(np.linalg.svd(part, compute_uv=False)[2:]).sum() for part in parts)
    assert np.square(weight - found).sum() == pytest.approx(lost)


def test_with_data_a_numerical_optimiser_comes_no_nearer() -> None:
    from scipy.optimize import minimize

    rng = np.random.default_rng(2)
    weight, moment = rng.standard_normal((4, 4)), second_moment(4, 3, decay=0.6)

    def lost(flat: np.ndarray) -> float:
        return output_error(weight, product(flat[:8].reshape(4, 2), flat[8:].reshape(4, 2), 2), moment)

    best = min(minimize(lost, rng.standard_normal(16), tol=1e-10).fun for _ in range(12))
    assert output_error(weight, product(*monarch(weight, 2, 1, moment, turns=60), 2), moment) < 1.05 * best


def test_inputs_help() -> None:
    weight, moment = np.random.default_rng(3).standard_normal((24, 24)), second_moment(24, 4, decay=0.5)
    errors = [output_error(weight, product(*monarch(weight, 4, 2), 4), moment)]
    errors += [
        output_error(weight, product(*monarch(weight, 4, 2, moment, turns=turns), 4), moment) for turns in (0, 1, 3, 9)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.8 * errors[0]


def test_the_outer_factor_is_the_best_for_its_inner_one() -> None:
    rng = np.random.default_rng(5)
    weight, moment = rng.standard_normal((6, 9)), second_moment(9, 6, decay=0.2)
    left, right = monarch(weight, 3, 1)
    best, moments = outer(weight, right.reshape(3, 3, 1, 3), moment)
    error = output_error(weight, product(best, right, 3), moment)
    for _ in range(20):
        other = best + 0.01 * rng.standard_normal(best.shape)
        assert error < output_error(weight, product(other, right, 3), moment)
    assert error < output_error(weight, product(left, right, 3), moment)
    assert moments.shape == (3, 3, 3)


def test_parts_have_no_higher_rank() -> None:
    with pytest.raises(WeightError, match="3 x 2 has ranks from 1 to 2; found 3"):
        monarch(np.ones((9, 6)), 3, 3)
