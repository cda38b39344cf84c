"""Magnitude pruning (Han et al., "Learning both Weights and Connections", 2015): keep what is largest.

A block's score is the mean of its squares. Ties are broken by position, so the same weights always give the same mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sparsec.formats import NM, Block, FanIn, Structure, Unstructured, expand_block_mask

__all__ = ["magnitude_masks"]

Matrix = NDArray[np.float32]
Mask = NDArray[np.bool_]


def magnitude_masks(weights: Sequence[Matrix], structures: Sequence[Structure], *, joint: bool) -> list[Mask | None]:
    """Keep-masks bool [N, K] of weights [N, K]; None where the structure is dense.

    joint: compare blocks across all weights (each divided by its root mean square) instead of within each; structures that fix
    the number of zeros per group or row (N:M, constant fan-in) are decided within each weight in any case. At least one block
    of a weight is kept.
    """
    masks: list[Mask | None] = [None] * len(weights)
    together: dict[Structure, list[int]] = {}
    for index, (weight, structure) in enumerate(zip(weights, structures, strict=True)):
        if structure.is_dense:
            continue
        if isinstance(structure, NM):
            masks[index] = _nm_mask(weight, structure)
        elif isinstance(structure, FanIn):
            masks[index] = _fan_in_mask(weight, structure)
        elif joint:
            together.setdefault(structure, []).append(index)
        else:
            masks[index] = _masks([weight], structure, normalise=False)[0]
    for structure, members in together.items():
        for index, mask in zip(members, _masks([weights[i] for i in members], structure, normalise=True), strict=True):
            masks[index] = mask
    return masks


def _nm_mask(weight: Matrix, structure: NM) -> Mask:
    """The N largest of every M consecutive inputs; the last group of a row may be shorter."""
    rows, cols = weight.shape
    groups = -(-cols // structure.m)
    score = np.full((rows, groups * structure.m), -1.0)
    score[:, :cols] = np.abs(weight)
    order = np.argsort(-score.reshape(rows, groups, structure.m), axis=2, kind="stable")
    mask = np.zeros((rows, groups, structure.m), bool)
    np.put_along_axis(mask, order[:, :, : structure.n], True, axis=2)
    return mask.reshape(rows, -1)[:, :cols].copy()


def _fan_in_mask(weight: Matrix, structure: FanIn) -> Mask:
    """The largest of every row, as many in each."""
    order = np.argsort(-np.abs(weight), axis=1, kind="stable")[:, : structure.kept(weight.shape[1])]
    mask = np.zeros(weight.shape, bool)
    np.put_along_axis(mask, order, True, axis=1)
    return mask


def _masks(weights: Sequence[Matrix], structure: Structure, *, normalise: bool) -> list[Mask]:
    assert isinstance(structure, Unstructured | Block)
    scores = [_block_scores(weight, structure.block, normalise) for weight in weights]
    flat = np.concatenate([score.reshape(-1) for score in scores])
    drop = round(flat.size * structure.percent / 100)
    keep = _above(flat, drop)
    masks, start = [], 0
    for weight, score in zip(weights, scores, strict=True):
        part = keep[start : start + score.size].reshape(score.shape)
        start += score.size
        if not part.any():
            part = score == score.max()
        masks.append(expand_block_mask(part, structure.block, *weight.shape))
    return masks


def _above(scores: NDArray[np.float64], drop: int) -> Mask:
    """False for the `drop` smallest scores [n], the first of equal ones; by selection, which sorting takes ten times as long as."""
    if not drop:
        return np.ones(scores.size, bool)
    threshold = np.partition(scores, drop - 1)[drop - 1]
    keep: Mask = scores >= threshold
    ties = np.flatnonzero(scores == threshold)
    keep[ties[: drop - np.count_nonzero(~keep)]] = False
    return keep


def _block_scores(weight: Matrix, block: tuple[int, int], normalise: bool) -> NDArray[np.float64]:
    """Mean square of each block, float64 [ceil(N/R), ceil(K/C)]; edge blocks count their own elements only."""
    (r, c), (rows, cols) = block, weight.shape
    square = np.square(weight.astype(np.float64))
    if normalise:
        square /= max(float(square.mean()), np.finfo(np.float64).tiny)
    sums = np.add.reduceat(np.add.reduceat(square, np.arange(0, rows, r), axis=0), np.arange(0, cols, c), axis=1)
    height = np.minimum(r, rows - np.arange(0, rows, r))
    width = np.minimum(c, cols - np.arange(0, cols, c))
    return np.asarray(sums / (height[:, None] * width[None, :]))
