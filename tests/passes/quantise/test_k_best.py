"""K-best rounding against exhaustive search, against its ancestor, and in pieces."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sparsec.errors import WeightError
from sparsec.formats import Scheme, decode, encode, kept_positions
from sparsec.passes.hessian import damped
from sparsec.passes.quantise import compensate
from sparsec.passes.quantise import k_best as rounding
from sparsec.passes.quantise.k_best import k_best, width_for
from tests.passes.quantise.problems import layer, loss, mask_of, raw

TOKENS = [
    "int2",
    "uint3-g8",
    "int4",
    "cb2",
    "cb3-g8",
    "cb4-c",
    "cb3.i16-c",
    "ternary",
    "binary",
    "nf4-g8",
    "fp4",
    "fp8",
    "pow2",
    "pg3",
]


@pytest.mark.parametrize("token", TOKENS)
def test_beats_one_beginning(token: str) -> None:
    """Sums over many rows: a single row may be luckier with one."""
    rng = np.random.default_rng()
    scheme = Scheme.parse(token)
    weight, moment = layer(200, 40, rng)
    hessian = damped(moment)
    start = encode(weight, scheme, None, hessian.diagonal())
    lost = [loss(weight, moment, k_best(weight, hessian, start, width=width)) for width in (1, 4, 16)]
    np.testing.assert_allclose(lost[0], loss(weight, moment, compensate(weight, moment, scheme)), rtol=1e-3)
    assert lost[1] < 0.995 * lost[0]
    assert lost[2] < lost[1]


def test_all_beginnings_are_exhaustive_search() -> None:
    rng = np.random.default_rng()
    cols = 7
    weight, moment = layer(20, cols, rng, 60)
    hessian = damped(moment)
    start = encode(weight, Scheme.parse("binary"), None, hessian.diagonal())
    size = np.abs(decode(start)).max(1)
    signs = np.array(list(itertools.product((-1, 1), repeat=cols)))
    off = weight[:, None].astype(np.float64) - size[:, None, None] * signs
    best = np.einsum("nsk,kl,nsl->ns", off, hessian, off).min(1).sum()
    np.testing.assert_allclose(loss(weight, moment, k_best(weight, hessian, start, width=2**cols)), best, rtol=1e-5)


@pytest.mark.parametrize("token", ["int3", "s50-int3", "s2:4-cb3", "s4x8@50-int4-g8", "int4-g8"])
@pytest.mark.parametrize("cols", [1, 9, 70])
def test_parts_and_portions(token: str, cols: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows do not know of each other: parts are what each is by itself, in natural order, and portions change nothing."""
    rng = np.random.default_rng()
    scheme = Scheme.parse(token)
    weight, _ = layer(24, cols, rng)
    hessians = np.stack([damped(layer(1, cols, rng)[1]) for _ in range(3)])
    start = encode(weight, scheme, mask_of(scheme, weight, rng))
    found = k_best(weight, hessians, start)
    assert not decode(found)[~kept_positions(start)].any()
    for part, hessian in enumerate(hessians):
        own = slice(8 * part, 8 * part + 8)
        alone = k_best(weight, hessian, start, order="natural")
        np.testing.assert_allclose(decode(found)[own], decode(alone)[own])
    for held in (1, 16 * cols * 5, 16 * cols * 16):
        monkeypatch.setattr(rounding, "_HELD", held)
        assert raw(k_best(weight, hessians, start)) == raw(found)


def test_width_falls_with_the_inputs() -> None:
    assert [width_for(cols) for cols in (0, 1, 576, 1536, 4096, 9217)] == [16, 16, 16, 6, 2, 1]


@pytest.mark.parametrize("token", ["fp16", "vq2d4"])
def test_what_has_no_codes_of_its_own(token: str) -> None:
    weight = np.ones((4, 8), np.float32)
    with pytest.raises(WeightError, match="codes"):
        k_best(weight, np.eye(8), encode(weight, Scheme.parse(token)))
