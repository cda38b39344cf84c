"""Ranges of static activations: histograms against numpy, the search against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.int8 import rounded_static
from sparsec.passes.quantise.ranges import Histogram, Range, best_range


def histogram(*parts: np.ndarray) -> Histogram:
    found = Histogram()
    for part in parts:
        found.add(part, part)
    return found


def loss(x: np.ndarray, tried: Range) -> float:
    return float(np.square(rounded_static(x, tried.scale, tried.low, tried.high) - x, dtype=np.float64).sum())


def whole(x: np.ndarray) -> Range:
    """The range from the least to the largest value."""
    least, most = min(0.0, float(x.min())), max(0.0, float(x.max()))
    scale = (most - least) / 255
    return Range(scale, round(least / scale), round(least / scale) + 255)


def test_histogram_counts_what_was_added_whatever_its_size() -> None:
    rng = np.random.default_rng()
    parts = [rng.normal(0, spread, 501).astype(np.float32) for spread in (0.01, 7.0, 0.3, 120.0)]
    found = histogram(*parts)
    x = np.concatenate(parts)
    assert (found.least, found.most) == (x.min(), x.max())
    centres, counts = found.points()
    assert counts.sum() == x.size
    width = found.reach / 2048
    edges = np.append(centres - width / 2, centres[-1] + width / 2)
    np.testing.assert_array_equal(counts, [((x >= low) & (x < low + width)).sum() for low in edges[:-1]])
    assert np.array_equal(histogram(*parts).counts, found.counts)


@pytest.mark.parametrize("sign", [-1, 1])
def test_values_of_one_sign_use_the_whole_byte(sign: int) -> None:
    x = sign * np.random.default_rng().uniform(0, 6, 5000).astype(np.float32)
    found = best_range(histogram(x))
    assert (found.low, found.high) == ((0, 255) if sign > 0 else (-255, 0))
    assert found.scale == pytest.approx(6 / 255, rel=0.02)


def test_outliers_are_clipped_where_that_pays() -> None:
    rng = np.random.default_rng()
    x = rng.normal(0, 1, 200_000).astype(np.float32)
    x[:2] = (9, -9)
    found = best_range(histogram(x))
    assert loss(x, found) < 0.8 * loss(x, whole(x))
    flat = rng.uniform(-1, 1, 500_000).astype(np.float32)  # of 5000 samples, losses differ by 2 % by chance
    assert loss(flat, best_range(histogram(flat))) <= 1.02 * loss(flat, whole(flat))


def test_search_is_near_the_brute_force_optimum() -> None:
    rng = np.random.default_rng()
    x = (rng.standard_t(4, 4000) + 0.5).astype(np.float32)
    best = np.inf
    for low in np.linspace(x.min(), 0, 40):
        for high in np.linspace(0, x.max(), 40):
            if high - low > 1e-3:
                scale = (high - low) / 255
                best = min(best, loss(x, Range(scale, round(low / scale), round(low / scale) + 255)))
    assert loss(x, best_range(histogram(x))) <= 1.1 * best


def test_zeros_tiny_and_huge() -> None:
    assert best_range(histogram(np.zeros(9, np.float32))) == Range(1.0, 0, 255)
    assert best_range(Histogram()) == Range(1.0, 0, 255)
    for size in (1e-30, 1e30):
        x = np.array([-size, 0, 2 * size], np.float32)
        found = best_range(histogram(x))
        np.testing.assert_allclose(rounded_static(x, found.scale, found.low, found.high), x, rtol=0.02)
