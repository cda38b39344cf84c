"""DSnoT (Zhang et al., "Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs", 2023): grow and prune a mask.

In every cycle each row grows a pruned weight back, with its old value, and prunes another; no weight is updated. The paper picks
them by what they do to the mean of the row's output error, over the variance of the input; the second moment holds both, so here
a pair is picked by the expected squared error itself, which therefore never exceeds its start.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from sparsec.formats import Structure
from sparsec.passes import hessian
from sparsec.passes.sparsify.exchange import Exchange
from sparsec.passes.sparsify.masks import Mask

__all__ = ["dsnot"]


def dsnot(
    weight: ArrayLike, second_moment: ArrayLike, mask: ArrayLike, structure: Structure, *, cycles: int = 50
) -> Mask:
    """Keep-mask bool [N, K] with as many weights kept in every row (group) as the given one, legal for the structure.

    weight: [N, K], kept as it is where the mask is True; second_moment: E[x x^T] [K, K], [G, K, K] for G equal parts of the rows;
    structure: without blocks (SchemeError). cycles: at most so many exchanges a row; a row ends when none of those tried lowers its
    error.
    """
    if (moment := np.asarray(second_moment)).ndim == 3:
        parts = hessian.parts(moment, weight, mask)
        return np.concatenate([dsnot(w, h, kept, structure, cycles=cycles) for h, w, kept in parts])
    search = Exchange.of(weight, second_moment, structure, 0.0, restore=True)
    keep = np.array(mask, bool)
    search.run(np.where(keep, search.target, 0.0), keep, cycles)
    return keep
