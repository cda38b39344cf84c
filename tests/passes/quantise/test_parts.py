"""Grouped convolutions: parts of the outputs with inputs of their own, scales and codebooks shared by all."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.errors import CalibrationError
from sparsec.formats import Scheme, decode, encode
from sparsec.passes.hessian import diagonals
from sparsec.passes.quantise import compensate, descend, on_support, quantise, refit
from sparsec.passes.quantise.products import damped, error
from tests.passes.quantise.problems import layer, mask_of, raw

PARTS, ROWS, COLS = 6, 24, 9


def problem(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    weight, _ = layer(ROWS, COLS, rng)
    moments = [layer(1, COLS, rng)[1] * np.float32(10 ** rng.uniform(-1, 1)) for _ in range(PARTS)]
    return weight, np.stack(moments)


@pytest.mark.parametrize(
    "token", ["int4", "int3-t", "cb3", "cb3-c", "uint3", "ternary", "s50-int4", "vq2d2", "vq1d4", "vq1d4.x2-c"]
)
def test_each_step_beats_the_last(token: str) -> None:
    rng = np.random.default_rng(3)
    weight, moments = problem(rng)
    scheme, hessian = Scheme.parse(token), damped(moments, 0.01, ROWS, COLS)
    mask = mask_of(scheme, weight, rng)

    def loss(encoded) -> float:  # type: ignore[no-untyped-def]
        return error(weight, decode(encoded), hessian)

    start = weight if mask is None else on_support(weight, moments, mask)
    plain = encode(start, scheme, mask, diagonals(hessian, ROWS))
    rounded = compensate(start, moments, scheme, mask)
    if mask is None:  # errors of pruned positions have few inputs to go to here
        assert loss(rounded) < loss(plain)
    descended = descend(weight, moments, rounded)
    assert loss(descended) <= loss(rounded) * (1 + 1e-6)
    assert loss(refit(weight, moments, descended)) <= loss(descended) * (1 + 1e-6)
    found = quantise(weight, moments, scheme, mask)
    assert loss(found) <= loss(rounded) * (1 + 1e-6)
    assert raw(found) == raw(quantise(weight, moments, scheme, mask))


@pytest.mark.parametrize("token", ["int4", "cb3", "vq1d4"])
def test_equal_parts_are_one(token: str) -> None:
    """The same second moment for every part is one second moment for all."""
    weight, moment = layer(ROWS, COLS, np.random.default_rng())
    scheme = Scheme.parse(token)
    together = decode(compensate(weight, moment, scheme, order="natural"))
    apart = decode(compensate(weight, np.stack([moment] * PARTS), scheme))
    assert np.mean(together == apart) > 0.98
    assert raw(quantise(weight, moment[None], scheme)) == raw(quantise(weight, moment, scheme))


def test_parts_that_do_not_fit_are_refused() -> None:
    weight, moments = problem(np.random.default_rng())
    for wrong in (moments[:5], moments[:, :8], moments[:, :8, :8], moments[None]):
        with pytest.raises(CalibrationError, match="equal parts"):
            quantise(weight, wrong, Scheme.parse("int4"))
