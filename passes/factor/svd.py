"""The nearest matrix of a rank: truncated singular value decomposition, plain or with inputs weighed by their size.

C. Eckart and G. Young, "The approximation of one matrix by another of lower rank", 1936. Z. Yao et al., "ZeroQuant-V2: Exploring
Post-training Quantization in LLMs from Comprehensive Study to Low Rank Compensation" (LoRC), 2023, adds it to what coding left of
a weight. Z. Yuan et al., "ASVD: Activation-aware Singular Value Decomposition for Compressing Large Language Models", 2023,
scales each input by a power of its size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.errors import WeightError

__all__ = ["input_sizes", "svd"]

Matrix = NDArray[np.float64]


def svd(weight: ArrayLike, rank: int, sizes: ArrayLike | None = None) -> tuple[Matrix, Matrix]:
    """(U [N, r] with orthonormal columns, V [r, K]), float64: the U V of that rank with the least |(W - U V) diag(sizes)|.

    weight: W [N, K]; sizes: [K], above 0, ones if None. U's columns come in the order of what they explain. Raises WeightError
    unless 1 <= rank <= min(N, K).
    """
    w = np.asarray(weight, np.float64)
    check_rank(rank, w.shape)
    scaled = w if sizes is None else w * np.asarray(sizes, np.float64)
    left = np.linalg.svd(scaled, full_matrices=False)[0][:, :rank]
    return left, left.T @ w  # the inputs' weights cancel


def input_sizes(second_moment: ArrayLike, power: float = 0.5) -> Matrix:
    """ASVD's weights of inputs, float64 [K]: their root mean square to a power; the smallest live one for inputs that are dead."""
    diagonal = np.asarray(second_moment, np.float64).diagonal()
    live = diagonal > 0
    if not live.any():
        return np.ones(len(diagonal))
    return np.where(live, diagonal, diagonal[live].min()) ** (power / 2)


def check_rank(rank: int, shape: tuple[int, ...]) -> None:
    """Raise WeightError unless a matrix of that shape has an approximation of that rank."""
    if not 1 <= rank <= min(shape):
        raise WeightError(f"a weight {shape[0]} x {shape[1]} has ranks from 1 to {min(shape)}; found {rank}")
