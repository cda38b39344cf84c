"""Scales for inputs that make rounding spare those with large activations.

J. Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", 2023. Columns of the weight are
multiplied by s and the inputs divided by it, where s is a power of the inputs' size; the power is found by trying. Whoever calls
folds 1 / s into what produces the inputs (equivalent/scaling.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.formats import Scheme, decode, encode
from sparsec.passes.hessian import damped, error

__all__ = ["Part", "input_scales"]

Matrix = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Part:
    """A weight W [N, K] that reads the channels, the second moment [K, K] of its inputs, its (dense) scheme, and how many
    neighbouring inputs belong to a channel (a convolution's kernel)."""

    weight: Matrix
    second_moment: ArrayLike
    scheme: Scheme
    span: int = 1
    weighted: bool = True
    """Whether rounding counts errors of inputs by their second moments."""


def input_scales(parts: Sequence[Part], *, damping: float = 0.01, steps: int = 10) -> Matrix:
    """s > 0, float32, one for each channel: W * s rounds with the smallest output error when inputs are divided by s; ones where
    nothing helps.

    parts: at least one; they share the channels, and the error is summed over them. steps: powers tried are 1/steps, 2/steps .. 1.
    Dead channels get 1. The error is that of plain rounding; errors as `encode`.
    """
    hessians = [damped(part.second_moment, damping) for part in parts]
    power = np.mean([_by_channel(part) for part in parts], 0)
    live = power > 0
    best = np.ones(len(power), np.float32)
    if not live.any():
        return best
    size = np.sqrt(np.where(live, power, 1))

    def total(scales: Matrix) -> float:
        return sum(_error(part, scales, hessian) for part, hessian in zip(parts, hessians, strict=True))

    lowest = total(best)
    for step in range(1, steps + 1):
        raised = np.where(live, size, 1.0) ** (step / steps)
        # The middle of the range becomes 1, so that neither weights nor inputs grow out of fp16 scales.
        raised /= np.sqrt(raised[live].max() * raised[live].min())
        scales = np.where(live, raised, 1.0).astype(np.float32)
        found = total(scales)
        if found < lowest:
            best, lowest = scales, found
    return best


def _by_channel(part: Part) -> NDArray[np.float64]:
    """Mean square of each channel."""
    diagonal = np.asarray(part.second_moment, np.float64).diagonal()
    return np.asarray(diagonal.reshape(-1, part.span).mean(1))


def _error(part: Part, scales: Matrix, hessian: NDArray[np.float64]) -> float:
    by_input = np.repeat(scales, part.span)
    importance = hessian.diagonal() / np.square(by_input.astype(np.float64)) if part.weighted else None
    rounded = decode(encode(np.asarray(part.weight * by_input, np.float32), part.scheme, None, importance)) / by_input
    return error(part.weight, rounded, hessian)
