"""Magnitude pruning (Han et al., "Learning both Weights and Connections", 2015): keep what is largest.

A block's score is the mean of its squares.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sparsec.formats import Structure
from sparsec.passes.sparsify.masks import Mask, mask_of_scores

__all__ = ["magnitude_masks"]

Matrix = NDArray[np.float32]


def magnitude_masks(weights: Sequence[Matrix], structures: Sequence[Structure]) -> list[Mask | None]:
    """Keep-masks bool [N, K] of weights [N, K]; None where the structure is dense."""
    # One at a time: the scores of all weights together may not fit in memory.
    pairs = zip(weights, structures, strict=True)
    return [None if s.is_dense else mask_of_scores(np.square(w, dtype=np.float64), s) for w, s in pairs]
