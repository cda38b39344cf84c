"""Damping, inverse factors and the output error, against dense float64 linear algebra."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.errors import CalibrationError
from sparsec.passes import hessian


def inputs(samples: int, size: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, samples, size])
    return (rng.normal(size=(samples, size)) @ rng.normal(size=(size, size)) + 0.5).astype(np.float32)


@pytest.mark.parametrize("size", [1, 2, 7, 31, 64])
@pytest.mark.parametrize("samples", [1, 5, 200])
def test_factor_and_inverse(size: int, samples: int) -> None:
    x = inputs(samples, size)
    h = hessian.damped(x.T @ x / samples)
    upper = hessian.inverse_upper_cholesky(h)
    assert np.array_equal(upper, np.triu(upper))
    assert np.allclose(upper.T @ upper @ h, np.eye(size), atol=1e-8)
    inverse = hessian.inverse(h)
    assert np.array_equal(inverse, inverse.T)
    assert np.allclose(inverse @ h, np.eye(size), atol=1e-8)
    for k in range(size):
        rest = np.linalg.inv(h[k:, k:])
        assert np.allclose(upper[k, k] ** 2, rest[0, 0])
        assert np.allclose(upper[k, k:] / upper[k, k], rest[0] / rest[0, 0], atol=1e-7)


@pytest.mark.parametrize("share", [0.0, 0.01, 1.0])
def test_damping_does_not_depend_on_the_unit(share: float) -> None:
    x = inputs(50, 9)
    second = x.T @ x / 50
    assert np.allclose(hessian.damped(second * 1e-6, share), hessian.damped(second, share) * 1e-6, rtol=1e-5)
    diagonal = second.diagonal().astype(np.float64)
    assert np.allclose(hessian.damped(second, share).diagonal(), diagonal + share * diagonal.mean(), rtol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.01])
def test_dead_inputs_are_independent_and_cheap(share: float) -> None:
    x = inputs(50, 9)
    x[:, [2, 5]] = 0
    second = x.T @ x / 50
    second[2, 3] = 1e-7  # what rounding may leave
    h = hessian.damped(second, share)
    live = np.delete(np.arange(9), [2, 5])
    assert not h[2, live].any()
    assert not h[live, 5].any()
    level = second.diagonal()[live].mean()
    assert h[2, 2] == h[5, 5] == pytest.approx(level * (share or 1.0))
    assert np.isfinite(hessian.inverse(h)).all()


def test_no_live_input() -> None:
    assert np.array_equal(hessian.damped(np.zeros((3, 3))), np.eye(3))


def test_error_is_the_mean_squared_output_error() -> None:
    rng = np.random.default_rng(1)
    x = inputs(40, 13)
    weight, changed = rng.normal(size=(2, 5, 13)).astype(np.float32)
    outputs = x.astype(np.float64) @ (weight.astype(np.float64) - changed).T
    second = x.astype(np.float64).T @ x / 40
    assert hessian.error(weight, changed, second) == pytest.approx((outputs**2).sum() / 40)
    assert hessian.error(weight, weight, second) == 0


@pytest.mark.parametrize(
    "bad",
    [np.zeros((2, 3)), np.zeros(4), np.full((2, 2), np.nan), np.diag([1.0, np.inf]), np.diag([1.0, -1.0])],
)
def test_bad_second_moments(bad: np.ndarray) -> None:
    with pytest.raises(CalibrationError):
        hessian.damped(bad)


def test_indefinite_and_negative_damping() -> None:
    with pytest.raises(CalibrationError, match="positive definite"):
        hessian.inverse(np.array([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(CalibrationError, match="damping"):
        hessian.damped(np.eye(2), -1.0)
