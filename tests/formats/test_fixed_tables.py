"""Codecs with constant tables: their levels from independent definitions, and every value to its nearest level."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from sparsec.formats import CODECS, Scheme, decode, encode
from sparsec.formats.fixed_table import FixedTable

TABLES = [codec for codec in CODECS if issubclass(codec, FixedTable)]


@pytest.mark.parametrize("codec", TABLES)
def test_each_value_takes_its_nearest_level(codec: type[FixedTable]) -> None:
    weight = np.random.default_rng().standard_normal((6, 35)).astype(np.float32)
    encoded = encode(weight, Scheme.of(codec()))
    assert encoded.scales is not None
    levels = np.array(codec.levels)
    levels = levels[np.isfinite(levels)]
    scale = encoded.scales.astype(np.float64)
    best = np.abs(weight[:, :, None] - levels * scale[:, :, None]).min(2)
    np.testing.assert_allclose(np.abs(decode(encoded) - weight), best, atol=1e-6)


@pytest.mark.parametrize("codec", TABLES)
def test_tables_cost_nothing(codec: type[FixedTable]) -> None:
    weight = np.random.default_rng().standard_normal((8, 64)).astype(np.float32)
    encoded = encode(weight, Scheme.parse(f"{codec.token}-g32"))
    assert encoded.bits_per_weight() == codec().code_bits + 16 / 32
    assert len(codec.levels) == 1 << codec().code_bits


def test_fp4_is_e2m1() -> None:
    wanted = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    np.testing.assert_array_equal(_levels("fp4"), wanted)


def test_fp8_is_e4m3fn() -> None:
    wanted = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(_levels("fp8"), wanted)


def test_nf4_halves_are_quantiles_of_the_normal_distribution() -> None:
    # QLoRA, section 3: 8 levels above and 7 below zero, at evenly spaced quantiles, the outermost at 1.
    from scipy.stats import norm

    offset = 0.9677083
    above = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])[::-1]
    below = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    wanted = np.concatenate([below, [0.0], above]) / above.max()
    np.testing.assert_allclose(_levels("nf4"), wanted, atol=2e-3)


def test_binary_is_the_least_squares_solution() -> None:
    weight = np.random.default_rng().standard_normal((5, 41)).astype(np.float32)
    wanted = np.sign(weight) * np.abs(weight).mean(1, keepdims=True)
    np.testing.assert_allclose(decode(encode(weight, Scheme.parse("binary"))), wanted, rtol=1e-5)


def _levels(token: str) -> np.ndarray:
    codec = Scheme.parse(token).codec
    assert isinstance(codec, FixedTable)
    return np.array(codec.levels, np.float32)
