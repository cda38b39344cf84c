"""How many zeros each layer gets when all together must have a share of them.

LAMP: Lee, Park, Mo, Ahn and Shin, "Layer-adaptive Sparsity for the Magnitude-based Pruning" (2021). ERK (Erdos-Renyi-Kernel):
Evci, Gale, Menick, Castro and Elsen, "Rigging the Lottery: Making All Tickets Winners" (2020).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.errors import SchemeError
from sparsec.formats import Block, Structure, Unstructured, block_mask_of
from sparsec.passes.sparsify.masks import Scores, block_scores, drop_lowest, masks_of_scores

__all__ = ["by_output", "erk", "joint", "lamp", "lamp_scores"]

_SPARED = 15.0
"""Percent of the blocks of every weight that stay, and that go, in `by_output`: what is left cannot make up for any number of zeros."""


def lamp_scores(weight: ArrayLike, block: tuple[int, int] = (1, 1)) -> NDArray[np.float64]:
    """Scores of blocks, float64 [ceil(N/R), ceil(K/C)]: a block's sum of squares over that of all that are not smaller.

    The score is comparable between layers: it bounds the relative change of the layer when the block is pruned after all smaller
    ones. The largest block has score 1 (0 if all are zero); of equal blocks the last counts as the largest.
    """
    squares = np.asarray(block_scores(np.square(np.asarray(weight, np.float64)), block, "sum"))
    flat = squares.reshape(-1)
    order = np.argsort(flat, kind="stable")
    surviving = np.cumsum(flat[order][::-1])[::-1]
    scores = np.zeros_like(flat)
    np.divide(flat[order], surviving, out=surviving, where=surviving > 0)
    scores[order] = surviving
    return np.asarray(scores.reshape(squares.shape), np.float64)


def lamp(weights: Sequence[ArrayLike], percent: float, *, block: tuple[int, int] = (1, 1)) -> list[float]:
    """Percent of zero blocks of each weight [N, K] so that `percent` of all blocks are zero, those with the lowest LAMP scores.

    Every weight keeps at least one block; where that needs more blocks than there are to keep, fewer are zero.
    """
    _check(percent)
    scores = [lamp_scores(weight, block).reshape(-1) for weight in weights]
    if not scores:
        return []
    flat = np.concatenate(scores)
    keep = drop_lowest(flat, round(flat.size * percent / 100))
    parts = np.split(keep, np.cumsum([score.size for score in scores])[:-1])
    return [100 * min(int(np.count_nonzero(~part)), part.size - 1) / part.size for part in parts]


def erk(shapes: Sequence[Sequence[int]], percent: float) -> list[float]:
    """Percent of zeros of each weight so that `percent` of all are zero, densities in proportion to sum(shape) / prod(shape).

    shapes: (outputs, inputs) of a linear layer, (outputs, inputs, height, width ...) of a convolution. Layers whose density would
    exceed 1 stay dense, and the others share what is left to keep.
    """
    _check(percent)
    sizes = [math.prod(shape) for shape in shapes]
    kept = sum(sizes) * (1 - percent / 100)
    dense: set[int] = set()
    while True:
        rest = [i for i in range(len(shapes)) if i not in dense]
        # A layer's share of what is kept is sum(shape): its density times its size.
        scale = (kept - sum(sizes[i] for i in dense)) / max(1, sum(sum(shapes[i]) for i in rest))
        full = {i for i in rest if scale * sum(shapes[i]) >= sizes[i]}
        if not full:
            return [0.0 if i in dense else 100 * (1 - scale * sum(shapes[i]) / sizes[i]) for i in range(len(shapes))]
        dense |= full


def joint(scores: Sequence[Scores], structure: Structure) -> list[float]:
    """Percent of zero blocks of each weight where blocks of all weights compete, each weight's scores [N, K] divided by their mean.

    structure: unstructured or blocks. Every weight keeps at least one block.
    """
    relative = [
        np.asarray(score, np.float64) / max(float(np.mean(score)), np.finfo(np.float64).tiny) for score in scores
    ]
    masks = masks_of_scores(relative, [structure] * len(scores), joint=True)
    return [100 * float(np.mean(~block_mask_of(mask, structure.block))) for mask in masks if mask is not None]


def by_output(scores: Sequence[Scores], structure: Unstructured | Block) -> list[float]:
    """Percent of zero blocks of each weight so that the shares of their outputs' power that go add up to the least.

    scores: squared weights times E[x^2], float64 [N, K]: what of a weight's output power each one carries (without correlations).
    Costs are convex in the number of zeros, so that taking the cheapest block anywhere, one after the other, is best; between 15
    and 85 percent of each weight's blocks go, less or more only if the structure says so for all.
    """
    if not scores:
        return []
    least, most = min(_SPARED, structure.percent), max(100 - _SPARED, structure.percent)
    flat = []
    for score in scores:
        blocks = np.asarray(block_scores(np.asarray(score, np.float64), structure.block, "sum")).reshape(-1)
        relative = blocks / max(float(blocks.sum()), np.finfo(np.float64).tiny)
        order = np.argsort(relative, kind="stable")
        relative[order[: round(blocks.size * least / 100)]] = -1.0
        relative[order[round(blocks.size * most / 100) :]] = np.inf
        flat.append(relative)
    together = np.concatenate(flat)
    keep = drop_lowest(together, round(together.size * structure.percent / 100))
    parts = np.split(keep, np.cumsum([part.size for part in flat])[:-1])
    return [100 * float(np.mean(~part)) for part in parts]


def _check(percent: float) -> None:
    if not 0 <= percent < 100:
        raise SchemeError(f"{percent:g} percent zeros is out of range; 0 to below 100 is allowed")
