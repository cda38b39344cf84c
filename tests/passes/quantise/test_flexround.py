"""Rounding by learnt division: below rounding to nearest, never above its start, above what moves errors on."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.errors import WeightError
from sparsec.formats import Scheme, decode, encode, kept_positions
from sparsec.passes.quantise import flexround, quantise
from tests.passes.quantise.problems import layer, loss, mask_of, raw


@pytest.mark.parametrize(
    "token", ["int4-g8", "int3", "int2", "uint3", "int4-t", "cb3-c", "cb4", "ternary-g16", "nf4-g16", "fp4-g16"]
)
def test_beats_rounding_to_nearest(token: str) -> None:
    """Over a few layers: on a coarse grid one of them may be best as it is rounded."""
    scheme, rng = Scheme.parse(token), np.random.default_rng()
    ours, weighed, plain = 0.0, 0.0, 0.0
    for _ in range(3):
        weight, moment = layer(24, 64, rng)
        counts = np.diag(moment).astype(np.float64) + 0.01 * float(np.diag(moment).mean())
        found = flexround(weight, moment, scheme, steps=100)
        ours += loss(weight, moment, found)
        weighed += loss(weight, moment, encode(weight, scheme, None, counts))
        plain += loss(weight, moment, encode(weight, scheme))
        assert found.nbytes == encode(weight, scheme).nbytes
    assert ours < weighed
    assert ours < plain
    assert raw(found) == raw(flexround(weight, moment, scheme, steps=100))


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_never_above_its_start(steps: int) -> None:
    weight, moment = layer(9, 31, np.random.default_rng())
    scheme = Scheme.parse("int3-g8")
    start = flexround(weight, moment, scheme, steps=0)
    assert loss(weight, moment, flexround(weight, moment, scheme, steps=steps, rate=3.0)) <= loss(weight, moment, start)


@pytest.mark.parametrize("token", ["s50-int4", "s2:4-cb4-g32", "s8x1@50-int3-g16"])
def test_masks_stay(token: str) -> None:
    rng, scheme = np.random.default_rng(), Scheme.parse(token)
    ours = plain = 0.0
    for _ in range(4):  # in one weight there may be nothing to gain
        weight, moment = layer(16, 48, rng)
        mask = mask_of(scheme, weight, rng)
        assert mask is not None
        start = np.where(mask, weight, np.float32(0))
        found = flexround(weight, moment, scheme, mask, start=start)
        np.testing.assert_array_equal(kept_positions(found), mask)
        ours += loss(weight, moment, found)
        plain += loss(weight, moment, encode(start, scheme, mask))
    assert ours < plain


def test_only_a_little_above_descent_and_each_weight_near_its_own() -> None:
    """Division moves weights by some levels at most, which keeps it from fitting the samples' noise."""
    weight, moment = layer(24, 64, np.random.default_rng(3))
    scheme = Scheme.parse("int4")
    found, solved = flexround(weight, moment, scheme), quantise(weight, moment, scheme)
    assert loss(weight, moment, solved) < loss(weight, moment, found)
    assert np.square(decode(found) - weight).sum() < 4 * np.square(decode(encode(weight, scheme)) - weight).sum()


def test_groups_of_a_convolution() -> None:
    rng, scheme = np.random.default_rng(), Scheme.parse("int3")

    def total(q: np.ndarray) -> float:
        return sum(
            np.vdot((a - b) @ m, a - b) for a, b, m in zip(np.split(weight, 3), np.split(q, 3), moments, strict=True)
        )

    found = start = 0.0
    for _ in range(8):  # in one weight there may be nothing to gain
        parts = [layer(4, 18, rng) for _ in range(3)]
        weight, moments = np.concatenate([w for w, _ in parts]), np.stack([m for _, m in parts])
        found += total(decode(flexround(weight, moments, scheme)))
        start += total(decode(flexround(weight, moments, scheme, steps=0)))
    assert found < start


def test_odd_weights_and_vectors() -> None:
    moment = np.eye(7, dtype=np.float32)
    for weight in (np.zeros((3, 7), np.float32), np.full((3, 7), 2.5, np.float32), np.ones((1, 7), np.float32) * 1e30):
        assert np.isfinite(decode(flexround(weight, moment, Scheme.parse("int4"), steps=5))).all()
    with pytest.raises(WeightError, match="codes 4 inputs together"):
        flexround(np.ones((3, 7), np.float32), moment, Scheme.parse("vq2d4"))
