"""Least squares on a mask: the optimum of every row, with one Hessian or several, from any start."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.passes import hessian
from sparsec.passes.masked_solve import solve_on_mask
from tests.passes.sparsify.problems import layer, optimum


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (12, 33)])
def test_it_is_the_optimum_of_each_row(shape: tuple[int, int], alike: bool) -> None:
    rng = np.random.default_rng()
    weight, second = layer(*shape)
    h, target = hessian.damped(second, 0.1), weight.astype(np.float64)
    keep = rng.random(shape) < 0.6
    found = solve_on_mask(
        target, np.where(keep, rng.standard_normal(shape), 0), keep, lambda v: v @ h, h.diagonal(),
        tolerance=1e-9, iterations=400, alike=alike,
    )  # fmt: skip
    unit = np.sqrt(h.diagonal())
    np.testing.assert_allclose(found * unit, optimum(weight, keep, h) * unit, atol=1e-6 * np.abs(weight * unit).max())


def test_rows_that_converged_stay_while_others_go_on() -> None:
    weight, second = layer(9, 20)
    h, target = hessian.damped(second, 0.1), weight.astype(np.float64)
    keep = np.ones(weight.shape, bool)
    keep[4:, ::3] = False
    found = solve_on_mask(
        target, np.where(keep, target, 0), keep, lambda v: v @ h, h.diagonal(), tolerance=1e-8, iterations=300, alike=True
    )  # fmt: skip
    assert np.array_equal(found[:4], target[:4])
    assert hessian.error(weight, found, h) <= hessian.error(weight, optimum(weight, keep, h), h) * (1 + 1e-6)
