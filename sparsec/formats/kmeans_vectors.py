"""k-means on short vectors, weighted and deterministic.

The start is k-means++ (D. Arthur and S. Vassilvitskii, "k-means++: the advantages of careful seeding", 2007) with a fixed seed and
evenly spread picks, the steps are Lloyd's. Large inputs are fitted on evenly spaced samples.

Centroids whose second half is the negative of the first are called mirrored. They stay so in every step, half the distances tell
the nearest, and kernels look products up in half a table. Weights are mostly as often positive as negative, so that they cost nothing.
"""

from __future__ import annotations

import numpy as np

__all__ = ["cluster_means", "is_mirrored", "kmeans_vectors", "nearest_vectors"]

_SAMPLES, _ITERATIONS = 128, 16  # samples are for each centroid
_MORE_SAMPLES, _MORE_ITERATIONS = 192, 16  # where every element has a weight of its own: what calibration is worth
_MIRROR_FROM = 32  # centroids
_MIRROR_LOSS = 0.005  # of the error, at most
_CHUNK = 1 << 18  # distances at a time: what stays in the second-level cache


def nearest_vectors(vectors: np.ndarray, centroids: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Index (int32 [n]) of the centroid (float32 [k, d]) nearest to each vector (float32 [n, d]).

    weights: what a squared difference of each element counts, float32 [n, d]; other shapes and None do not change what is nearest.
    """
    counted = weights is not None and weights.ndim == 2
    mirrored = is_mirrored(centroids)
    if mirrored:
        centroids = centroids[: len(centroids) // 2]
    k = len(centroids)
    half_squares = 0.5 * np.square(centroids)
    norms = half_squares.sum(1)
    found = np.empty(len(vectors), np.int32)
    step = max(1, _CHUNK // k)
    for start in range(0, len(vectors), step):
        part = vectors[start : start + step]
        if counted:
            assert weights is not None
            counts = weights[start : start + step].astype(np.float32, copy=False)
            part = part * counts
        products = part @ centroids.T
        if mirrored:
            np.abs(products, out=products)
        products -= counts @ half_squares.T if counted else norms
        best = products.argmax(1)
        if mirrored:
            best += k * (np.einsum("nd,nd->n", part, centroids[best]) < 0)
        found[start : start + step] = best
    return found


def is_mirrored(centroids: np.ndarray) -> bool:
    """Whether the second half of the centroids [k, d] is the negative of the first."""
    half = len(centroids) // 2
    return len(centroids) == 2 * half > 0 and bool((centroids[half:] == -centroids[:half]).all())


def kmeans_vectors(vectors: np.ndarray, k: int, weights: np.ndarray) -> np.ndarray:
    """Centroids float32 [k, d] that (locally) minimise sum(weights * |vector - nearest|^2).

    vectors: float32 [n, d], finite; weights: nonnegative float32 [n], or [n, d] for every element its own. With at most k distinct
    vectors the result holds them exactly, padded by repeating the last; no vectors give zeros. From 32 centroids on they are mirrored
    if that costs at most `_MIRROR_LOSS`.
    """
    dim = vectors.shape[1]
    used = weights > 0 if weights.ndim == 1 else (weights > 0).any(1)
    if not used.all():
        vectors, weights = vectors[used], weights[used]
    if not len(vectors):
        return np.zeros((k, dim), np.float32)
    samples = k * (_SAMPLES if weights.ndim == 1 else _MORE_SAMPLES)
    if len(vectors) <= 4 * k * _SAMPLES:
        distinct = np.unique(vectors, axis=0)
        if len(distinct) <= k:
            return np.concatenate([distinct, np.repeat(distinct[-1:], k - len(distinct), 0)])
    step = len(vectors) / min(len(vectors), samples)
    pick = (np.arange(int(len(vectors) / step)) * step).astype(np.int64)
    x, w = vectors[pick], weights[pick].astype(np.float64)
    # Squares of extreme values do not fit fp32.
    size = np.float32(np.abs(x).max()) or np.float32(1)
    x = x / size
    centroids = _fitted(x, w, k, mirrored=False)
    if k >= _MIRROR_FROM and k % 2 == 0:
        # judged by vectors they were not fitted to, if there are enough of those
        other = pick + int(step / 2) if step >= 2 else pick
        y, v = vectors[other] / size, weights[other]
        mirrored = _fitted(x, w, k, mirrored=True)
        if _error(y, v, mirrored) <= _error(y, v, centroids) * (1 + _MIRROR_LOSS):
            centroids = mirrored
    return np.asarray(centroids * size, np.float32)


def _fitted(x: np.ndarray, w: np.ndarray, k: int, *, mirrored: bool) -> np.ndarray:
    """Centroids of the samples."""
    mass = w if w.ndim == 1 else w.mean(1)
    centroids = _start(x, mass, k // 2, mirrored=True) if mirrored else _start(x, mass, k)
    if mirrored:
        centroids = np.concatenate([centroids, -centroids])
    before: np.ndarray | None = None
    for _ in range(_ITERATIONS if w.ndim == 1 else _MORE_ITERATIONS):
        label = nearest_vectors(x, centroids, w)
        if before is not None and np.array_equal(label, before):
            break
        before = label
        centroids = _moved(x, w, label, cluster_means(x, w, label, centroids))
    return centroids


def _error(x: np.ndarray, w: np.ndarray, centroids: np.ndarray) -> float:
    off = np.square(x - centroids[nearest_vectors(x, centroids, w)])
    return float((w * off.sum(1)).sum() if w.ndim == 1 else (w * off).sum())


def cluster_means(x: np.ndarray, w: np.ndarray, label: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Weighted means, float32 [k, d], of the clusters of vectors [n, d]; empty ones keep their centroid, mirrored ones stay so.

    w: [n] or [n, d].
    """
    if is_mirrored(centroids):
        half = len(centroids) // 2
        above = label >= half
        folded = np.where(above[:, None], -x, x)
        means = _means(folded, w, label - half * above, centroids[:half])
        return np.concatenate([means, -means])
    return _means(x, w, label, centroids)


def _means(x: np.ndarray, w: np.ndarray, label: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    k = len(centroids)
    w = w.astype(np.float64)
    if w.ndim == 2:
        result = centroids.astype(np.float32)
        for dim, (column, counts) in enumerate(zip(x.T, w.T, strict=True)):
            mass = np.bincount(label, counts, k)
            filled = mass > 0
            result[filled, dim] = np.bincount(label, counts * column, k)[filled] / mass[filled]
        return result
    mass = np.bincount(label, w, k)
    sums = np.stack([np.bincount(label, w * column, k) for column in x.T], 1)
    filled = mass > 0
    result = centroids.astype(np.float32)
    result[filled] = sums[filled] / mass[filled, None]
    return result


def _moved(x: np.ndarray, w: np.ndarray, label: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Centroids (or mirrored pairs) without vectors go to the vectors that are worst off."""
    count = np.bincount(label, minlength=len(centroids))
    half = len(centroids) // 2
    mirrored = is_mirrored(centroids)
    empty = np.flatnonzero((count[:half] + count[half:] if mirrored else count) == 0)
    if empty.size:
        off = np.square(x - centroids[label])
        cost = w * off.sum(1) if w.ndim == 1 else (w * off).sum(1)
        centroids[empty] = x[np.argsort(-cost, kind="stable")[: empty.size]]
        if mirrored:
            centroids[half + empty] = -centroids[empty]
    return centroids


def _start(x: np.ndarray, w: np.ndarray, k: int, *, mirrored: bool = False) -> np.ndarray:
    """k-means++: each next centroid is drawn with probability proportional to its weighted squared distance (from the centroids
    and, if mirrored, their negatives)."""
    draws = np.random.default_rng(0).random(k)
    centroids = np.empty((k, x.shape[1]), np.float32)
    norms = np.square(x).sum(1)
    distance = np.full(len(x), np.inf, np.float32)
    mass = w
    for index in range(k):
        total = np.cumsum(mass)
        centroids[index] = x[min(int(np.searchsorted(total, draws[index] * total[-1])), len(x) - 1)]
        products = x @ centroids[index]
        new = norms - 2 * (np.abs(products) if mirrored else products) + np.square(centroids[index]).sum()
        np.minimum(distance, np.maximum(new, 0), out=distance)
        mass = w * distance
    return centroids
