"""The low rank whose outputs come nearest: the singular value decomposition of W L where H = L L^T is the inputs' second moment.

X. Wang et al., "SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model Compression", 2024, whitens inputs
with the Cholesky factor of H; S. Liu et al., "EoRA: Training-free Compensation for Compressed LLM with Eigenspace Low-Rank
Approximation", 2024, does so in H's eigenspace to what coding left of a weight. Both have the same minimum: U holds the leading
eigenvectors of W H W^T, the outputs' second moment, and V = U^T W. So no H^-1 is needed and H may be singular.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.passes.factor.svd import check_rank

__all__ = ["whitened"]

Matrix = NDArray[np.float64]


def whitened(weight: ArrayLike, second_moment: ArrayLike, rank: int) -> tuple[Matrix, Matrix]:
    """(U [N, r] with orthonormal columns, V [r, K]), float64: the U V of that rank with the least tr((W - U V) H (W - U V)^T).

    weight: W [N, K]; second_moment: H [K, K], positive semidefinite. Raises WeightError unless 1 <= rank <= min(N, K).
    """
    from scipy.linalg import eigh

    w, h = np.asarray(weight, np.float64), np.asarray(second_moment, np.float64)
    check_rank(rank, w.shape)
    rows, cols = w.shape
    if rows <= cols:
        left = eigh(w @ h @ w.T, subset_by_index=[rows - rank, rows - 1])[1][:, ::-1]
    else:  # the same eigenvectors by the smaller matrix L^T W^T W L, with the symmetric root L
        values, vectors = np.linalg.eigh(h)
        root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
        outputs = w @ root
        right = eigh(outputs.T @ outputs, subset_by_index=[cols - rank, cols - 1])[1][:, ::-1]
        left = np.linalg.qr(outputs @ right)[0]
    return left, left.T @ w
