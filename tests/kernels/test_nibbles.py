"""Codes in half bytes: what is read out of the planes, by the table of each quad, is what was put in."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest

from sparsec.codegen.kernels import byte_weights, nibbles


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("count", range(1, 18))
def test_codes_come_back(bits: int, count: int) -> None:
    """Of `count` quads, read eight at a time as kernels do."""
    codes = np.random.default_rng().integers(0, 1 << bits, (3, 8, 4 * count), np.uint8)  # blocks, rows, inputs
    widths = [width for width, _ in byte_weights.planes(bits)]
    arrays = byte_weights.code_arrays(codes, bits, 8, tables=True)
    planes = [array.reshape(3, ceil(count * width / 8), 8, 4) for (_, array), width in zip(arrays, widths, strict=True)]
    for quad in range(count):
        step = [plane[:, quad // 8 * width :] for plane, width in zip(planes, widths, strict=True)]
        table, number, half = nibbles.place(bits, quad % 8)
        if bits != 3:
            byte = step[0][:, number]
        elif number < len(nibbles.BYTES):
            plane, at = nibbles.BYTES[number]
            byte = step[plane][:, at]
        else:
            byte = np.zeros_like(step[0][:, 0])
            for (plane, at), mask in zip(nibbles.BYTES, nibbles.REST, strict=True):
                byte |= step[plane][:, at] & mask
        found = nibbles.meanings(bits)[table, byte >> (4 * half) & 15]
        np.testing.assert_array_equal(found, codes[:, :, 4 * quad : 4 * quad + 4])


def test_nothing_stored() -> None:
    planes = nibbles.three_bit_planes(np.zeros((0, 8, 2, 8, 4), np.uint8))
    assert [plane.shape for plane in planes] == [(0, 2, 2, 8, 4), (0, 1, 2, 8, 4)]


def test_every_code_has_a_value() -> None:
    for bits in (1, 2, 3, 4):
        found = nibbles.meanings(bits)
        assert found.shape == (nibbles.table_count(bits), 16)
        assert all(set(row) == set(range(1 << bits)) for row in found.tolist())
