"""One-dimensional k-means against the optimum."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sparsec.formats.kmeans import assign, is_mirrored_1d, kmeans_1d


def _cost(values: np.ndarray, centroids: np.ndarray, weights: np.ndarray | None = None) -> float:
    gap = np.abs(values.astype(np.float64)[:, None] - centroids).min(1) ** 2
    return float(gap.sum() if weights is None else (gap * weights).sum())


def _optimum(values: np.ndarray, k: int) -> float:
    x = np.sort(values.astype(np.float64))
    costs = []
    for cuts in itertools.combinations(range(1, x.size), k - 1):
        costs.append(sum(((p - p.mean()) ** 2).sum() for p in np.split(x, cuts)))
    return min(costs)


def test_close_to_the_optimum_on_small_inputs() -> None:
    rng = np.random.default_rng()
    ratios = []
    for _ in range(100):
        values = rng.standard_normal(14).astype(np.float32)
        ratios.append(_cost(values, kmeans_1d(values, 4)) / _optimum(values, 4))
    # Lloyd's algorithm finds a local optimum: never below the true one, near it on average.
    assert min(ratios) > 1 - 1e-5
    assert np.median(ratios) < 1.3


@pytest.mark.parametrize(("bits", "distortion"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497), (5, 0.002499)])
@pytest.mark.parametrize("size", [100_000, 400_000])
def test_gaussian_levels_reach_the_lloyd_max_distortion(bits: int, distortion: float, size: int) -> None:
    # Optimal distortions: J. Max, "Quantizing for minimum distortion", 1960, table 1.
    values = np.random.default_rng().standard_normal(size).astype(np.float32)
    found = _cost(values, kmeans_1d(values, 1 << bits)) / size
    # The outermost cells have few values, so that draws of 100 000 differ by up to 4 %; equal steps lose 40 % at 5 bits.
    assert found == pytest.approx(distortion, rel=0.08)


def test_weights_count() -> None:
    rng = np.random.default_rng()
    values = rng.standard_normal(3000).astype(np.float32)
    weights = np.where(values > 0, 100.0, 0.01).astype(np.float32)
    assert _cost(values, kmeans_1d(values, 4, weights), weights) < 0.7 * _cost(values, kmeans_1d(values, 4), weights)
    np.testing.assert_array_equal(
        kmeans_1d(values, 4, (values > 1).astype(np.float32)), kmeans_1d(values[values > 1], 4)
    )


def test_mirrored_where_it_costs_little() -> None:
    rng = np.random.default_rng()
    values = rng.standard_normal(20_000).astype(np.float32)
    plain, mirrored = kmeans_1d(values, 4), kmeans_1d(values, 4, mirror_loss=0.05)
    assert is_mirrored_1d(mirrored[None])
    assert not is_mirrored_1d(plain[None])
    assert _cost(values, mirrored) <= 1.0501 * _cost(values, plain)
    skewed = np.exp(values)
    np.testing.assert_array_equal(kmeans_1d(skewed, 4, mirror_loss=0.05), kmeans_1d(skewed, 4))


def test_few_values_and_none() -> None:
    np.testing.assert_array_equal(kmeans_1d(np.array([3, 1, 3, 1], np.float32), 4), np.array([1, 3, 3, 3], np.float32))
    np.testing.assert_array_equal(kmeans_1d(np.zeros(0, np.float32), 2), np.zeros(2, np.float32))
    constant = np.full(400_000, 0.1, np.float32)
    np.testing.assert_array_equal(kmeans_1d(constant, 2), constant[:2])


def test_large_and_small_inputs_agree() -> None:
    values = np.random.default_rng().laplace(size=300_000).astype(np.float32)
    pooled = kmeans_1d(values, 16)
    sorted_ = kmeans_1d(values[:250_000], 16)
    assert _cost(values, pooled) == pytest.approx(_cost(values, sorted_), rel=0.02)
    assert (np.diff(pooled) > 0).all()


def test_assign_is_nearest() -> None:
    rng = np.random.default_rng()
    centroids = np.sort(rng.standard_normal(37)).astype(np.float32)
    values = rng.standard_normal((50, 3)).astype(np.float32)
    np.testing.assert_array_equal(assign(values, centroids), np.abs(values[..., None] - centroids).argmin(-1))


@pytest.mark.parametrize("exact", [False, True])
def test_weights_of_all_sizes(exact: bool) -> None:
    """Weights that vanish beside others must not make centroids of rounding errors."""
    rng = np.random.default_rng()
    values = rng.standard_normal(500).astype(np.float32)
    weights = 10.0 ** rng.uniform(-40, 0, 500)
    with np.errstate(all="raise", under="ignore"):
        found = kmeans_1d(values, 16, weights, exact=exact)
    assert values.min() <= found.min() <= found.max() <= values.max()
    assert _cost(values, found, weights) <= 0.3 * _cost(values, kmeans_1d(values, 2, weights, exact=True), weights)
