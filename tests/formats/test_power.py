"""Power grids: the levels, the exponent that is found, and what they gain over integers on heavy tails."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.errors import SchemeError
from sparsec.formats import Scheme, decode, encode
from sparsec.formats.codecs import power
from sparsec.formats.codecs.power import PowerGrid, power_levels


def error(weight: np.ndarray, scheme: str, importance: np.ndarray | None = None) -> float:
    counts = 1 if importance is None else importance
    found = decode(encode(weight, Scheme.parse(scheme), importance=importance))
    return float((counts * np.square(found.astype(np.float64) - weight)).sum())


def exponent_of(weight: np.ndarray, scheme: str, importance: np.ndarray | None = None) -> float:
    book = encode(weight, Scheme.parse(scheme), importance=importance).codebook
    assert book is not None
    return float(np.log(-book[0, 1]) / np.log(1 - 2.0 / len(book[0])))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_levels_are_a_power_of_integers(bits: int) -> None:
    levels, half = power_levels(bits, 1.5), 2 ** (bits - 1)
    assert levels[half] == 0
    assert (np.diff(levels) > 0).all()
    for q in range(-half, half):
        assert levels[q + half] == pytest.approx(np.sign(q) * (abs(q) / half) ** 1.5, rel=1e-6)


@pytest.mark.parametrize("scheme", ["pg3", "pg4", "pg4-g32", "pg4-t", "s50-pg4"])
def test_less_error_than_integers_on_heavy_tails(scheme: str) -> None:
    weight = np.random.default_rng(0).laplace(size=(128, 256)).astype(np.float32)
    integers = scheme.replace("pg", "int")
    assert error(weight, scheme) < 0.85 * error(weight, integers)
    bits = [encode(weight, Scheme.parse(text)).bits_per_weight() for text in (scheme, integers)]
    assert bits[0] - bits[1] < 0.02
    assert exponent_of(weight, scheme) > 1.2


def test_evenly_spread_values_want_integers() -> None:
    weight = np.random.default_rng(1).uniform(-1, 1, (40, 200)).astype(np.float32)
    assert exponent_of(weight, "pg4") == pytest.approx(1.0, abs=0.13)
    assert error(weight, "pg4") <= 1.0001 * error(weight, "int4")


@pytest.mark.parametrize("weighted", [False, True])
def test_the_exponent_is_the_best_there_is(weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    weight = rng.standard_t(4, (16, 96)).astype(np.float32)
    importance = rng.exponential(size=96) if weighted else None
    found = error(weight, "pg4-g32", importance)
    tried = []
    for exponent in np.linspace(0.6, 3, 49):
        monkeypatch.setattr(power, "power_levels", lambda bits, _, e=exponent: power_levels(bits, e))
        tried.append(error(weight, "pg4-g32", importance))
    assert found <= 1.01 * min(tried)


def test_wide_weights_are_searched_on_some_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(3).standard_normal((300, 64)).astype(np.float32)
    whole = error(weight, "pg3-g32")
    monkeypatch.setattr(power, "_SEARCHED", 2048)
    assert error(weight, "pg3-g32") < 1.05 * whole


@pytest.mark.parametrize("bits", [1, 9])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(SchemeError, match="2 to 8"):
        PowerGrid(bits)
