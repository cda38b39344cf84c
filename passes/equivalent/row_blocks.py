"""An order of rows for weights whose blocks span several outputs, scored by what each value adds to the outputs' power."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sparsec.formats import Structure
from sparsec.passes.sparsify.masks import block_scores, zeros
from sparsec.passes.sparsify.order_rows import block_order, lost

__all__ = ["order_for_blocks"]

Order = NDArray[np.intp]


def order_for_blocks(
    matrices: Sequence[NDArray[np.float32]],
    power: Sequence[NDArray[np.float64]],
    structures: Sequence[Structure],
    size: int,
) -> tuple[Order, float, float]:
    """(order, share of the outputs' power that goes as given, with it) of weights [N, K] that get one order; the mean of their shares.

    power: E[x^2] of the inputs of each, float64 [K]. structures: with blocks of `size` rows and the share of zeros that pruning aims for.
    """
    scores, gone = [], []
    for matrix, each, structure in zip(matrices, power, structures, strict=True):
        score = np.square(matrix, dtype=np.float64) * each
        score /= max(float(score.sum()), np.finfo(np.float64).tiny) * len(matrices)
        scores.append(np.asarray(block_scores(score, (1, structure.block[1]), "sum")))
        gone.append(zeros(structure, (-(-len(matrix) // size), scores[-1].shape[1])))
    order = block_order(scores, gone, size)
    return order, lost(scores, gone, size), lost([score[order] for score in scores], gone, size)
