"""The search for scales: never worse than the scale that reaches the largest value, near the optimum, zero stays zero."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.formats import Scheme, decode, encode

CODECS = ("int2", "int3", "int4", "int5", "int8", "uint2", "uint3", "uint4", "uint8", "nf4", "fp4", "fp8")
# fmt: off
LEVELS = {
    "nf4": [
        -1, -0.69619, -0.52507, -0.39492, -0.28444, -0.18477, -0.09105, 0,
        0.07958, 0.16093, 0.24611, 0.33792, 0.44071, 0.56262, 0.72296, 1,
    ],
    "fp4": [-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6],
}
# fmt: on


def squared(weight: np.ndarray, text: str) -> np.ndarray:
    """Squared error of each row, float64."""
    return np.square(decode(encode(weight, Scheme.parse(text))).astype(np.float64) - weight).sum(1)


def plain(row: np.ndarray, codec: str) -> float:
    """Squared error of one row with the scale that reaches its largest value."""
    if codec.startswith("uint"):
        levels = 2 ** int(codec[4:]) - 1
        low, high = min(row.min(), 0), max(row.max(), 0)
        scale = (high - low) / levels
        zero = np.clip(np.rint(-low / scale), 0, levels)
        return float(np.square((np.clip(np.rint(row / scale) + zero, 0, levels) - zero) * scale - row).sum())
    if codec.startswith("int"):
        top = 2 ** (int(codec[3:]) - 1) - 1
        levels = np.arange(-top - 1, top + 1)
    elif codec == "fp8":
        levels = np.array([s * m * 2.0**e for s in (-1, 1) for e in range(-9, 6) for m in range(16)])
        levels = levels[np.abs(levels) <= 448]
        top = 448
    else:
        levels = np.array(LEVELS[codec])
        top = max(LEVELS[codec])
    scale = np.abs(row).max() / top
    return float(np.square(np.abs(row[:, None] / scale - levels).min(1) * scale).sum())


@pytest.mark.parametrize("codec", CODECS)
def test_never_worse_than_the_plain_scale(codec: str) -> None:
    rng = np.random.default_rng()
    weight = rng.standard_t(4, (9, 67)).astype(np.float32)
    wanted = np.array([plain(row, codec) for row in weight.astype(np.float64)])
    assert (squared(weight, codec) <= wanted * 1.002).all()
    assert squared(weight, f"{codec}-g8").sum() < squared(weight, codec).sum()


@pytest.mark.parametrize(
    ("codec", "gain"), [("int4", 0.9), ("int3", 0.75), ("uint4", 0.95), ("nf4", 0.95), ("fp4", 0.95)]
)
def test_clipping_pays_on_normal_weights(codec: str, gain: float) -> None:
    weight = np.random.default_rng(3).standard_normal((16, 512)).astype(np.float32)
    wanted = sum(plain(row, codec) for row in weight.astype(np.float64))
    assert squared(weight, codec).sum() < gain * wanted


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_near_the_best_of_all_scales(bits: int) -> None:
    rng = np.random.default_rng(4)
    low, top = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for _ in range(10):
        row = rng.standard_normal(24).astype(np.float32)
        scales = np.linspace(0.01, 1.2, 2000) * np.abs(row).max()
        levels = np.clip(np.rint(row / np.concatenate([scales, -scales])[:, None]), low, top)
        all_errors = np.square(levels * np.concatenate([scales, -scales])[:, None] - row).sum(1)
        assert squared(row[None], f"int{bits}")[0] <= 1.1 * all_errors.min()


@pytest.mark.parametrize("text", [f"{codec}{scales}" for codec in CODECS for scales in ("-t", "", "-g4")])
def test_zero_stays_zero(text: str) -> None:
    weight = np.random.default_rng().standard_normal((7, 13)).astype(np.float32)
    weight[:, ::3] = 0
    weight[2] = 0
    found = decode(encode(weight, Scheme.parse(text)))
    assert not found[weight == 0].any()
    assert found.any()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [1e38, 1e30, 1e-30, 1e-44])
def test_extreme_weights(codec: str, size: float) -> None:
    signs = np.random.default_rng(5).choice([-1.0, 1.0], (3, 40))
    weight = (signs * size).astype(np.float32)
    found = decode(encode(weight, Scheme.parse(codec))).astype(np.float64) / size
    # uint8 has a zero point to round; a single step of a denormal number is as coarse as it is
    assert np.abs(found - signs).max() <= (1.0 if size < 1e-40 else 0.34)
