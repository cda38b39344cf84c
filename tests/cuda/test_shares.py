"""Equal shares of stored work: every step once and in order, shares that differ by one step at most, when they are worth it."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.codegen.cuda import shares

Pieces = list[dict[str, int]]


def pieces_of(table: np.ndarray, blocks: int) -> list[Pieces]:
    """The pieces of each block, as the kernel finds them."""
    rows = [dict(zip(shares.FIELDS, map(int, row), strict=True)) for row in table]
    return [[rows[b] if i == 0 else rows[rows[b]["rest"] + i] for i in range(rows[b]["count"])] for b in range(blocks)]


def check(stored: np.ndarray, blocks: int) -> None:
    found = pieces_of(shares.cut(stored, blocks), blocks)
    loads = [sum(piece["last"] - piece["first"] for piece in pieces) for pieces in found]
    assert sum(loads) == stored.sum()
    assert max(loads) - min(loads) <= 1
    places = []
    for panel, steps in enumerate(stored):
        mine = [piece for pieces in found for piece in pieces if piece["panel"] == panel]
        assert [piece["first"] for piece in mine] == [0, *(piece["last"] for piece in mine[:-1])]
        assert mine[-1]["last"] == steps
        assert {piece["parts"] for piece in mine} == {len(mine)}
        if len(mine) > 1:
            first = mine[0]["place"]
            assert {piece["first_place"] for piece in mine} == {first}
            assert [piece["place"] - first for piece in mine] == list(range(len(mine)))
            assert all(piece["first"] < piece["last"] for piece in mine)
            places += [piece["place"] for piece in mine]
    assert len(set(places)) == len(places)
    assert max(places, default=0) < shares.places(blocks)


@pytest.mark.parametrize("panels", [1, 2, 13, 40])
@pytest.mark.parametrize("blocks", [1, 2, 7, 64])
def test_every_step_has_one_block(panels: int, blocks: int, rng: np.random.Generator) -> None:
    check(rng.integers(0, 30, panels) * (rng.random(panels) < 0.7), blocks)
    check(np.full(panels, 5), blocks)
    check(np.zeros(panels, np.int64), blocks)
    one = np.zeros(panels, np.int64)
    one[rng.integers(panels)] = 101
    check(one, blocks)


def test_panels_without_steps_go_round() -> None:
    stored = np.zeros(20, np.int64)
    stored[3] = 8
    counts = [len(pieces) for pieces in pieces_of(shares.cut(stored, 4), 4)]
    assert max(counts) - min(counts) <= 1


def test_when_shares_are_worth_it() -> None:
    def gains(stored: list[int], step_bytes: float = 2048.0, alone: float = 1.0) -> bool:
        return shares.gains(np.array(stored), step_bytes, alone, 132, 264)

    assert not gains([64] * 1320)  # enough even panels
    assert not gains([6] * 24)  # so little work that joining costs more
    assert gains([400] * 24)  # few long panels
    assert gains([10] * 1319 + [2000])  # one that is stored whole
    assert gains([120] * 24)
    assert not gains([8] * 24)
    assert gains([70] * 24)
    assert not gains([70] * 100, alone=2.0)  # half of the multiprocessors read as fast as all


def test_the_busiest_multiprocessor() -> None:
    assert shares.busiest_of(np.array([5, 4, 3, 2, 1]), 2) == 8
    assert shares.busiest_of(np.array([7]), 132) == 7
