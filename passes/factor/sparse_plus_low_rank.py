"""A weight as zeros-and-values plus a low rank, found by turns.

S. Zhang and V. Papyan, "OATS: Outlier-Aware Pruning Through Sparse and Low Rank Decomposition", 2024: alternating thresholding of
W diag(sizes), the rank of what the sparse part leaves, then the largest values of what the low rank leaves; as T. Zhou and D. Tao,
"GoDec: Randomized Low-rank & Sparse Matrix Decomposition in Noisy Case", 2011, for the robust principal components of E. Candes et al.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.errors import WeightError
from sparsec.formats import Structure
from sparsec.passes.factor.svd import check_rank, svd
from sparsec.passes.sparsify.masks import mask_of_scores

__all__ = ["sparse_plus_low_rank"]

Matrix = NDArray[np.float64]

_ENOUGH = 1e-4
"""Turns end when one lowers the error by less than this share."""


def sparse_plus_low_rank(
    weight: ArrayLike, rank: int, structure: Structure, *, sizes: ArrayLike | None = None, turns: int = 80
) -> tuple[NDArray[np.bool_], Matrix, Matrix, Matrix]:
    """(keep-mask bool [N, K], S [N, K] zero off the mask, U [N, r], V [r, K]) with a small |(W - S - U V) diag(sizes)|.

    weight: W [N, K]; structure: a sparse one, of the mask; sizes: of the inputs, above 0, ones if None; turns: at most as many. The
    error never grows from turn to turn. Deterministic. Raises WeightError unless 1 <= rank <= min(N, K), or for a dense structure.
    """
    w = np.asarray(weight, np.float64)
    check_rank(rank, w.shape)
    if structure.is_dense:
        raise WeightError("sparse plus low rank needs a sparse structure such as s50")
    scale = np.ones(w.shape[1]) if sizes is None else np.asarray(sizes, np.float64)
    target = w * scale
    left, right = svd(target, rank)
    mask, sparse = np.zeros(w.shape, bool), np.zeros(w.shape)
    before = np.inf
    for _ in range(turns):
        rest = target - left @ right
        mask = mask_of_scores(np.square(rest), structure)
        sparse = np.where(mask, rest, 0.0)
        rest = target - sparse
        # One step of subspace iteration from the last turn's space does: it moves little.
        left = np.linalg.qr(rest @ right.T)[0]
        right = left.T @ rest
        error = float(np.square(rest - left @ right).sum())
        if error > (1 - _ENOUGH) * before:
            break
        before = error
    return mask, sparse / scale, left, right / scale
