"""Vector codebooks: the fit, the grammar, and what they cost; decoding is tested with every codec in test_encoded.py."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.errors import SchemeError, WeightError
from sparsec.formats import EncodedWeight, Scheme, decode, encode
from sparsec.formats.kmeans_vectors import kmeans_vectors, nearest_vectors


def error(weight: np.ndarray, text: str) -> float:
    return lost(weight, encode(weight, Scheme.parse(text)))


def lost(weight: np.ndarray, encoded: EncodedWeight) -> float:
    return float(np.square(decode(encoded).astype(np.float64) - weight).sum())


@pytest.mark.parametrize(
    ("rows", "cols", "vector", "scalar"),
    [(768, 256, "vq2d4", "cb2-c"), (256, 256, "vq2d2", "cb2-c"), (512, 512, "vq1d8-c", "cb1-g64")],
)
def test_less_error_than_scalars_at_equal_bits(rows: int, cols: int, vector: str, scalar: str) -> None:
    """Tables and scales counted."""
    weight = np.random.default_rng().standard_normal((rows, cols)).astype(np.float32)
    vectors, scalars = (encode(weight, Scheme.parse(text)) for text in (vector, scalar))
    assert vectors.bits_per_weight() <= scalars.bits_per_weight() <= vectors.bits_per_weight() + 0.13
    assert lost(weight, vectors) < lost(weight, scalars)


def test_stages_add_up() -> None:
    weight = np.random.default_rng(2).standard_normal((64, 256)).astype(np.float32)
    assert error(weight, "vq2d4.x1") < error(weight, "vq2d4.x2") < error(weight, "vq1d4")


@pytest.mark.parametrize("dim", [2, 4, 8])
def test_few_distinct_vectors_are_exact(dim: int) -> None:
    rng = np.random.default_rng()
    kinds = rng.integers(-8, 9, (4, dim)).astype(np.float32)
    weight = kinds[rng.integers(0, 4, (9, 7))].reshape(9, 7 * dim)
    np.testing.assert_array_equal(decode(encode(weight, Scheme.parse(f"vq1d{dim}"))), weight)


def test_rows_that_are_no_whole_vectors() -> None:
    weight = np.random.default_rng().integers(0, 2, (6, 13)).astype(np.float32)
    encoded = encode(weight, Scheme.parse("vq2d4"))
    assert encoded.codes[0].size == 6 * 4
    np.testing.assert_array_equal(decode(encoded), weight)


def test_bits_per_weight_count_the_tables() -> None:
    weight = np.random.default_rng().standard_normal((128, 256)).astype(np.float32)
    count = weight.size
    assert encode(weight, Scheme.parse("vq2d4")).bits_per_weight() == 2 + 256 * 4 * 16 / count
    assert encode(weight, Scheme.parse("vq2d8-g32")).bits_per_weight() == 2 + 16 / 32 + 2 * 256 * 8 * 16 / count
    assert encode(weight, Scheme.parse("vq3d4.r64")).bits_per_weight() == 3 + 2 * 2 * 64 * 4 * 16 / count
    assert encode(weight, Scheme.parse("vq2d4.q8")).bits_per_weight() == 2 + 32 / 256 + 256 * 4 * 8 / count
    half = np.zeros((128, 256), bool)
    half[:, :128] = True
    stored = encode(weight, Scheme.parse("s16x4@50-vq2d4-c"), half)
    assert stored.bits_per_weight() == 2 / 2 + 1 / 64 + 32 / 256 + 256 * 4 * 16 / count


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("vq2d8.x2", "vq2d8"),
        ("vq2d4.x1", "vq2d4"),
        ("vq2d4.x2.r16-c", "vq2d4.x2.r16-c"),
        ("s4x8@50-vq2d8-g32", "s4x8@50-vq2d8-g32"),
    ],
)
def test_canonical_text(text: str, canonical: str) -> None:
    assert str(Scheme.parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("vq2d3", "2, 4 and 8 are"),
        ("vq8d8", "at most 32 a code"),
        ("vq2d4.x3", "try .x1, .x2"),
        ("vq4d4.x1", "at most 12 bits"),
        ("vq2d4.i6", "whole vectors of 4"),
        ("s50-vq2d4", "such as s1x4@50"),
        ("s2:4-vq2d2", "one by one"),
        ("s4x2@50-vq2d4", "blocks of 2"),
        ("vq2d4.q8.x2", "codec"),
        ("vq2d4-g6", "not a multiple of the 4 inputs"),
    ],
)
def test_refused_schemes(text: str, fragment: str) -> None:
    with pytest.raises(SchemeError, match=fragment.replace("@", "@")):
        Scheme.parse(text)


def test_values_that_do_not_fit_the_table() -> None:
    with pytest.raises(WeightError, match="use channel scales"):
        encode(np.full((2, 4), 1e6, np.float32), Scheme.parse("vq2d4"))


def test_bytes_cost_little_accuracy() -> None:
    weight = np.random.default_rng(4).standard_t(6, (64, 512)).astype(np.float32)
    encoded = encode(weight, Scheme.parse("vq2d8.q8-g32"))
    assert encoded.codebook is not None
    assert encoded.codebook.dtype == np.int8
    assert error(weight, "vq2d8.q8-g32") < 1.02 * error(weight, "vq2d8-g32")
    assert str(encoded.scheme) == "vq2d8.q8-g32"
    assert str(Scheme.parse("vq2d4.x2.q8.i8-c")) == "vq2d4.x2.q8.i8"


def test_same_bytes_every_time() -> None:
    weight = np.random.default_rng().standard_normal((200, 300)).astype(np.float32)
    first, second = (encode(weight.copy(), Scheme.parse("vq2d8-g32")).arrays() for _ in range(2))
    assert all(first[role].tobytes() == second[role].tobytes() for role in first)


def test_nearest_is_nearest() -> None:
    rng = np.random.default_rng()
    vectors, centroids = (rng.standard_normal((n, 4)).astype(np.float32) for n in (503, 37))
    wanted = np.square(vectors[:, None].astype(np.float64) - centroids).sum(2)
    found = nearest_vectors(vectors, centroids)
    np.testing.assert_allclose(wanted[np.arange(503), found], wanted.min(1), rtol=1e-5)


def test_kmeans_finds_planted_clusters() -> None:
    rng = np.random.default_rng(3)
    centres = rng.uniform(-50, 50, (16, 2)).astype(np.float32)
    vectors = np.repeat(centres, 200, 0) + rng.standard_normal((3200, 2)).astype(np.float32) * np.float32(0.01)
    found = kmeans_vectors(vectors, 16, np.ones(3200, np.float32))
    missed = np.square(vectors[:, None] - found).sum(2).min(1)
    assert np.median(missed) < 1e-3
    assert (missed > 1).mean() < 0.15


def test_kmeans_follows_the_weights() -> None:
    vectors = np.array([[0, 0], [1, 0], [10, 10], [11, 10], [12, 10]], np.float32)
    found = kmeans_vectors(vectors, 2, np.array([1, 3, 0, 1, 1], np.float32))
    np.testing.assert_allclose(found[found[:, 0].argsort()], [[0.75, 0], [11.5, 10]], rtol=1e-6)
    assert not kmeans_vectors(vectors, 2, np.zeros(5, np.float32)).any()
