"""Weights and inputs that factored forms are tried on."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def inputs(cols: int, count: int, seed: int = 0, *, decay: float = 1.0) -> Array:
    """Anisotropic inputs [count, cols], float64: directions of very different size, none along an axis."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((cols, cols)))[0]
    return np.asarray((rng.standard_normal((count, cols)) * np.exp(-decay * np.arange(cols) / 4)) @ turn)


def second_moment(cols: int, seed: int = 0, *, decay: float = 1.0) -> Array:
    """E[x x^T] [cols, cols] of such inputs."""
    x = inputs(cols, 8 * cols, seed, decay=decay)
    return np.asarray(x.T @ x / len(x))


def output_error(weight: Array, found: Array, moment: Array) -> float:
    """tr((W - V) H (W - V)^T) / tr(W H W^T), by a sum over the directions of H: no product of the code under test."""
    values, vectors = np.linalg.eigh(np.asarray(moment, np.float64))
    rest, whole = (np.asarray(weight) - found) @ vectors, np.asarray(weight) @ vectors
    return float((np.square(rest) * values).sum() / (np.square(whole) * values).sum())
