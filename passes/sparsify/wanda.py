"""Wanda (Sun, Liu, Bair, Kolter, "A Simple and Effective Pruning Approach for Large Language Models", 2023): |W| * ||x||.

A weight's score is its magnitude times the norm of its input over the calibration samples. Weights compete within their output
row: rows of unstructured masks and strips of blocks keep equal numbers. The weights that are kept do not change.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.errors import CalibrationError
from sparsec.formats import Structure
from sparsec.passes.hessian import diagonals
from sparsec.passes.sparsify.masks import Mask, mask_of_scores

__all__ = ["wanda", "wanda_scores"]


def wanda_scores(weight: ArrayLike, second_moment: ArrayLike) -> NDArray[np.float64]:
    """w^2 * E[x^2], float64 [N, K]: the square of the paper's score, which orders alike and adds up over blocks.

    weight: [N, K]; second_moment: E[x x^T] [K, K] or its diagonal [K]; [G, K, K] for G equal parts of the rows.
    """
    weight, second_moment = np.asarray(weight, np.float64), np.asarray(second_moment, np.float64)
    square = second_moment if second_moment.ndim == 1 else diagonals(second_moment, len(weight))
    if square.shape not in (weight.shape, weight.shape[1:]):
        raise CalibrationError(
            f"a weight of {weight.shape[1]} inputs needs as many second moments; found {square.shape}"
        )
    return np.asarray(np.square(weight) * square)


def wanda(weight: ArrayLike, second_moment: ArrayLike, structure: Structure, *, by_row: bool = True) -> Mask:
    """Keep-mask bool [N, K] for a sparse structure; a block scores the mean over its elements.

    by_row: False lets all weights of the matrix compete. Constant fan-in and N:M are decided by row in any case.
    """
    return mask_of_scores(wanda_scores(weight, second_moment), structure, by_row=by_row)
