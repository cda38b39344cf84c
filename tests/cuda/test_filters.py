"""Weights of convolutions in other orders: what is stored stays the same, elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec.codegen.cuda.filters import by_tap, in_panels
from sparsec.codegen.cuda.strips import dense_codes
from sparsec.formats import Scheme
from sparsec.formats.encoded import Unpacked, encode, unpack

Array = np.ndarray[Any, Any]
TAPS = 9


def weight_of(scheme: str, n: int, k: int, rng: np.random.Generator) -> Unpacked:
    """Half of the blocks of structures are stored, two of every four inputs of 2:4."""
    parsed = Scheme.parse(scheme)
    mask = None
    if not parsed.is_dense:
        r, c = parsed.block
        mask = np.repeat(np.repeat(rng.random((-(-n // r), -(-k // c))) < 0.5, r, 0)[:n], c, 1)[:, :k]
        if ":" in scheme:
            mask = (rng.random((n, k // 4, 4)).argsort(axis=2) < 2).reshape(n, k)
    return unpack(encode(rng.normal(size=(n, k)).astype(np.float32), parsed, mask))


def stored(weight: Unpacked) -> tuple[Array, Array]:
    """(mask, codes) of all inputs [N, K / dim], codes 0 where nothing is stored."""
    codes = dense_codes(weight)[: weight.rows]
    r, c = weight.scheme.block
    mask = np.repeat(weight.block_mask, r, 0)[: weight.rows]
    return np.repeat(mask, max(c // weight.scheme.codec.dim, 1), 1)[:, : codes.shape[1]], codes


def turned(array: Array, channels: int, padded: int) -> Array:
    made = np.zeros((len(array), TAPS, padded), array.dtype)
    made[:, :, :channels] = array.reshape(len(array), channels, TAPS).transpose(0, 2, 1)
    return made.reshape(len(array), -1)


@pytest.mark.parametrize(("channels", "padded"), [(5, 8), (16, 16)])
@pytest.mark.parametrize("scheme", ["int8", "cb4", "s70-cb4", "s4x3@50-uint4", "s16x1@50"])
def test_by_tap(scheme: str, channels: int, padded: int, rng: np.random.Generator) -> None:
    weight = weight_of(scheme, 21, channels * TAPS, rng)
    found = by_tap(weight, TAPS, 8)
    assert isinstance(found, Unpacked)
    (mask, codes), (after, moved) = stored(weight), stored(found)
    assert found.cols == TAPS * padded
    np.testing.assert_array_equal(
        moved, turned(codes * mask, channels, padded) if not weight.scheme.is_dense else moved
    )
    if weight.scheme.is_dense:  # what is padded has a code too
        np.testing.assert_array_equal(moved, turned(codes, channels, padded))
    else:
        np.testing.assert_array_equal(after, turned(mask, channels, padded))
    plain = rng.normal(size=(3, channels * TAPS)).astype(np.float32)
    np.testing.assert_array_equal(by_tap(plain, TAPS, 8), turned(plain, channels, padded))


@pytest.mark.parametrize("scheme", ["int4-g12", "vq2d4", "s2:4", "s2x4@50-vq2d4", "s70-int4-g8", "cb4.i16"])
def test_what_keeps_the_order_of_its_inputs(scheme: str, rng: np.random.Generator) -> None:
    assert by_tap(weight_of(scheme, 8, 4 * TAPS, rng), TAPS, 8) is None


@pytest.mark.parametrize(
    "scheme", ["int8", "uint4-g12", "vq2d4", "s2:4-cb4", "s4x1@50-int4-g8", "s2x4@50-vq2d4", "s70"]
)
def test_in_panels(scheme: str, rng: np.random.Generator) -> None:
    """Three groups of 7 outputs in panels of 16: the last output of a group is repeated."""
    weight = weight_of(scheme, 21, 36, rng)
    found = in_panels(weight, 3, 16)
    assert isinstance(found, Unpacked)
    rows = np.concatenate([7 * g + np.minimum(np.arange(16), 6) for g in range(3)])
    assert found.rows == 48
    for before, after in zip(stored(weight), stored(found), strict=True):
        np.testing.assert_array_equal(after, before[rows])
    for name in ("scales", "zero_points"):
        before = getattr(weight, name)
        if before is not None:
            np.testing.assert_array_equal(getattr(found, name), before[rows])
    assert in_panels(weight, 3, 7) is weight


def test_codebooks_of_filters_cannot_be_padded(rng: np.random.Generator) -> None:
    why = in_panels(weight_of("cb4.r7", 21, 36, rng), 3, 16)
    assert why == "groups of 7 filters end within a panel of 16, and codebooks of 'cb4.r7' go by filters"
