"""Layers to prune: inputs with outlier channels and correlations, planted supports, and what a legal mask is."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np

from sparsec.formats import NM, FanIn, Scheme, Structure, block_mask_of
from sparsec.passes import hessian
from sparsec.passes.sparsify.magnitude import magnitude_masks
from sparsec.passes.sparsify.masks import zeros

STRUCTURES = ["s50", "s90", "s2:4", "s1:3", "sf75", "s16x1@50", "s4x4@75", "s1x16@50"]
SIZES = [(1, 1), (1, 7), (13, 1), (17, 23), (33, 50)]


def structure_of(text: str) -> Structure:
    return Scheme.parse(text).structure


def layer(rows: int, cols: int, *, samples: int = 512, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(weight float32 [rows, cols], second moment float32 [cols, cols]) of heavy-tailed weights and correlated inputs, a few of
    which are 20 times larger than the rest and meet smaller weights, as in trained transformers."""
    rng = np.random.default_rng([seed, rows, cols])
    rank = max(1, cols // 4)
    x = rng.normal(size=(samples, rank)) @ rng.normal(size=(rank, cols)) / np.sqrt(rank) + 0.5 * rng.normal(
        size=(samples, cols)
    )
    scale = np.exp(rng.normal(size=cols) * 0.5)
    scale[rng.permutation(cols)[: max(1, cols // 30)]] *= 20
    x *= scale
    weight = rng.standard_t(5, size=(rows, cols)) / np.sqrt(scale)
    return weight.astype(np.float32), (x.T @ x / samples).astype(np.float32)


def planted(structure: Structure, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mask, weight float32 [rows, cols] that is zero off it and far from zero on it, second moment of its inputs)."""
    _, second = layer(rows, cols)
    rng = np.random.default_rng(3)
    (mask,) = magnitude_masks([rng.normal(size=(rows, cols)).astype(np.float32)], [structure])
    assert mask is not None
    return mask, np.where(mask, rng.uniform(0.5, 2, mask.shape), 0).astype(np.float32), second


def check(mask: np.ndarray, structure: Structure, shape: tuple[int, int]) -> None:
    """The mask is legal and its density is what the structure says."""
    assert mask.dtype == bool
    assert mask.shape == shape
    blocks = block_mask_of(mask, structure.block)
    structure.check_mask(blocks, shape[1])
    assert np.count_nonzero(~blocks) == zeros(structure, blocks.shape)


def optimum(weight: np.ndarray, mask: np.ndarray, h: np.ndarray) -> np.ndarray:
    """The best weights on a mask, row by row in float64."""
    result = np.zeros(weight.shape)
    for n, kept in enumerate(mask):
        if kept.any():
            result[n, kept] = np.linalg.solve(h[np.ix_(kept, kept)], h[kept] @ weight[n].astype(np.float64))
    return result


def best_error(weight: np.ndarray, structure: Structure, h: np.ndarray) -> float:
    """The smallest error any legal mask allows, weights refitted, by trying all masks: rows of N:M and constant fan-in, strips."""
    rows, cols = weight.shape
    r, c = structure.block
    total = 0.0
    for start in range(0, rows, r):
        strip = weight[start : start + r]
        best = np.inf
        for blocks in _choices(structure, -(-cols // c)):
            kept = np.repeat(blocks, c)[:cols]
            mask = np.repeat(kept[None], len(strip), 0)
            best = min(best, hessian.error(strip, optimum(strip, mask, h), h))
        total += best
    return total


def _choices(structure: Structure, length: int) -> list[np.ndarray]:
    """All masks [length] of one strip that lose what the structure says."""
    if isinstance(structure, NM):
        groups = [(s, min(length, s + structure.m)) for s in range(0, length, structure.m)]
        parts = [list(combinations(range(a, b), min(structure.n, b - a))) for a, b in groups]
        supports = [sum(chosen, ()) for chosen in product(*parts)]
    else:
        drop = (
            zeros(structure, (1, length)) if isinstance(structure, FanIn) else round(length * structure.percent / 100)
        )  # type: ignore[attr-defined]
        supports = list(combinations(range(length), length - drop))
    masks = np.zeros((len(supports), length), bool)
    for row, support in zip(masks, supports, strict=True):
        row[list(support)] = True
    return list(masks)
