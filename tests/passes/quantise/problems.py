"""Layers with correlated inputs, and what their outputs lose."""

from __future__ import annotations

import numpy as np

from sparsec.formats import EncodedWeight, Scheme, decode
from sparsec.passes.hessian import damped, error
from tests.formats.cases import random_mask

__all__ = ["layer", "loss", "mask_of", "raw"]


def layer(rows: int, cols: int, rng: np.random.Generator, samples: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """W float32 [rows, cols] with heavy tails, and the second moment of inputs with a falling spectrum and unequal sizes."""
    turn = np.linalg.qr(rng.standard_normal((cols, cols)))[0]
    samples = samples or 4 * cols
    inputs = rng.standard_normal((samples, cols)) * np.arange(1, cols + 1) ** -0.5 @ turn.T
    inputs *= np.exp(0.5 * rng.standard_normal(cols))
    weight = rng.standard_t(5, (rows, cols)) * np.exp(0.3 * rng.standard_normal((rows, 1)))
    return weight.astype(np.float32), (inputs.T @ inputs / samples).astype(np.float32)


def loss(weight: np.ndarray, moment: np.ndarray, encoded: EncodedWeight) -> float:
    """The output error under the damped second moment, which is what the methods minimise."""
    return error(weight, decode(encoded), damped(moment))


def mask_of(scheme: Scheme, weight: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """A legal mask with no empty rows to speak of; None for dense."""
    return random_mask(scheme, *weight.shape, rng)


def raw(encoded: EncodedWeight) -> list[bytes]:
    """All stored bytes."""
    return [array.tobytes() for array in encoded.arrays().values()]
