"""Encoding and decoding: every legal scheme on odd sizes, against the element-by-element definition."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.errors import WeightError
from sparsec.formats import EncodedWeight, Scheme, block_mask_of, decode, encode, expand_block_mask, unpack
from tests.formats.cases import SIZES, legal_schemes, random_mask, slow_decode


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


@pytest.mark.parametrize("scheme", legal_schemes(), ids=str)
def test_decode_follows_the_definition(scheme: Scheme, rng: np.random.Generator) -> None:
    for rows, cols in SIZES:
        weight = rng.standard_normal((rows, cols)).astype(np.float32)
        mask = random_mask(scheme, rows, cols, rng)
        encoded = encode(weight, scheme, mask)
        decoded = decode(encoded)
        assert decoded.dtype == np.float32
        np.testing.assert_array_equal(decoded, slow_decode(encoded))
        again = EncodedWeight.from_arrays(scheme, rows, cols, encoded.arrays())
        np.testing.assert_array_equal(decode(again), decoded)
        assert encoded.nbytes == sum(array.nbytes for array in encoded.arrays().values())
        if mask is not None:
            assert not decoded[~mask].any()
            assert encoded.zeros_fraction() == pytest.approx(1 - mask.mean())


@pytest.mark.parametrize("text", ["fp32", "s50", "s2:4", "s3x2@50", "s1x4@70"])
def test_fp32_is_exact(text: str, rng: np.random.Generator) -> None:
    scheme = Scheme.parse(text)
    weight = rng.standard_normal((11, 29)).astype(np.float32)
    mask = random_mask(scheme, 11, 29, rng)
    wanted = weight if mask is None else np.where(mask, weight, np.float32(0))
    np.testing.assert_array_equal(decode(encode(weight, scheme, mask)), wanted)
    np.testing.assert_array_equal(decode(encode(wanted, scheme)), wanted)


@pytest.mark.parametrize("structure", ["", "s50-", "s3x2@50-"])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("scales", ["t", "c", "g6"])
@pytest.mark.parametrize("sign", ["", "u"])
def test_affine_rounds_to_nearest(structure: str, bits: int, scales: str, sign: str, rng: np.random.Generator) -> None:
    scheme = Scheme.parse(f"{structure}{sign}int{bits}-{scales}")
    weight = (rng.standard_normal((11, 30)) + 0.3).astype(np.float32)
    mask = random_mask(scheme, 11, 30, rng)
    encoded = encode(weight, scheme, mask)
    assert encoded.scales is not None
    kept = np.ones(weight.shape, bool) if mask is None else mask
    decoded = decode(encoded)
    # Every value is the level nearest to it: one step up or down is no closer, unless it was clipped.
    spread = encoded.scales.astype(np.float32)
    step = np.abs(spread).max()
    error = np.abs(decoded - weight)[kept]
    inside = np.abs(weight[kept]) < np.abs(decoded[kept]) + step / 2
    assert error[inside].max(initial=0) <= step * 0.51
    assert not kept.any() or np.square(error).mean() < np.square(weight[kept]).mean()


@pytest.mark.parametrize("structure", ["", "s3x2@50-"])
def test_ternary_is_the_least_squares_solution(structure: str, rng: np.random.Generator) -> None:
    weight = rng.standard_normal((7, 13)).astype(np.float32)
    scheme = Scheme.parse(f"{structure}ternary")
    mask = random_mask(scheme, 7, 13, rng)
    decoded = decode(encode(weight, scheme, mask)).astype(np.float64)
    for n in range(7):
        kept = np.ones(13, bool) if mask is None else mask[n]
        row = weight[n, kept].astype(np.float64)
        size = np.sort(np.abs(row))[::-1]
        best = min(
            (np.square(size[:k] - size[:k].mean()).sum() + np.square(size[k:]).sum() for k in range(1, len(row) + 1)),
            default=0.0,
        )
        np.testing.assert_allclose(np.square(row - decoded[n, kept]).sum(), best, rtol=1e-5, atol=1e-12)


def test_codebook_takes_the_nearest_entry(rng: np.random.Generator) -> None:
    weight = rng.standard_normal((12, 40)).astype(np.float32)
    encoded = encode(weight, Scheme.parse("cb3.r4"))
    assert encoded.codebook is not None
    assert encoded.codebook.shape == (3, 8)
    decoded = decode(encoded)
    for n in range(12):
        best = np.abs(weight[n][:, None] - encoded.codebook[n // 4]).min(1)
        np.testing.assert_allclose(np.abs(weight[n] - decoded[n]), best, atol=1e-6)


def test_codebook_of_few_values_is_exact(rng: np.random.Generator) -> None:
    values = rng.standard_normal(8).astype(np.float32)
    weight = values[rng.integers(0, 8, (9, 17))]
    np.testing.assert_array_equal(decode(encode(weight, Scheme.parse("cb3"))), weight)


@pytest.mark.parametrize(
    "text", ["cb4-g8", "int4-g8", "cb4.i8-g8", "ternary-g8", "uint4", "cb8", "nf4-g8", "fp8", "binary-g8", "int3"]
)
@pytest.mark.parametrize("constant", [0.0, 1.0, -0.3])
def test_constant_tensors(text: str, constant: float) -> None:
    weight = np.full((5, 19), constant, np.float32)
    decoded = decode(encode(weight, Scheme.parse(text)))
    np.testing.assert_allclose(decoded, weight, rtol=1e-3)


@pytest.mark.parametrize("scheme", [s for s in legal_schemes() if not s.is_dense], ids=str)
def test_nothing_stored(scheme: Scheme) -> None:
    weight = np.ones((5, 9), np.float32)
    encoded = encode(weight, scheme, np.zeros(weight.shape, bool))
    assert all(plane.size == 0 for plane in encoded.codes)
    assert not decode(encoded).any()
    r, c = scheme.block
    assert unpack(encoded).codes.shape == (0, r, c // scheme.codec.dim)


def test_bits_per_weight_worked_examples() -> None:
    weight = np.random.default_rng().standard_normal((64, 128)).astype(np.float32)
    assert encode(weight, Scheme.parse("fp32")).bits_per_weight() == 32
    assert encode(weight, Scheme.parse("int4-g32")).bits_per_weight() == 4 + 16 / 32
    assert encode(weight, Scheme.parse("uint4-g32")).bits_per_weight() == 4 + (16 + 4) / 32
    assert encode(weight, Scheme.parse("int8")).bits_per_weight() == 8 + 32 / 128
    assert encode(weight, Scheme.parse("cb4")).bits_per_weight() == 4 + 16 * 32 / (64 * 128)
    half = np.zeros((64, 128), bool)
    half[:, ::2] = True
    stored = encode(weight, Scheme.parse("s2:4-int8-t"), half)
    assert stored.bits_per_weight() == 8 / 2 + 1 + 32 / (64 * 128)
    columns = encode(weight, Scheme.parse("s16x1@50-cb4-g32"), half)
    assert columns.bits_per_weight() == 4 / 2 + 1 / 16 + 16 / 32 / 2 + 16 * 32 / (64 * 128)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("scales", ["t", "c", "g4"])
def test_zero_points_are_packed(bits: int, scales: str, rng: np.random.Generator) -> None:
    weight = encode(rng.standard_normal((7, 13)).astype(np.float32) + 0.3, Scheme.parse(f"uint{bits}-{scales}"))
    assert weight.scales is not None
    assert weight.zero_points is not None
    width = 2 if bits == 2 else 4 if bits <= 4 else 8
    stored = weight.arrays()["zero_points"]
    assert stored.shape == (-(-weight.scales.size * width // 8),)
    again = EncodedWeight.from_arrays(weight.scheme, 7, 13, weight.arrays())
    np.testing.assert_array_equal(again.zero_points, weight.zero_points)
    for wrong in (stored[:-1], stored.astype(np.int8)):
        with pytest.raises(WeightError, match="zero_points"):
            EncodedWeight.from_arrays(weight.scheme, 7, 13, weight.arrays() | {"zero_points": wrong})


def test_unpack_gives_blocks_in_stored_order(rng: np.random.Generator) -> None:
    scheme = Scheme.parse("s3x2@50-int8-g4")
    weight = rng.standard_normal((8, 11)).astype(np.float32)
    mask = random_mask(scheme, 8, 11, rng)
    encoded = encode(weight, scheme, mask)
    plain = unpack(encoded)
    assert plain.scales is not None
    rebuilt = np.zeros((9, 12), np.float32)
    stored = 0
    for strip, column in np.argwhere(plain.block_mask):
        rank = int(plain.block_mask[strip, :column].sum())
        for i in range(3):
            n = strip * 3 + i
            if n < 8:
                scale = plain.scales[n, rank * 2 // 4]
                rebuilt[n, column * 2 : column * 2 + 2] = (plain.codes[stored, i].astype(np.float32) - 128) * scale
        stored += 1
    assert stored == len(plain.codes)
    np.testing.assert_array_equal(rebuilt[:8, :11], decode(encoded))


def test_encoding_is_deterministic(rng: np.random.Generator) -> None:
    weight = rng.standard_normal((700, 500)).astype(np.float32)
    for text in ("cb4-g32", "uint4-g32", "ternary", "s50-cb3"):
        first, second = (encode(weight.copy(), Scheme.parse(text)) for _ in range(2))
        for role, array in first.arrays().items():
            assert array.tobytes() == second.arrays()[role].tobytes()


def test_block_masks_expand_and_shrink(rng: np.random.Generator) -> None:
    coarse = rng.random((3, 4)) < 0.5
    fine = expand_block_mask(coarse, (4, 3), 10, 11)
    assert fine.shape == (10, 11)
    np.testing.assert_array_equal(block_mask_of(fine, (4, 3)), coarse)
    fine = fine.copy()
    fine[9, 10] ^= True
    with pytest.raises(WeightError, match=r"element \(9, 10\)"):
        block_mask_of(fine, (4, 3))


def test_constant_fan_in(rng: np.random.Generator) -> None:
    scheme = Scheme.parse("sf75-int8-g4")
    weight = np.where(rng.random((9, 20)) < 0.3, rng.standard_normal((9, 20)), 0).astype(np.float32)
    encoded = encode(weight, scheme)
    kept = encoded.layout().block_mask
    assert kept is not None
    assert set(kept.sum(1).tolist()) == {(weight != 0).sum(1).max()}
    assert kept[weight != 0].all()
    assert not decode(encoded)[weight == 0].any()
    mask = kept.copy()
    mask[4, np.flatnonzero(mask[4])[0]] = False
    with pytest.raises(WeightError, match="row 4 keeps"):
        encode(weight, scheme, mask)


def test_refusals(rng: np.random.Generator) -> None:
    weight = rng.standard_normal((4, 8)).astype(np.float32)
    bad = weight.copy()
    bad[1, 2] = np.nan
    with pytest.raises(WeightError, match=r"'fc1.*' as int8: 1 of 32 values are NaN or Inf.*\(1, 2\)"):
        encode(bad, Scheme.parse("int8"), name="fc1")
    with pytest.raises(WeightError, match="NaN or Inf"):
        encode(np.full((2, 2), 1e300), Scheme.parse("fp32"))
    with pytest.raises(WeightError, match=r"row 0, inputs 0 to 3 keep 4 values; at most 2"):
        encode(weight, Scheme.parse("s2:4"))
    with pytest.raises(WeightError, match="a dense scheme stores every position"):
        encode(weight, Scheme.parse("int8"), weight > 0)
    with pytest.raises(WeightError, match=r"needs bool\[4, 8\]"):
        encode(weight, Scheme.parse("s50"), np.ones((4, 7), bool))
    with pytest.raises(WeightError, match="does not fit fp16"):
        encode(weight * 1e6, Scheme.parse("fp16"))
    with pytest.raises(WeightError, match="use channel scales"):
        encode(weight * 1e6, Scheme.parse("int2-g4"))
    with pytest.raises(WeightError, match="non-empty float matrix"):
        encode(np.zeros((0, 3), np.float32), Scheme.parse("int8"))
    with pytest.raises(WeightError, match="non-empty float matrix"):
        encode(np.zeros((2, 3), np.int8), Scheme.parse("int8"))


def test_damaged_arrays_are_refused(rng: np.random.Generator) -> None:
    encoded = encode(rng.standard_normal((6, 10)).astype(np.float32), Scheme.parse("s50-cb3-g4"))
    for role, array in encoded.arrays().items():
        with pytest.raises(WeightError, match=role.rstrip("0123456789")):
            EncodedWeight.from_arrays(encoded.scheme, 6, 10, encoded.arrays() | {role: array[:-1]})
    with pytest.raises(WeightError, match="needs arrays"):
        EncodedWeight.from_arrays(encoded.scheme, 6, 10, {"codes": encoded.codes[0]})
