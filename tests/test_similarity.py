"""Similarity of outputs against plain formulas over all samples at once."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from sparsec.similarity import OutputSimilarity, Similarity, decisions


def summed(dense: np.ndarray, found: np.ndarray, logits: bool = False) -> OutputSimilarity:
    sums = Similarity("y", logits)
    for a, b in zip(dense, found, strict=True):
        sums.add(a, b)
    return sums.result()


def test_figures_of_logits() -> None:
    rng = np.random.default_rng()
    dense = rng.normal(0, 3, (9, 2, 7)).astype(np.float32)
    found = dense + rng.normal(0, 1, dense.shape).astype(np.float32)
    row = summed(dense, found, logits=True)
    assert row.shape == (2, 7)
    assert row.error == pytest.approx(np.linalg.norm(found - dense) / np.linalg.norm(dense), rel=1e-5)
    assert row.largest == pytest.approx(np.abs(found - dense).max() / np.abs(dense).max(), rel=1e-5)
    x, y = dense.reshape(9, -1), found.reshape(9, -1)
    cosines = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert row.cosine == pytest.approx(cosines.mean(), rel=1e-5)
    assert row.least_cosine == pytest.approx(cosines.min(), rel=1e-5)
    assert row.kl == pytest.approx(entropy(softmax(dense, axis=2), softmax(found, axis=2), axis=2).mean(), rel=1e-4)
    assert row.agreement == pytest.approx((dense.argmax(2) == found.argmax(2)).mean())


def test_distributions_are_recognised() -> None:
    rng = np.random.default_rng()
    x, y = rng.normal(size=(2, 5, 1, 6)).astype(np.float32)
    wanted = entropy(softmax(x, axis=2), softmax(y, axis=2), axis=2).mean()
    assert summed(softmax(x, axis=2), softmax(y, axis=2)).kl == pytest.approx(wanted, rel=1e-3)
    assert summed(log_softmax(x, axis=2), log_softmax(y, axis=2)).kl == pytest.approx(wanted, rel=1e-3)
    plain = summed(x, y)
    assert plain.kl is None
    assert plain.agreement is None
    one_hot = np.eye(4, dtype=np.float32)[None]
    assert np.isfinite(summed(one_hot, one_hot[:, ::-1]).kl)


def test_odd_outputs() -> None:
    zeros = np.zeros((2, 3), np.float32)
    assert (summed(zeros, zeros).error, summed(zeros, zeros).cosine) == (0, 1)
    assert summed(zeros, zeros + 1).cosine == 0
    whole = summed(np.array([[1, 2, 3, 4]]), np.array([[1, 2, 0, 4]]))
    assert (whole.agreement, whole.error, whole.cosine) == (0.75, None, None)
    masked = np.array([[-np.inf, 0.0, 1.0]], np.float32)
    row = summed(masked, masked, logits=True)
    assert (row.error, row.kl, row.agreement) == (0, 0, 1)


def test_decisions_drop_axes_of_one() -> None:
    assert decisions(np.zeros((1, 10, 1, 1))).shape == (1, 10)
    assert decisions(np.zeros((2, 5, 7))).shape == (10, 7)
    assert decisions(np.zeros(())).shape == (1, 1)
