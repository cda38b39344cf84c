"""One-dimensional weighted k-means: deterministic and fast enough for embedding tables.

Lloyd's algorithm (S. Lloyd, "Least squares quantization in PCM", 1982) on sorted values: cluster borders are midpoints
between centroids, so a step is one binary search and one difference of prefix sums. The start is the asymptotically
optimal density of levels, proportional to the cube root of the density of the values (P. F. Panter and W. Dite, 1951), or on request
the optimum of a dynamic program (X. Wu, "Optimal quantization by matrix searching", 1991).
"""

from __future__ import annotations

import numpy as np

__all__ = ["assign", "is_mirrored_1d", "kmeans_1d"]

_BINS = 1 << 16
_ITERATIONS = 60
_NEGLIGIBLE = 1e-12  # share of all weights; less is lost in differences of sums
_POOLS = 1024  # atoms of the dynamic program; more are pooled into about as many


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


def _pooled(x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """About `_POOLS` atoms in place of many: neighbours together, by half of equal width and by half of equal mass."""
    if x.size <= _POOLS:
        return x, w
    mass = np.cumsum(w)
    place = (x - x[0]) / (x[-1] - x[0]) + mass / mass[-1]
    starts = np.flatnonzero(np.diff((place * (_POOLS / 2)).astype(np.int64), prepend=-1))
    total = np.add.reduceat(w, starts)
    return np.add.reduceat(w * x, starts) / total, total


def _optimal(x: np.ndarray, w: np.ndarray, k: int) -> np.ndarray:
    """The k centroids, float64 ascending, with the smallest weighted squared error of sorted atoms x (more than k).

    best[j] for c clusters is the smallest error of the first j atoms. The last cut before j moves right with j, so the cuts of
    every second j bound those between: each of log2(n) passes over a layer looks at about n pairs.
    """
    n = x.size
    x = x - x.mean()
    mass, moment, square = (np.concatenate([[0.0], np.cumsum(part)]) for part in (w, w * x, w * x * x))

    def cost(start: np.ndarray, end: np.ndarray) -> np.ndarray:
        held = moment[end] - moment[start]
        return np.asarray(square[end] - square[start] - held * held / (mass[end] - mass[start]))

    ends = np.arange(1, n + 1)
    best = np.concatenate([[0.0], cost(np.zeros(n, np.int64), ends)])
    cuts = np.zeros((k, n + 1), np.int64)
    steps = [1 << p for p in range(n.bit_length() - 1, -1, -1)]
    for layer in range(1, k):
        new, cut = np.zeros(n + 1), cuts[layer]
        for step in steps:
            at = np.arange(step, n + 1, 2 * step)
            after = at + step
            low = cut[at - step]
            high = np.minimum(np.where(after <= n, cut[np.minimum(after, n)], n), at - 1)
            length = np.maximum(high - low, 0) + 1
            begin = np.cumsum(length) - length
            owner = np.repeat(np.arange(at.size), length)
            tried = np.arange(owner.size) - begin[owner] + low[owner]
            error = best[tried] + cost(tried, at[owner])
            smallest = np.minimum.reduceat(error, begin)
            hits = np.flatnonzero(error == smallest[owner])
            chosen = hits[np.searchsorted(hits, begin)]
            new[at], cut[at] = smallest, tried[chosen]
        best = new
    edges = [n]
    for layer in range(k - 1, -1, -1):
        edges.append(int(cuts[layer, edges[-1]]))
    edges_up = np.array(edges[::-1])
    held = np.maximum(mass[edges_up[1:]] - mass[edges_up[:-1]], 1e-300)
    return np.asarray((moment[edges_up[1:]] - moment[edges_up[:-1]]) / held)


def is_mirrored_1d(tables: np.ndarray) -> bool:
    """Whether the entries of ascending tables [S, k] are negatives of each other, the first of the last and so on."""
    return bool((tables == -tables[:, ::-1]).all())


def _mirrored(x: np.ndarray, w: np.ndarray, centroids: np.ndarray, loss: float) -> np.ndarray:
    """Centroids made mirrored where that costs at most the share `loss` of the error of sorted atoms x."""

    def error(levels: np.ndarray) -> float:
        return float((w * np.square(x - levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, x)])).sum())

    found = (centroids - centroids[::-1]) / 2
    return found if error(found) <= (1 + loss) * error(centroids) else centroids


def kmeans_1d(
    values: np.ndarray, k: int, weights: np.ndarray | None = None, *, exact: bool = False, mirror_loss: float = 0
) -> np.ndarray:
    """Centroids, float32 [k] ascending, that (locally) minimise sum(weights * (values - nearest)**2).

    values: float32 [n], finite; weights: nonnegative float [n] or None for ones. With at most k distinct values the
    result holds them exactly, padded by repeating the largest; no values give zeros. exact: the global minimum for up to
    `_POOLS` distinct values, for more a local one near the optimum of pooled values. mirror_loss: what share of the error centroids may
    lose to be negatives of each other.
    """
    if weights is not None:
        used = weights > _NEGLIGIBLE * weights.sum(dtype=np.float64)
        values, weights = values[used], weights[used]
    if values.size == 0:
        return np.zeros(k, np.float32)
    x, w = _atoms(values, weights)
    if x.size <= k:
        return np.concatenate([x, np.full(k - x.size, x[-1])]).astype(np.float32)
    mass = np.concatenate([[0.0], np.cumsum(w)])
    moment = np.concatenate([[0.0], np.cumsum(w * x)])
    centroids = _start(x, w, k)
    if exact:
        pooled = _pooled(x, w)
        if pooled[0].size > k:
            centroids = _optimal(*pooled, k) + pooled[0].mean()
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
    if mirror_loss:
        centroids = _mirrored(x, w, centroids, mirror_loss)
    return centroids.astype(np.float32)


def assign(values: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Index of the nearest centroid (ascending float32 [k <= 256]) of each value, uint8 of the same shape."""
    borders = ((centroids[1:].astype(np.float64) + centroids[:-1]) / 2).astype(np.float32)
    return np.searchsorted(borders, values).astype(np.uint8)
