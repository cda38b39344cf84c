"""Local search on a mask: a kept weight makes room for a pruned one of its row whenever the error falls.

The combinatorial step of Benbaki et al., "Fast as CHITA: Neural Network Pruning with Combinatorial Optimization" (2023), with
exchanges of two weights as the moves; after some exchanges all kept weights are refitted. The error never rises.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.formats import Structure
from sparsec.passes import hessian
from sparsec.passes.sparsify.exchange import Exchange
from sparsec.passes.sparsify.masks import Mask
from sparsec.passes.sparsify.refit import refit

__all__ = ["swap"]


def swap(
    weight: ArrayLike,
    second_moment: ArrayLike,
    mask: ArrayLike,
    structure: Structure,
    *,
    start: ArrayLike | None = None,
    damping: float = 0.01,
    rounds: int = 4,
    exchanges: int = 32,
) -> tuple[Mask, NDArray[np.float32]]:
    """(keep-mask bool [N, K], the best weights float32 [N, K] on it), with as many weights kept in every row (group) as before.

    weight: [N, K]; second_moment: E[x x^T] [K, K], [G, K, K] for G equal parts of the rows; mask: bool [N, K], legal for the
    structure, which has no blocks (SchemeError). start: weights to begin with, see `refit`. rounds of at most `exchanges` exchanges
    a row, each followed by a refit.
    """
    if (moment := np.asarray(second_moment)).ndim == 3:
        found = [
            swap(w, h, kept, structure, start=v, damping=damping, rounds=rounds, exchanges=exchanges)
            for h, w, kept, v in hessian.parts(moment, weight, mask, weight if start is None else start)
        ]
        return np.concatenate([kept for kept, _ in found]), np.concatenate([v for _, v in found])
    search = Exchange.of(weight, second_moment, structure, damping, restore=False)
    keep = np.array(mask, bool)
    values = refit(weight, second_moment, keep, start=start, damping=damping)
    for _ in range(rounds):
        scaled = values * search.unit
        if not search.run(scaled, keep, exchanges):
            break
        values = refit(weight, second_moment, keep, start=scaled / search.unit, damping=damping)
    return keep, values
