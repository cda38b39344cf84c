"""Nearest representable values, new codes and new side arrays of encoded weights, against a search over all codes."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.errors import WeightError
from sparsec.formats import Grid, Scheme, codes_of, decode, encode, recode, with_codes, with_side
from tests.formats.cases import legal_schemes, random_mask

SCALAR = [s for s in legal_schemes() if s.codec.dim == 1]
VECTOR = [s for s in legal_schemes() if s.codec.dim > 1]


def arrays(encoded: object) -> list[bytes]:
    return [a.tobytes() for a in encoded.arrays().values()]  # type: ignore[attr-defined]


@pytest.mark.parametrize("scheme", SCALAR, ids=str)
def test_own_values_come_back(scheme: Scheme) -> None:
    rng = np.random.default_rng()
    for rows, cols in ((1, 1), (5, 23)):
        weight = rng.standard_t(4, (rows, cols)).astype(np.float32)
        encoded = encode(weight, scheme, random_mask(scheme, rows, cols, rng))
        values = decode(encoded)
        grid = Grid.of(encoded)
        # not bit by bit: two entries of a table may lie a rounding error apart
        np.testing.assert_allclose(grid.round(values), values, rtol=1e-6)
        np.testing.assert_allclose(decode(recode(encoded, values)), values, rtol=1e-6)
        some = rng.permutation(cols)[: cols // 2 + 1]
        np.testing.assert_allclose(grid.round(values[:, some], some), values[:, some], rtol=1e-6)
        assert arrays(with_codes(encoded, codes_of(encoded))) == arrays(encoded)


@pytest.mark.parametrize("scheme", [s for s in SCALAR if 0 < s.codec.code_bits <= 4], ids=str)
def test_nearest_of_all_codes(scheme: Scheme) -> None:
    rng = np.random.default_rng()
    encoded = encode(rng.standard_normal((7, 20)).astype(np.float32), scheme, random_mask(scheme, 7, 20, rng))
    wanted = rng.standard_t(3, (7, 20)).astype(np.float32) * 2
    every = np.stack(
        [decode(with_codes(encoded, np.full((7, 20), code, np.uint8))) for code in range(scheme.codec.top_code + 1)]
    )
    best = np.abs(every - wanted).min(0)
    for found in (Grid.of(encoded).round(wanted), decode(recode(encoded, wanted))):
        np.testing.assert_allclose(np.abs(found - wanted), best, rtol=1e-5, atol=1e-6)
        assert not found[~Grid.of(encoded).kept].any()


@pytest.mark.parametrize("scheme", [s for s in SCALAR if 0 < s.codec.code_bits <= 4], ids=str)
def test_two_nearest_of_all_codes(scheme: Scheme) -> None:
    """The nearest value, and the nearest beyond the wanted one (the next inwards at the ends); of some rows as of all."""
    rng = np.random.default_rng()
    encoded = encode(rng.standard_normal((7, 20)).astype(np.float32), scheme, random_mask(scheme, 7, 20, rng))
    every = np.stack(
        [decode(with_codes(encoded, np.full((7, 20), code, np.uint8))) for code in range(scheme.codec.top_code + 1)]
    )
    grid = Grid.of(encoded)
    for index in (0, 7, 19):
        wanted = rng.standard_t(3, (3, 7)).astype(np.float32) * 2
        near, other = grid.two_nearest(wanted, index)
        np.testing.assert_array_equal(near, grid.round_inputs(wanted, slice(index, index + 1)))
        for k, row in np.ndindex(wanted.shape):
            levels = np.unique(every[:, row, index])
            place = int(np.abs(levels - near[k, row]).argmin())
            step = 1 if wanted[k, row] >= near[k, row] else -1
            beside = place + step if 0 <= place + step < len(levels) else place - step
            expected = levels[beside] if 0 <= beside < len(levels) else levels[place]
            np.testing.assert_allclose(other[k, row], expected, rtol=1e-5, atol=1e-6)
        for part in (slice(0, 1), slice(2, 6)):
            again = grid.of_rows(part).two_nearest(np.ascontiguousarray(wanted[:, part]), index)
            np.testing.assert_array_equal(again, (near[:, part], other[:, part]))


@pytest.mark.parametrize("scheme", VECTOR, ids=str)
def test_codes_of_vectors(scheme: Scheme) -> None:
    rng = np.random.default_rng()
    encoded = encode(rng.standard_normal((11, 29)).astype(np.float32), scheme, random_mask(scheme, 11, 29, rng))
    assert codes_of(encoded).shape == (11, -(-29 // scheme.codec.dim))
    assert arrays(with_codes(encoded, codes_of(encoded))) == arrays(encoded)
    with pytest.raises(WeightError, match="scalar"):
        Grid.of(encoded)


def test_extreme_scales_and_unsorted_tables() -> None:
    rng = np.random.default_rng()
    weight = rng.standard_normal((6, 16)).astype(np.float32)
    weight[0], weight[1] = 0, 1e-40
    encoded = encode(weight, Scheme.parse("int4-c"))
    found = Grid.of(encoded).round(np.full((6, 16), 3e38, np.float32))
    assert np.isfinite(found).all()
    assert not found[0].any()
    book = encode(weight, Scheme.parse("cb3-c"))
    shuffled = with_side(book, codebook=book.codebook[:, ::-1])  # type: ignore[index]
    wanted = rng.standard_normal((6, 16)).astype(np.float32)
    np.testing.assert_array_equal(Grid.of(shuffled).round(wanted), Grid.of(book).round(wanted))
    np.testing.assert_array_equal(decode(recode(shuffled, wanted)), decode(recode(book, wanted)))


def test_side_arrays_are_checked() -> None:
    encoded = encode(np.random.default_rng().standard_normal((4, 16)).astype(np.float32), Scheme.parse("uint4-g8"))
    doubled = with_side(encoded, scales=encoded.scales.astype(np.float64) * 2)  # type: ignore[union-attr]
    np.testing.assert_array_equal(decode(doubled), decode(encoded) * 2)
    shifted = with_side(encoded, zero_points=np.zeros((4, 2)))
    assert decode(shifted).min() >= min(0.0, float(encoded.scales.min() * 15))  # type: ignore[union-attr]
    for wrong in (
        {"scales": np.ones((4, 3))},
        {"scales": np.full((4, 2), 1e6)},
        {"zero_points": np.full((4, 2), 16)},
        {"codebook": np.ones((1, 16))},
        {"scales": np.full((4, 2), np.nan)},
    ):
        with pytest.raises(WeightError):
            with_side(encoded, **wrong)
    with pytest.raises(WeightError, match="codes"):
        with_codes(encoded, np.full((4, 16), 16))
    ternary = encode(np.ones((2, 4), np.float32), Scheme.parse("ternary"))
    with pytest.raises(WeightError, match="ternary"):
        with_codes(ternary, np.full((2, 4), 3))
    with pytest.raises(WeightError, match="finite"):
        recode(encoded, np.full((4, 16), np.nan, np.float32))
