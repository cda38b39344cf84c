"""k-means on short vectors, weighted and deterministic.

The start is k-means++ (D. Arthur and S. Vassilvitskii, "k-means++: the advantages of careful seeding", 2007) with a fixed seed and
evenly spread picks, the steps are Lloyd's. Large inputs are fitted on evenly spaced samples.
"""

from __future__ import annotations

import numpy as np

__all__ = ["cluster_means", "kmeans_vectors", "nearest_vectors"]

_SAMPLES = 128  # for each centroid
_ITERATIONS = 16
_CHUNK = 1 << 18  # distances at a time: what stays in the second-level cache


def nearest_vectors(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Index (int32 [n]) of the centroid (float32 [k, d]) nearest to each vector (float32 [n, d])."""
    k = len(centroids)
    norms = 0.5 * np.square(centroids).sum(1)
    found = np.empty(len(vectors), np.int32)
    step = max(1, _CHUNK // k)
    for start in range(0, len(vectors), step):
        products = vectors[start : start + step] @ centroids.T
        products -= norms
        found[start : start + step] = products.argmax(1)
    return found


def kmeans_vectors(vectors: np.ndarray, k: int, weights: np.ndarray) -> np.ndarray:
    """Centroids float32 [k, d] that (locally) minimise sum(weights * |vector - nearest|^2).

    vectors: float32 [n, d], finite; weights: nonnegative float32 [n]. With at most k distinct vectors the result holds them exactly,
    padded by repeating the last; no vectors give zeros.
    """
    dim = vectors.shape[1]
    used = weights > 0
    vectors, weights = vectors[used], weights[used]
    if not len(vectors):
        return np.zeros((k, dim), np.float32)
    if len(vectors) <= 4 * k * _SAMPLES:
        distinct = np.unique(vectors, axis=0)
        if len(distinct) <= k:
            return np.concatenate([distinct, np.repeat(distinct[-1:], k - len(distinct), 0)])
    step = len(vectors) / min(len(vectors), k * _SAMPLES)
    pick = (np.arange(int(len(vectors) / step)) * step).astype(np.int64)
    x, w = vectors[pick], weights[pick].astype(np.float64)
    # Squares of extreme values do not fit fp32.
    size = np.float32(np.abs(x).max()) or np.float32(1)
    x = x / size
    centroids = _start(x, w, k)
    before: np.ndarray | None = None
    for _ in range(_ITERATIONS):
        label = nearest_vectors(x, centroids)
        if before is not None and np.array_equal(label, before):
            break
        before = label
        centroids = _moved(x, w, label, cluster_means(x, w, label, centroids))
    return np.asarray(centroids * size, np.float32)


def cluster_means(x: np.ndarray, w: np.ndarray, label: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Weighted means, float32 [k, d], of the clusters of vectors [n, d]; empty ones keep their centroid."""
    k = len(centroids)
    w = w.astype(np.float64)
    mass = np.bincount(label, w, k)
    sums = np.stack([np.bincount(label, w * column, k) for column in x.T], 1)
    filled = mass > 0
    result = centroids.astype(np.float32)
    result[filled] = sums[filled] / mass[filled, None]
    return result


def _moved(x: np.ndarray, w: np.ndarray, label: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Centroids without vectors go to the vectors that are worst off."""
    empty = np.flatnonzero(np.bincount(label, minlength=len(centroids)) == 0)
    if empty.size:
        cost = w * np.square(x - centroids[label]).sum(1)
        centroids[empty] = x[np.argsort(-cost, kind="stable")[: empty.size]]
    return centroids


def _start(x: np.ndarray, w: np.ndarray, k: int) -> np.ndarray:
    """k-means++: each next centroid is drawn with probability proportional to its weighted squared distance."""
    draws = np.random.default_rng(0).random(k)
    centroids = np.empty((k, x.shape[1]), np.float32)
    norms = np.square(x).sum(1)
    distance = np.full(len(x), np.inf, np.float32)
    mass = w
    for index in range(k):
        total = np.cumsum(mass)
        centroids[index] = x[min(int(np.searchsorted(total, draws[index] * total[-1])), len(x) - 1)]
        new = norms - 2 * (x @ centroids[index]) + np.square(centroids[index]).sum()
        np.minimum(distance, np.maximum(new, 0), out=distance)
        mass = w * distance
    return centroids
