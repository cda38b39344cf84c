"""Scales for inputs that make rounding spare those with large activations.

J. Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", 2023. Columns of the weight are
multiplied by s and the inputs divided by it, where s is a power of the inputs' size; the power is found by trying. Whoever calls
folds 1 / s into what produces the inputs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.formats import Scheme, decode, encode
from sparsec.passes.hessian import damped, error

__all__ = ["input_scales"]

Matrix = NDArray[np.float32]


def input_scales(
    weight: Matrix,
    second_moment: ArrayLike,
    scheme: Scheme,
    mask: NDArray[np.bool_] | None = None,
    *,
    damping: float = 0.01,
    steps: int = 10,
) -> Matrix:
    """s > 0, float32 [K]: W * s rounds with the smallest output error when inputs are divided by s; ones where nothing helps.

    weight: W [N, K]; layers that read the same inputs are stacked, since they share s. second_moment: E[x x^T] [K, K]. steps: powers
    tried are 1/steps, 2/steps .. 1. Dead inputs get 1. The error is that of plain rounding with importance; errors as `encode`.
    """
    hessian = damped(second_moment, damping)
    diagonal = np.asarray(second_moment, np.float64).diagonal()
    live = diagonal > 0
    best = np.ones(len(diagonal), np.float32)
    if not live.any():
        return best
    size = np.sqrt(np.where(live, diagonal, 1))
    lowest = _error(weight, best, hessian, scheme, mask)
    for step in range(1, steps + 1):
        power = np.where(live, size, 1.0) ** (step / steps)
        # The middle of the range becomes 1, so that neither weights nor inputs grow out of fp16 scales.
        power /= np.sqrt(power[live].max() * power[live].min())
        scales = np.where(live, power, 1.0).astype(np.float32)
        found = _error(weight, scales, hessian, scheme, mask)
        if found < lowest:
            best, lowest = scales, found
    return best


def _error(
    weight: Matrix, scales: Matrix, hessian: NDArray[np.float64], scheme: Scheme, mask: NDArray[np.bool_] | None
) -> float:
    importance = hessian.diagonal() / np.square(scales.astype(np.float64))
    rounded = decode(encode(np.asarray(weight * scales, np.float32), scheme, mask, importance)) / scales
    kept = weight if mask is None else np.where(mask, weight, np.float32(0))
    return error(kept, rounded, hessian)
