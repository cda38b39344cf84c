"""One-dimensional weighted k-means: deterministic and fast enough for embedding tables.

Lloyd's algorithm (S. Lloyd, "Least squares quantization in PCM", 1982) on sorted values: cluster borders are midpoints
between centroids, so a step is one binary search and one difference of prefix sums. The start is the asymptotically
optimal density of levels, proportional to the cube root of the density of the values (P. F. Panter and W. Dite, 1951).
"""

from __future__ import annotations

import numpy as np

__all__ = ["assign", "kmeans_1d"]

_BINS = 1 << 16
_ITERATIONS = 60


def _atoms(values: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct positions and their masses, float64; large inputs are pooled in `_BINS` equal bins."""
    if values.size <= 4 * _BINS:
        order = np.argsort(values, kind="stable")
        x = values[order].astype(np.float64)
        w = np.ones(x.size) if weights is None else weights[order].astype(np.float64)
        first = np.concatenate([[True], x[1:] != x[:-1]])
        starts = np.flatnonzero(first)
        return x[starts], np.add.reduceat(w, starts)
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.array([low]), np.array([1.0])
    index = ((values - np.float32(low)) * np.float32((_BINS - 1) / (high - low))).astype(np.int32)
    np.clip(index, 0, _BINS - 1, out=index)
    mass = np.bincount(index, weights, _BINS).astype(np.float64)
    moment = np.bincount(index, values if weights is None else values.astype(np.float64) * weights, _BINS)
    used = mass > 0
    return np.sort(moment[used] / mass[used]), mass[used]


def _start(x: np.ndarray, w: np.ndarray, k: int) -> np.ndarray:
    """k levels at equal steps of the integral of density**(1/3)."""
    bins = min(2048, max(k * 8, 64))
    density, edges = np.histogram(x, bins, weights=w)
    total = np.concatenate([[0.0], np.cumsum(np.cbrt(density))])
    return np.asarray(np.interp((np.arange(k) + 0.5) / k * total[-1], total, edges))


def kmeans_1d(values: np.ndarray, k: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Centroids, float32 [k] ascending, that (locally) minimise sum(weights * (values - nearest)**2).

    values: float32 [n], finite; weights: nonnegative float [n] or None for ones. With at most k distinct values the
    result holds them exactly, padded by repeating the largest; no values give zeros.
    """
    if weights is not None:
        used = weights > 0
        values, weights = values[used], weights[used]
    if values.size == 0:
        return np.zeros(k, np.float32)
    x, w = _atoms(values, weights)
    if x.size <= k:
        return np.concatenate([x, np.full(k - x.size, x[-1])]).astype(np.float32)
    mass = np.concatenate([[0.0], np.cumsum(w)])
    moment = np.concatenate([[0.0], np.cumsum(w * x)])
    centroids = _start(x, w, k)
    cuts: np.ndarray | None = None
    for _ in range(_ITERATIONS):
        borders = np.searchsorted(x, (centroids[1:] + centroids[:-1]) / 2)
        new_cuts = np.concatenate([[0], borders, [x.size]])
        if cuts is not None and np.array_equal(cuts, new_cuts):
            break
        cuts = new_cuts
        cluster_mass = mass[cuts[1:]] - mass[cuts[:-1]]
        cluster_moment = moment[cuts[1:]] - moment[cuts[:-1]]
        filled = cluster_mass > 0
        centroids[filled] = cluster_moment[filled] / cluster_mass[filled]
    return centroids.astype(np.float32)


def assign(values: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Index of the nearest centroid (ascending float32 [k <= 256]) of each value, uint8 of the same shape."""
    borders = ((centroids[1:].astype(np.float64) + centroids[:-1]) / 2).astype(np.float32)
    return np.searchsorted(borders, values).astype(np.uint8)
