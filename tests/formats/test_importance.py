"""Encoding with importance: the weighted error falls, brute force is not beaten, nonsense is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sparsec.errors import WeightError
from sparsec.formats import CODECS, Scheme, decode, encode
from sparsec.formats.kmeans import kmeans_1d
from sparsec.formats.kmeans_vectors import kmeans_vectors, nearest_vectors
from tests.formats.cases import random_mask

TOKENS = [t for codec in CODECS for t in codec.tokens if t not in ("fp32", "fp16")]


def weighted(weight: np.ndarray, changed: np.ndarray, importance: np.ndarray) -> float:
    return float((np.square(weight.astype(np.float64) - changed) * importance).sum())


def spread(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Importance over four decades."""
    return np.asarray(10.0 ** rng.uniform(-2, 2, shape))


@pytest.mark.parametrize("structure", ["", "s1x8@50-"])
@pytest.mark.parametrize("token", [*TOKENS, "cb3-c", "cb3-g8", "cb3.r4", "cb3.i8-c", "vq2d4-c", "int3-g8", "uint3-g8"])
def test_the_weighted_error_falls(structure: str, token: str) -> None:
    rng = np.random.default_rng(3)
    scheme = Scheme.parse(structure + token)
    weight = rng.standard_t(4, (16, 72)).astype(np.float32)
    mask = random_mask(scheme, 16, 72, rng)
    kept = np.ones(weight.shape, bool) if mask is None else mask
    for importance in (spread(rng, 72), spread(rng, 16, 72)):
        counts = importance * kept
        before = weighted(weight, decode(encode(weight, scheme, mask)), counts)
        after = weighted(weight, decode(encode(weight, scheme, mask, importance)), counts)
        # Tables with an entry for every vector leave but the rounding of fp16.
        assert after <= before * 1.01 + 1e-6 * weighted(weight, np.zeros_like(weight), counts)
    same = encode(weight, scheme, mask, importance), encode(weight, scheme, mask, importance.copy())
    assert [a.tobytes() for a in same[0].arrays().values()] == [a.tobytes() for a in same[1].arrays().values()]


def test_exact_k_means_is_the_optimum() -> None:
    rng = np.random.default_rng()
    for _ in range(60):
        n = int(rng.integers(3, 9))
        k = int(rng.integers(2, n))
        x = np.sort(rng.standard_normal(n)).astype(np.float32)
        w = spread(rng, n)
        costs = []
        for cuts in itertools.combinations(range(1, n), k - 1):
            parts = zip(np.split(x.astype(np.float64), cuts), np.split(w, cuts), strict=True)
            costs.append(sum(float((m * np.square(p - np.average(p, weights=m))).sum()) for p, m in parts))
        order = rng.permutation(n)
        found = kmeans_1d(x[order], k, w[order], exact=True)
        cost = float((w * np.square(x.astype(np.float64)[:, None] - found).min(1)).sum())
        assert cost == pytest.approx(min(costs), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("size", [3000, 400_000])
@pytest.mark.parametrize("k", [2, 8, 16, 100])
def test_exact_k_means_of_many_values_is_no_worse_than_lloyd(size: int, k: int) -> None:
    rng = np.random.default_rng(7)
    values = rng.standard_t(3, size).astype(np.float32)
    weights = spread(rng, size)

    def cost(centroids: np.ndarray) -> float:
        near = centroids[np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values)]
        return weighted(values, near, weights)

    assert cost(kmeans_1d(values, k, weights, exact=True)) <= cost(kmeans_1d(values, k, weights)) * 1.0001


def test_vectors_with_weights_for_every_element() -> None:
    rng = np.random.default_rng()
    vectors = rng.standard_normal((500, 3)).astype(np.float32)
    weights = spread(rng, 500, 3).astype(np.float32)
    for k in (7, 32):
        centroids = kmeans_vectors(vectors, k, weights)
        distance = (np.square(vectors[:, None] - centroids) * weights[:, None]).sum(2)
        chosen = distance[np.arange(500), nearest_vectors(vectors, centroids, weights)]
        np.testing.assert_allclose(chosen, distance.min(1), rtol=1e-3, atol=1e-4)
        blind = kmeans_vectors(vectors, k, np.ones(500, np.float32))
        other = (np.square(vectors[:, None] - blind) * weights[:, None]).sum(2).min(1).sum()
        assert distance.min(1).sum() < other


def test_ternary_is_the_optimum() -> None:
    rng = np.random.default_rng()
    codes = np.array(list(itertools.product((-1, 0, 1), repeat=5)), np.float64)
    for _ in range(20):
        weight, counts = rng.standard_normal((1, 5)).astype(np.float32), spread(rng, 5)
        norms = np.maximum((counts * codes * codes).sum(1), 1e-12)
        scale = (counts * codes * weight).sum(1) / norms
        best = (np.square(scale[:, None] * codes - weight) * counts).sum(1).min()
        found = decode(encode(weight, Scheme.parse("ternary"), None, counts))
        assert weighted(weight, found, counts) == pytest.approx(best, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("token", ["int4-g8", "uint4", "cb3-c", "cb2", "ternary", "binary", "nf4", "vq2d4", "vq2d4.q8"])
def test_inputs_that_count_nothing(token: str) -> None:
    rng = np.random.default_rng()
    weight = rng.standard_normal((5, 24)).astype(np.float32)
    for importance in (np.zeros(24), np.repeat([0.0, 1.0, 0.0], 8)):
        assert np.isfinite(decode(encode(weight, Scheme.parse(token), None, importance))).all()


@pytest.mark.parametrize("wrong", [np.ones(23), np.full(24, -1.0), np.full(24, np.nan), np.ones((24, 5))])
def test_nonsense_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(WeightError, match="importance"):
        encode(np.ones((5, 24), np.float32), Scheme.parse("int4"), None, wrong)
