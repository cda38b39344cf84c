"""16-bit fixed-point arithmetic of products with sparse weights: what the attribute `activations: int16` allows a kernel to do.

Inputs are whole numbers of a step, max |x| / 32767 over the inputs of one row (token, pixel) that are packed together (a chunk);
weights are whole numbers of a step of their row. A product keeps the upper 16 of its bits, rounded:

    p = round(a * w / 2^15)                     |a| <= 32767

so |p| <= |w|, and with sum |w| <= 32767 over each chunk of a row (`weight_steps`) no sum of 16 bits overflows, whatever the inputs.
Each chunk's sum, times both steps and 2^15, is added in float32.

What the operator means is the product in float32: its function body has no rounding. `error_bound` says how far a kernel may be off:
half a unit for every product, half a step for every input and every weight. An input that is not finite makes results of its row
NaN or infinite, those too that have no weight for it.
"""

from __future__ import annotations

import numpy as np

from sparsec.formats import Scheme
from sparsec.formats.meaning import FloatValue

__all__ = ["INPUT_STEP", "LARGEST", "MOST_WEIGHTS", "NAME", "error_bound", "refusal", "weight_steps"]

NAME = "int16"
LARGEST = 32767
# Weights that a chunk of a row has on average, at most, as kernels cut it: the more there are, the fewer units each of them is, and the
# larger is the error of its products beside their sum.
MOST_WEIGHTS = 40
# Of inputs, in max |x|, with the 2^15 that products are divided by.
INPUT_STEP = 32768.0 / LARGEST


def refusal(scheme: Scheme) -> str:
    """Why products of a weight in this scheme stay float32 ("" if they need not)."""
    if scheme.is_dense:
        return f"{scheme} stores all weights"
    if not isinstance(scheme.codec.meaning, FloatValue) or scheme.scales.kind != "none":
        return f"{scheme.codec} is made of codes"
    return ""


def weight_steps(totals: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Steps [N] of the weights of rows such that in no chunk rounded weights add up to more than LARGEST, float32 numbers as float64.

    totals [chunks, N]: sum |w| of each chunk of a row; counts, likewise: its weights, which rounding may make larger by half a step
    each. The step of a row of zeros is 1. Raises ValueError for 65534 weights in a chunk or more.
    """
    if counts.max(initial=0) >= 2 * LARGEST:
        raise ValueError(
            f"{counts.max()} weights of a row in one chunk: fixed-point sums hold fewer than {2 * LARGEST}"
        )
    # float32, as kernels multiply with; the next larger one, so that rounding the step does not break the bound
    least = (totals / (LARGEST - counts / 2)).max(axis=0)
    steps = np.nextafter(least.astype(np.float32), np.float32(np.inf))
    return np.where(least > 0, steps, 1.0).astype(np.float64)


def error_bound(x: np.ndarray, weight: np.ndarray, chunk: int) -> np.ndarray:
    """Largest |error| of x[M, K] @ weight[N, K]^T in chunks of `chunk` inputs, float64 [M, N], float32 sums of chunks aside."""
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    cuts = range(0, weight.shape[1], chunk)
    parts = [(x[:, c : c + chunk], weight[:, c : c + chunk]) for c in cuts]
    steps = np.max([np.abs(w).sum(1) / (LARGEST - (w != 0).sum(1) / 2) for _, w in parts], axis=0) * (1 + 2.0**-22)
    bound = np.zeros((len(x), len(weight)))
    for a, w in parts:
        stored = w != 0
        step = np.abs(a).max(1, keepdims=True) / LARGEST
        products = 0.5 * 2.0**15 * step * steps * stored.sum(1)
        inputs = 0.5 * step * (np.abs(w) + 0.5 * steps[:, None] * stored).sum(1)
        weights = 0.5 * steps * (np.abs(a) @ stored.T)
        bound += products + inputs + weights
    return bound
