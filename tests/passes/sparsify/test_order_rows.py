"""Rows in an order in which blocks lose less: planted blocks come back, nothing is ever worse, tiny problems are solved exactly."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from sparsec.passes.sparsify import order_rows
from sparsec.passes.sparsify.masks import mask_of_scores
from sparsec.passes.sparsify.order_rows import block_order, lost
from tests.passes.sparsify.problems import structure_of

Array = np.ndarray


def planted(blocks: int, size: int, columns: int, rng: np.random.Generator, noise: float = 0.0) -> tuple[Array, Array]:
    """(scores of rows that keep half of the columns block by block, shuffled; the block of each row)."""
    support = np.argsort(rng.random((blocks, columns)), 1) < columns // 2
    block = np.repeat(np.arange(blocks), size)
    while all(
        len(set(part)) == 1 for part in block.reshape(-1, size).tolist()
    ):  # the order that is sought is no problem
        block = rng.permutation(block)
    score = np.where(support[block], rng.uniform(0.5, 1.5, (len(block), columns)), 0)
    return score + noise * rng.random(score.shape), block


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize(("blocks", "size", "columns"), [(3, 2, 16), (8, 4, 24), (6, 16, 40), (13, 3, 31)])
def test_a_planted_support_is_found(blocks: int, size: int, columns: int, noise: float) -> None:
    score, block = planted(blocks, size, columns, np.random.default_rng(), noise)
    gone = [blocks * (columns - columns // 2)]
    order = block_order([score], gone, size)
    assert all(len(set(part)) == 1 for part in block[order].reshape(-1, size).tolist())
    assert noise or lost([score[order]], gone, size) == 0 < lost([score], gone, size)


@pytest.mark.parametrize("most", [0, 4e10])
@pytest.mark.parametrize("rows", [1, 2, 5, 16, 37])
@pytest.mark.parametrize("size", [2, 4, 16])
def test_never_worse(rows: int, size: int, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_rows, "_MOST_WORK", most)
    rng = np.random.default_rng()
    scores = [rng.random((rows, n)) ** 3 for n in (1, 7, 20)]
    gone = [0, -(-rows // size) * 4, -(-rows // size) * 11 + 1]
    given = [score.copy() for score in scores]
    order = block_order(scores, gone, size)
    assert sorted(order.tolist()) == list(range(rows))
    assert np.array_equal(order, block_order(given, gone, size))
    assert lost([score[order] for score in scores], gone, size) <= lost(scores, gone, size)
    blocks = [part.tolist() for part in np.split(order, np.arange(size, rows, size))]
    assert blocks == [sorted(part) for part in blocks]


@pytest.mark.parametrize("gone", [3, 5, 8])
def test_tiny_problems_have_nearly_the_best_order(gone: int) -> None:
    """Three ways to make two blocks of two; the limit moves with a trade, so that it may be judged wrong by a little."""
    best = found = 0.0
    for _ in range(40):
        score = np.random.default_rng().random((4, 5)) ** 2
        least = min(lost([score[list(p)]], [gone], 2) for p in permutations(range(4)))
        ours = lost([score[block_order([score], [gone], 2)]], [gone], 2)
        best, found = best + least, found + ours
    assert found < 1.03 * best


def test_no_trade_lowers_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_rows, "_TRIED", 10**6)
    monkeypatch.setattr(order_rows, "_LEAST", 0.0)
    rng = np.random.default_rng()
    scores, gone = [rng.random((41, 19)) ** 4, rng.random((41, 24)) ** 4], [90, 120]
    order = block_order(scores, gone, 4)
    best = lost([score[order] for score in scores], gone, 4)
    for i in range(41):
        for j in range(i):
            other = order.copy()
            other[[i, j]] = other[[j, i]]
            assert lost([score[other] for score in scores], gone, 4) > best * (1 - 1e-5)


def test_lost_is_what_masks_drop() -> None:
    score = np.random.default_rng().random((24, 10))
    mask = mask_of_scores(score, structure_of("s4x1@60"), reduce="sum")
    assert lost([score], [36], 4) == pytest.approx(score[~mask].sum())
    assert lost([score, score], [36, 0], 4) == pytest.approx(score[~mask].sum())


@pytest.mark.parametrize("gone", [0, 18])
def test_rows_stay_where_no_order_matters(gone: int) -> None:
    score = np.random.default_rng().random((12, 6))
    assert block_order([score], [gone], 4).tolist() == list(range(12))
    assert block_order([np.zeros((12, 6))], [9], 4).tolist() == list(range(12))
    assert block_order([score], [3], 12).tolist() == list(range(12))
