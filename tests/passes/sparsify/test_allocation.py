"""LAMP and ERK spread a share of zeros over layers as their papers say."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from sparsec.errors import SchemeError
from sparsec.formats import Scheme
from sparsec.passes.sparsify.allocation import by_output, erk, joint, lamp, lamp_scores


def test_lamp_scores_by_their_definition() -> None:
    weight = np.random.default_rng(0).normal(size=(5, 7))
    scores = lamp_scores(weight)
    for n, k in np.ndindex(5, 7):
        surviving = (weight[np.abs(weight) >= abs(weight[n, k])] ** 2).sum()
        assert scores[n, k] == pytest.approx(weight[n, k] ** 2 / surviving)
    assert scores.max() == 1
    assert np.allclose(lamp_scores(weight * 1e-3), scores)


def test_lamp_scores_of_blocks() -> None:
    weight = np.random.default_rng(1).normal(size=(5, 7))
    squares = np.add.reduceat(np.add.reduceat(weight**2, [0, 2, 4], 0), [0, 3, 6], 1)
    assert np.allclose(lamp_scores(weight, (2, 3)), lamp_scores(np.sqrt(squares)))


def test_lamp_takes_the_lowest_scores_of_all_layers() -> None:
    rng = np.random.default_rng(2)
    weights = [rng.standard_t(2, size=(40, 41)), 1e-3 * rng.uniform(0.9, 1.1, size=(13, 17)), rng.normal(size=(8, 200))]
    for percent in (0.0, 30.0, 75.0, 99.0):
        shares = lamp(weights, percent)
        dropped = sum(share / 100 * weight.size for share, weight in zip(shares, weights, strict=True))
        assert dropped == pytest.approx(round(sum(w.size for w in weights) * percent / 100))
        lowest = np.sort(np.concatenate([lamp_scores(w).reshape(-1) for w in weights]))
        threshold = lowest[round(dropped)]
        for share, weight in zip(shares, weights, strict=True):
            assert round(share / 100 * weight.size) == np.count_nonzero(lamp_scores(weight) < threshold)
    heavy, flat, _ = lamp(weights, 75)
    assert heavy > flat  # what is concentrated in few weights is pruned more, at any scale


def test_lamp_of_degenerate_layers() -> None:
    assert lamp([], 50) == []
    shares = lamp([np.zeros((3, 4)), np.ones((3, 4)), np.ones((1, 1))], 90)
    assert shares[0] == pytest.approx(1100 / 12)
    assert shares[2] == 0
    assert all(share < 100 for share in shares)


def test_erk_by_its_definition() -> None:
    shapes = [(16, 3, 3, 3), (64, 64, 3, 3), (256, 128), (10, 256)]
    shares = erk(shapes, 75)
    sizes = np.array([np.prod(shape) for shape in shapes])
    density = 1 - np.array(shares) / 100
    assert (density * sizes).sum() == pytest.approx(0.25 * sizes.sum())
    raw = np.array([sum(shape) for shape in shapes]) / sizes
    partial = density < 1
    assert density[0] == 1
    assert partial[1:].any()
    assert np.ptp(density[partial] / raw[partial]) < 1e-9
    assert (raw[~partial] * (density[partial] / raw[partial])[0] >= 1).all()


def test_erk_at_the_ends() -> None:
    assert erk([(4, 5), (6, 7)], 0) == [0, 0]
    assert erk([(8, 8)], 37.5) == [pytest.approx(37.5)]
    assert erk([(1, 1)], 50) == [pytest.approx(50)]
    assert erk([], 50) == []


@pytest.mark.parametrize("scheme", ["s50", "s4x2@50"])
def test_joint_scores_move_zeros_to_the_layer_with_many_small_ones(scheme: str) -> None:
    rng = np.random.default_rng(2)
    heavy = np.square(rng.standard_t(2, size=(40, 40)))
    flat = 1e6 * np.square(rng.uniform(0.9, 1.1, size=(40, 40)))
    shares = joint([heavy, flat], Scheme.parse(scheme).structure)
    assert shares[0] > shares[1]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert joint([heavy, heavy], Scheme.parse(scheme).structure) == pytest.approx([50, 50], abs=0.2)


def test_no_other_shares_lose_less_of_the_outputs() -> None:
    """Brute force over all shares of three weights of twenty blocks: 3 to 17 of them may go."""
    rng = np.random.default_rng()
    scores = [scale * rng.standard_t(3, (4, 10)) ** 2 for scale in (1, 7, 0.2)]
    shares = by_output(scores, Scheme.parse("s2x1@40").structure)
    blocks = [np.sort(score.reshape(2, 2, 10).sum(1).reshape(-1)) / score.sum() for score in scores]
    lost = [np.concatenate([[0], np.cumsum(b)]) for b in blocks]
    possible = [p for p in product(range(3, 18), repeat=3) if sum(p) == 24]
    least = min(sum(lost[i][n] for i, n in enumerate(p)) for p in possible)
    found = [round(share / 5) for share in shares]
    assert sum(found) == 24
    assert min(found) >= 3
    assert max(found) <= 17
    assert sum(lost[i][n] for i, n in enumerate(found)) == pytest.approx(least)


def test_shares_by_output_when_there_is_nothing_to_choose() -> None:
    half = Scheme.parse("s50").structure
    assert by_output([], half) == []
    assert by_output([np.zeros((4, 5)), np.zeros((6, 5))], half) == [pytest.approx(50, abs=36)] * 2
    assert by_output([np.ones((10, 10))], Scheme.parse("s95").structure) == [pytest.approx(95)]


@pytest.mark.parametrize("percent", [-1, 100, 150])
def test_impossible_shares(percent: float) -> None:
    with pytest.raises(SchemeError, match="percent"):
        erk([(4, 5)], percent)
    with pytest.raises(SchemeError, match="percent"):
        lamp([np.ones((2, 2))], percent)
