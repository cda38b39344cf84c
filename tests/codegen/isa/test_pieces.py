"""Vectors that cover a number of elements exactly."""

from __future__ import annotations

import pytest

from sparsec.codegen.isa.pieces import pieces


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_every_element_once(lanes: int) -> None:
    for count in range(3 * lanes):
        found = pieces(count, lanes)
        assert [at + i for at, width in found for i in range(width)] == list(range(count))
        assert all(width <= lanes and width & (width - 1) == 0 for _, width in found)
    assert pieces(0, lanes) == pieces(-3, lanes) == []
