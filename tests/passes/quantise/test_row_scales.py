"""Scales by trying: against exhaustive search over scales and codes, and never worse in any row."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sparsec.formats import Scheme, decode, encode, kept_positions
from sparsec.passes.hessian import damped
from sparsec.passes.quantise import quantise
from sparsec.passes.quantise import solve as whole
from sparsec.passes.quantise.products import row_errors
from sparsec.passes.quantise.row_scales import searched, worth_searching
from tests.passes.quantise.problems import layer, loss, mask_of


def _optimum(weight: np.ndarray, hessian: np.ndarray, levels: np.ndarray) -> float:
    """The least error over all codes of every row, each with the scale that is best for it."""
    codes = np.array(list(itertools.product(levels, repeat=weight.shape[1])))
    codes = codes[codes.any(1)]
    dots, norms = weight.astype(np.float64) @ hessian @ codes.T, np.einsum("sk,kl,sl->s", codes, hessian, codes)
    whole_error = np.einsum("nk,kl,nl->n", weight, hessian, weight)
    return float((whole_error - (dots**2 / norms).max(1)).sum())


def test_near_the_best_scales_and_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng()
    weight, moment = layer(1000, 5, rng, 80)
    best = _optimum(weight, damped(moment), np.arange(-4, 4))
    found = loss(weight, moment, quantise(weight, moment, Scheme.parse("int3")))
    monkeypatch.setattr(whole, "worth_searching", lambda encoded: False)
    without = loss(weight, moment, quantise(weight, moment, Scheme.parse("int3")))
    assert best * (1 - 1e-6) <= found
    assert found - best < 0.8 * (without - best)


@pytest.mark.parametrize("token", ["int3", "uint4", "cb3-c", "cb4-g9", "ternary", "s50-int4", "s2:4-cb3-c", "int8"])
@pytest.mark.parametrize("cols", [1, 9, 31])
def test_no_row_loses(token: str, cols: int) -> None:
    rng = np.random.default_rng()
    scheme = Scheme.parse(token.replace("g9", f"g{cols}"))
    weight, _ = layer(24, cols, rng)
    hessians = np.stack([damped(layer(1, cols, rng)[1]) for _ in range(3)])
    start = encode(weight, scheme, mask_of(scheme, weight, rng))
    assert worth_searching(start)
    found = searched(weight, hessians, start)
    before, after = (row_errors(weight, decode(e), hessians) for e in (start, found))
    assert (after <= before * (1 + 1e-5) + 1e-12).all()
    assert after.sum() < before.sum() or cols == 1
    np.testing.assert_array_equal(kept_positions(found), kept_positions(start))
    for part, hessian in enumerate(hessians):
        own = slice(8 * part, 8 * part + 8)
        np.testing.assert_allclose(
            row_errors(weight[own], decode(found)[own], hessian), after[own], rtol=1e-4, atol=1e-9
        )


def test_extreme_scales_stay_finite() -> None:
    weight = np.full((2, 3), 60000.0, np.float32)
    start = encode(weight, Scheme.parse("cb2-g3"))
    assert np.isfinite(decode(searched(weight, np.eye(3), start))).all()


@pytest.mark.parametrize("token", ["cb4", "int4-g8", "fp16", "vq2d4-c", "int4-t", "s16x1@50-int4"])
def test_what_is_left_alone(token: str) -> None:
    """No scale of a row's own, several of them, no codes of single values; rows too long."""
    rng = np.random.default_rng()
    wide = 65 if token.startswith("s16") else 32
    assert not worth_searching(encode(layer(32, wide, rng)[0], Scheme.parse(token)))
