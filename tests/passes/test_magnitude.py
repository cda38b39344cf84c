"""Magnitude pruning keeps what is largest, for every structure."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.formats import Scheme, Unstructured, block_mask_of
from sparsec.passes.sparsify.magnitude import magnitude_masks


@pytest.mark.parametrize("scheme", ["s50", "s90", "s16x1@50", "s4x4@75", "s1x16@50"])
@pytest.mark.parametrize("size", [(32, 48), (33, 50), (17, 16)])
def test_kept_blocks_outweigh_dropped_ones(scheme: str, size: tuple[int, int]) -> None:
    weight = np.random.default_rng(size).normal(size=size).astype(np.float32)
    structure = Scheme.parse(scheme).structure
    (mask,) = magnitude_masks([weight], [structure])
    assert mask is not None
    kept = block_mask_of(mask, structure.block)
    r, c = structure.block
    padded = np.zeros((kept.shape[0] * r, kept.shape[1] * c))
    padded[: size[0], : size[1]] = weight.astype(np.float64) ** 2
    counts = np.zeros_like(padded)
    counts[: size[0], : size[1]] = 1
    blocks = lambda a: a.reshape(kept.shape[0], r, kept.shape[1], c).sum((1, 3))  # noqa: E731
    scores = blocks(padded) / blocks(counts)
    assert scores[kept].min() >= scores[~kept].max()
    share = int(scheme.split("@")[-1].removeprefix("s")) / 100
    assert abs((~kept).mean() - share) <= 1 / kept.size + 1e-9


def test_two_of_four() -> None:
    weight = np.random.default_rng(1).normal(size=(5, 22)).astype(np.float32)
    (mask,) = magnitude_masks([weight], [Scheme.parse("s2:4").structure])
    assert mask is not None
    for start in range(0, 20, 4):
        group, kept = np.abs(weight[:, start : start + 4]), mask[:, start : start + 4]
        assert (kept.sum(1) == 2).all()
        assert (np.where(kept, group, np.inf).min(1) >= np.where(kept, -np.inf, group).max(1)).all()


@pytest.mark.parametrize(("percent", "cols", "wanted"), [(90, 50, 5), (75, 22, 6), (99, 7, 1)])
def test_constant_fan_in(percent: int, cols: int, wanted: int) -> None:
    weight = np.random.default_rng(3).normal(size=(5, cols)).astype(np.float32)
    (mask,) = magnitude_masks([weight], [Scheme.parse(f"sf{percent}").structure])
    assert mask is not None
    assert (mask.sum(1) == wanted).all()
    size = np.abs(weight)
    assert (np.where(mask, size, np.inf).min(1) >= np.where(mask, -np.inf, size).max(1)).all()


@pytest.mark.parametrize("values", [1, 3, 1000])
def test_ties_are_broken_by_position(values: int) -> None:
    weight = np.random.default_rng(values).integers(0, values, size=(13, 29)).astype(np.float32)
    for percent in (1, 10, 50, 99):
        (mask,) = magnitude_masks([weight], [Unstructured(percent)])
        assert mask is not None
        dropped = np.argsort(np.abs(weight).reshape(-1), kind="stable")[: round(weight.size * percent / 100)]
        assert np.array_equal(np.flatnonzero(~mask.reshape(-1)), np.sort(dropped))
