"""Compensated rounding: inputs are rounded one after the other, and those to come make up for each error.

E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", 2022, with inputs in order of their second moment and scales fixed before; for vector codebooks the errors of a
vector's inputs are weighed together, as in M. van Baalen et al., "GPTVQ: The Blessing of Dimensionality for LLM Quantization",
2024. Positions that a mask leaves out are rounded to zero and compensated like any other error (E. Frantar, D. Alistarh,
"SparseGPT", 2023).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.formats import EncodedWeight, Scheme, encode
from sparsec.passes.hessian import Square, diagonals, inverse_upper_cholesky
from sparsec.passes.quantise.choose import chooser_of
from sparsec.passes.quantise.parts import compensated_parts
from sparsec.passes.quantise.products import damped

__all__ = ["Order", "compensate", "compensated", "ordered"]

Matrix = NDArray[np.float32]
Order = Literal["activation", "natural"]


def compensate(
    weight: Matrix,
    second_moment: ArrayLike,
    scheme: Scheme,
    mask: NDArray[np.bool_] | None = None,
    *,
    damping: float = 0.01,
    block: int = 128,
    order: Order = "activation",
) -> EncodedWeight:
    """Encode W [N, K] with errors compensated on inputs rounded later.

    second_moment: E[x x^T] [K, K], or [G, K, K] for G equal parts of the rows, whose inputs go in natural order. mask: bool [N, K] as
    for `encode`. damping: share of the mean second moment added to the diagonal. block: inputs between two updates of all later
    ones; any value gives the same result but for float32 rounding. order: inputs by falling second moment, or as they lie. Scales
    and codebooks minimise the rounding error weighted by the second moments. Raises WeightError as `encode` does,
    CalibrationError for a second moment that is none.
    """
    hessian = damped(second_moment, damping, *weight.shape)
    encoded = encode(weight, scheme, mask, diagonals(hessian, len(weight)))
    if hessian.ndim == 3:
        return compensated_parts(weight, hessian, encoded)
    return compensated(weight, hessian, encoded, block=block, order=order)


def compensated(
    weight: Matrix, hessian: Square, encoded: EncodedWeight, *, block: int = 128, order: Order = "activation"
) -> EncodedWeight:
    """`compensate` for a damped Hessian, with the positions, scales and tables of `encoded`."""
    chooser = chooser_of(encoded)
    inputs, starts = ordered(hessian.diagonal(), chooser.dim, order)
    upper = inverse_upper_cholesky(hessian[np.ix_(inputs, inputs)])
    metrics = [np.linalg.inv(upper[a:b, a:b].T).astype(np.float32) for a, b in pairwise(starts)]
    factor = upper.astype(np.float32)
    rest = np.ascontiguousarray(np.asarray(weight, np.float32).T[inputs])
    chosen = np.zeros_like(rest)
    errors = np.zeros_like(rest)
    step = max(1, block // chooser.dim)
    for first in range(0, len(metrics), step):
        last = min(first + step, len(metrics))
        end = starts[last]
        for index in range(first, last):
            a, b = starts[index], starts[index + 1]
            chosen[a:b] = chooser.choose(int(inputs[a]) // chooser.dim, rest[a:b], metrics[index])
            # What the later inputs have to make up for, in the coordinates of the Cholesky factor.
            errors[a:b] = metrics[index] @ (rest[a:b] - chosen[a:b])
            if b < end:
                rest[b:end] -= factor[a:b, b:end].T @ errors[a:b]
        begin = starts[first]
        if end < len(rest):
            rest[end:] -= factor[begin:end, end:].T @ errors[begin:end]
    values = np.empty_like(chosen)
    values[inputs] = chosen
    return chooser.encoded(values)


def ordered(diagonal: NDArray[np.float64], dim: int, order: Order) -> tuple[NDArray[np.int64], list[int]]:
    """Inputs in the order in which they are rounded, `dim` neighbours together, and where each such group starts (and ends)."""
    cols = len(diagonal)
    edges = np.arange(0, cols, dim)
    groups = np.arange(len(edges))
    if order == "activation":
        size = np.add.reduceat(diagonal, edges) / np.minimum(dim, cols - edges)
        groups = np.argsort(-size, kind="stable")
    runs = [np.arange(edges[g], min(edges[g] + dim, cols)) for g in groups]
    return np.concatenate(runs), [0, *np.cumsum([len(run) for run in runs]).tolist()]
