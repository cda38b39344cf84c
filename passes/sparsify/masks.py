"""The legal keep-mask with the largest scores, for every structure: what all score-based pruning methods share.

A score is a float [N, K], one number a weight, the larger the more it is worth. A block's score is the mean or sum over its
elements (blocks over the edge count the elements inside W). Ties are broken by position, so equal scores give equal masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sparsec.formats import NM, Block, FanIn, Structure, Unstructured, expand_block_mask

__all__ = ["Mask", "Reduce", "Scores", "block_scores", "drop_lowest", "mask_of_scores", "masks_of_scores", "zeros"]

Mask = NDArray[np.bool_]
Scores = NDArray[np.floating]
Reduce = Literal["mean", "sum"]


def masks_of_scores(
    scores: Sequence[Scores], structures: Sequence[Structure], *, joint: bool = False, reduce: Reduce = "mean"
) -> list[Mask | None]:
    """Keep-masks bool [N, K] of scores [N, K]; None where the structure is dense.

    joint: weights of one structure compete with each other (their scores must be comparable) instead of each within itself;
    structures that fix the number of zeros per group or row (N:M, constant fan-in) are decided within each weight in any case.
    At least one block of a weight is kept.
    """
    masks: list[Mask | None] = [None] * len(scores)
    together: dict[Structure, list[int]] = {}
    for index, (score, structure) in enumerate(zip(scores, structures, strict=True)):
        if structure.is_dense:
            continue
        if joint and isinstance(structure, Unstructured | Block):
            together.setdefault(structure, []).append(index)
        else:
            masks[index] = mask_of_scores(score, structure, reduce=reduce)
    for structure, members in together.items():
        for index, mask in zip(members, _joint([scores[i] for i in members], structure, reduce), strict=True):
            masks[index] = mask
    return masks


def mask_of_scores(score: Scores, structure: Structure, *, by_row: bool = False, reduce: Reduce = "mean") -> Mask:
    """The keep-mask bool [N, K] of one weight for a sparse structure.

    by_row: every row (strip of R rows) keeps as many blocks as the next, instead of all competing; the remainder, less than one
    block a row, goes where the scores are largest, so that the number of zeros is the same.
    """
    if isinstance(structure, NM):
        return _nm_mask(score, structure)
    if isinstance(structure, FanIn):
        return _row_mask(score, score.shape[1] - structure.kept(score.shape[1]), 0)
    if not by_row:
        return _joint([score], structure, reduce)[0]
    blocks = block_scores(score, structure.block, reduce)
    dropped = zeros(structure, blocks.shape)
    keep = _row_mask(blocks, *divmod(dropped, blocks.shape[0]))
    return expand_block_mask(keep, structure.block, *score.shape)


def zeros(structure: Structure, blocks: tuple[int, int]) -> int:
    """Blocks that a weight of ceil(N/R) x ceil(K/C) blocks loses, at least one stays; for all structures."""
    strips, length = blocks
    if isinstance(structure, NM):
        groups, rest = divmod(length, structure.m)
        return strips * (groups * (structure.m - structure.n) + max(0, rest - structure.n))
    if isinstance(structure, FanIn):
        return strips * (length - structure.kept(length))
    assert isinstance(structure, Unstructured | Block)
    return min(round(strips * length * structure.percent / 100), strips * length - 1)


def drop_lowest(scores: Scores, drop: int) -> Mask:
    """False for the `drop` smallest scores [n], the first of equal ones; by selection, which sorting takes ten times as long as."""
    if not drop:
        return np.ones(scores.size, bool)
    threshold = np.partition(scores, drop - 1)[drop - 1]
    keep: Mask = scores >= threshold
    ties = np.flatnonzero(scores == threshold)
    keep[ties[: drop - np.count_nonzero(~keep)]] = False
    return keep


def block_scores(score: Scores, block: tuple[int, int], reduce: Reduce) -> Scores:
    """Scores of blocks, [ceil(N/R), ceil(K/C)]; blocks over the edge count their own elements only."""
    (r, c), (rows, cols) = block, score.shape
    if block == (1, 1):
        return score
    sums = np.add.reduceat(np.add.reduceat(score, np.arange(0, rows, r), axis=0), np.arange(0, cols, c), axis=1)
    if reduce == "sum":
        return np.asarray(sums)
    height = np.minimum(r, rows - np.arange(0, rows, r))
    width = np.minimum(c, cols - np.arange(0, cols, c))
    return np.asarray(sums / (height[:, None] * width[None, :]))


def _nm_mask(score: Scores, structure: NM) -> Mask:
    """The N largest of every M consecutive inputs; the last group of a row may be shorter."""
    rows, cols = score.shape
    groups = -(-cols // structure.m)
    padded = np.full((rows, groups * structure.m), -np.inf, score.dtype)
    padded[:, :cols] = score
    order = np.argsort(-padded.reshape(rows, groups, structure.m), axis=2, kind="stable")
    mask = np.zeros((rows, groups, structure.m), bool)
    np.put_along_axis(mask, order[:, :, : structure.n], True, axis=2)
    return mask.reshape(rows, -1)[:, :cols].copy()


def _row_mask(score: Scores, drop: int, more: int) -> Mask:
    """Without the `drop` smallest of every row, and without the next one in the `more` rows where it is smallest.

    Of equal scores in a row the first stay, as in `_nm_mask`.
    """
    rows, cols = score.shape
    order = np.argsort(-score, axis=1, kind="stable")
    mask = np.zeros(score.shape, bool)
    np.put_along_axis(mask, order[:, : cols - drop], True, axis=1)
    if more:
        last = order[:, cols - drop - 1]
        chosen = np.flatnonzero(~drop_lowest(score[np.arange(rows), last], more))
        mask[chosen, last[chosen]] = False
    return mask


def _joint(scores: Sequence[Scores], structure: Structure, reduce: Reduce) -> list[Mask]:
    assert isinstance(structure, Unstructured | Block)
    parts = [block_scores(score, structure.block, reduce) for score in scores]
    flat = np.concatenate([part.reshape(-1) for part in parts])
    keep = drop_lowest(flat, round(flat.size * structure.percent / 100))
    masks, start = [], 0
    for score, part in zip(scores, parts, strict=True):
        kept = keep[start : start + part.size].reshape(part.shape)
        start += part.size
        if not kept.any():
            kept = part == part.max()
        masks.append(expand_block_mask(kept, structure.block, *score.shape))
    return masks
