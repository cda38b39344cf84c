"""PQ-index: how sparse a weight is already, and how many of its values pruning should leave at least.

Diao, Wang, Zhang, Yang, Ding and Tarokh, "Pruning Deep Neural Networks from a Sparsity Perspective" (2023).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["least_kept", "pq_index"]


def pq_index(weight: ArrayLike, p: float = 0.5, q: float = 1.0) -> float:
    """1 - d^(1/q - 1/p) |w|_p / |w|_q of the d values of `weight`, 0 < p < q: 0 where all magnitudes are equal, 1 - d^(1/q - 1/p)
    where a single one is not 0; the same for any multiple of w. 0 for a weight of zeros."""
    values = np.abs(np.asarray(weight, np.float64)).ravel()
    largest = values.max(initial=0.0)
    if largest == 0:
        return 0.0
    values = values / largest
    # Means instead of sums: the power of d is in them.
    return float(1 - np.mean(values**p) ** (1 / p) / np.mean(values**q) ** (1 / q))


def least_kept(weight: ArrayLike, p: float = 0.5, q: float = 1.0, excess: float = 0.0) -> float:
    """Share of the values that pruning should keep at least: (1 + excess)^(-q / (q - p)) (1 - I)^(p q / (q - p)), I the PQ-index.

    `excess`: what is pruned may hold so much of the kept values' q-norm, to the power of q. For p = 1 and q = 2 this is the
    participation ratio |w|_1^2 / (d |w|_2^2).
    """
    left = 1 - pq_index(weight, p, q)
    return float((1 + excess) ** (-q / (q - p)) * left ** (p * q / (q - p)))
