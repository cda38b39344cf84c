"""Masks of scores are legal, keep what scores most, and lose exactly what the structure says."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.formats import DENSE, block_mask_of
from sparsec.passes.sparsify.masks import block_scores, drop_lowest, mask_of_scores, masks_of_scores, zeros
from tests.passes.sparsify.problems import SIZES, STRUCTURES, check, structure_of


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("scheme", STRUCTURES)
@pytest.mark.parametrize("size", SIZES)
def test_legal_and_exact(size: tuple[int, int], scheme: str, by_row: bool) -> None:
    score = np.random.default_rng(size).normal(size=size)
    structure = structure_of(scheme)
    mask = mask_of_scores(score, structure, by_row=by_row)
    check(mask, structure, size)
    assert np.array_equal(mask, mask_of_scores(score.copy(), structure, by_row=by_row))


@pytest.mark.parametrize("scheme", STRUCTURES)
def test_equal_scores(scheme: str) -> None:
    for by_row in (False, True):
        check(mask_of_scores(np.zeros((35, 51)), structure_of(scheme), by_row=by_row), structure_of(scheme), (35, 51))


@pytest.mark.parametrize("scheme", ["s50", "s70", "s16x1@50", "s3x2@60"])
def test_by_row_every_strip_loses_as_many(scheme: str) -> None:
    structure = structure_of(scheme)
    score = np.random.default_rng(0).normal(size=(37, 29)) * np.arange(1, 38)[:, None]
    kept = block_mask_of(mask_of_scores(score, structure, by_row=True), structure.block)
    counts = kept.sum(1)
    assert counts.max() - counts.min() <= 1
    scores = block_scores(score, structure.block, "mean")
    for row, keep in zip(scores, kept, strict=True):
        assert row[keep].min() >= row[~keep].max()


def test_sums_and_means_differ_on_the_edge() -> None:
    score = np.array([[1.0, 1.0, 1.5]])
    structure = structure_of("s1x2@50")
    assert mask_of_scores(score, structure).tolist() == [[False, False, True]]
    assert mask_of_scores(score, structure, reduce="sum").tolist() == [[True, True, False]]


def test_joint_masks_compete_and_fixed_ones_do_not() -> None:
    low, high = np.random.default_rng(1).random((2, 20, 24))
    texts = ["s50", "s50", "s2:4", "sf50"]
    masks = masks_of_scores([low, high + 1, low, high + 1], [*map(structure_of, texts)], joint=True)
    assert [float(mask.mean()) for mask in masks if mask is not None][1:] == [1.0, 0.5, 0.5]
    assert masks[0] is not None
    assert masks[0].sum() == 1  # a weight keeps at least one block
    assert masks_of_scores([low], [DENSE]) == [None]
    apart = masks_of_scores([low, high + 1], [structure_of("s50")] * 2)
    assert [float(mask.mean()) for mask in apart if mask is not None] == [0.5, 0.5]


def test_drop_lowest_drops_the_first_of_equal_scores() -> None:
    scores = np.random.default_rng(2).integers(0, 4, 50).astype(float)
    for drop in (0, 1, 25, 49, 50):
        dropped = np.argsort(scores, kind="stable")[:drop]
        assert np.array_equal(np.flatnonzero(~drop_lowest(scores, drop)), np.sort(dropped))


def test_zeros_counts_short_groups_and_keeps_one() -> None:
    assert zeros(structure_of("s2:4"), (3, 11)) == 3 * (2 + 2 + 1)
    assert zeros(structure_of("s99"), (1, 7)) == 6
    assert zeros(structure_of("sf99"), (2, 7)) == 12
