"""Equal ranges: the fixed point of the paper, chains, channels that are zero on one side, the best there is for two layers."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.passes.quantise.equalise import Link, Side, equalised


def ranges(weight: np.ndarray, axis: int) -> np.ndarray:
    return np.abs(np.moveaxis(weight, axis, 0)).reshape(weight.shape[axis], -1).max(1)


def test_ranges_meet_in_a_chain() -> None:
    rng = np.random.default_rng()
    weights = {
        "a": rng.standard_normal((9, 5)) * np.exp(rng.standard_normal((9, 1))),
        "b": rng.standard_normal((7, 9, 3)) * np.exp(rng.standard_normal((1, 9, 1))),
        "c": rng.standard_normal((4, 7)),
    }
    links = [Link(9, (Side("a", 0),), (Side("b", 1),)), Link(7, (Side("b", 0),), (Side("c", 1),))]
    first, second = equalised(weights, links, sweeps=500)
    a = weights["a"] * first[:, None]
    b = weights["b"] / first[:, None] * second[:, None, None]
    c = weights["c"] / second
    np.testing.assert_allclose(ranges(a, 0), ranges(b, 1), rtol=0.01)
    np.testing.assert_allclose(ranges(b, 0), ranges(c, 1), rtol=0.01)


def test_it_is_the_best_for_two_layers() -> None:
    """The paper's objective, the sum over channels of the product of both precisions, against factors on a grid."""
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((2, 4)) * [[1], [9]], rng.standard_normal((3, 2))
    (factors,) = equalised({"a": a, "b": b}, [Link(2, (Side("a", 0),), (Side("b", 1),))], sweeps=500)

    def precision(f: np.ndarray) -> float:
        made, read = ranges(a, 0) * f, ranges(b, 1) / f
        return float((made / made.max() * read / read.max()).sum())

    grid = np.exp(np.linspace(-4, 4, 81))
    assert precision(factors) >= max(precision(np.array([1.0, g])) for g in grid) - 1e-3


def test_channels_without_a_range_stay() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((3, 4)), 5 * rng.standard_normal((2, 3))
    a[0], b[:, 1] = 0, 0
    (factors,) = equalised({"a": a, "b": b}, [Link(3, (Side("a", 0),), (Side("b", 1),))])
    assert factors[:2].tolist() == [1, 1]
    assert factors[2] > 1


def test_several_inputs_a_channel() -> None:
    """A flattened image: every channel has four neighbouring inputs."""
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((3, 4)), 5 * rng.standard_normal((2, 12))
    (factors,) = equalised({"a": a, "b": b}, [Link(3, (Side("a", 0),), (Side("b", 1, inner=4),))])
    read = np.abs(b).max(0).reshape(3, 4).max(1)
    np.testing.assert_allclose(factors, np.sqrt(read / np.abs(a).max(1)), rtol=1e-3)
    assert equalised({}, []) == []


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_extreme_ranges_stay_finite(size: float) -> None:
    (factors,) = equalised({"a": np.full((2, 2), size), "b": np.eye(2)}, [Link(2, (Side("a", 0),), (Side("b", 1),))])
    assert np.isfinite(factors).all()
    assert factors.min() > 0
