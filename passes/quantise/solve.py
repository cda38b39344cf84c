"""The whole of it for one weight: fit, round with compensation, refit and descend in turn."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.formats import EncodedWeight, Scheme, decode, encode
from sparsec.formats.meaning import FloatValue, VectorValue
from sparsec.passes.hessian import Square, diagonals
from sparsec.passes.quantise.compensate import Order, compensated
from sparsec.passes.quantise.descent import descended
from sparsec.passes.quantise.k_best import k_best, width_for
from sparsec.passes.quantise.parts import compensated_parts, descended_parts
from sparsec.passes.quantise.products import damped, error
from sparsec.passes.quantise.refit import refit_codebook, refit_scales
from sparsec.passes.quantise.row_scales import searched, worth_searching
from sparsec.passes.quantise.support import solved_on_support

__all__ = ["quantise"]

Matrix = NDArray[np.float32]

_ENOUGH = 5e-3  # a round that gains less is the last
_SEARCHES = 2


def quantise(
    weight: Matrix,
    second_moment: ArrayLike,
    scheme: Scheme,
    mask: NDArray[np.bool_] | None = None,
    *,
    damping: float = 0.01,
    order: Order = "activation",
    refits: int = 8,
    sweeps: int = 1,
    start: Matrix | None = None,
) -> EncodedWeight:
    """Encode W [N, K] so that tr((W - Q) H (W - Q)^T) is small, H the damped second moment of the inputs: E[x x^T] [K, K],
    or [G, K, K] for G equal parts of the rows that read inputs of their own (a grouped convolution).

    mask: bool [N, K] as for `encode`; with it W may be the dense weight, whose outputs the kept values then approach. Where a sparse
    scheme has no mask, the nonzero values of W are kept. start: the values [N, K] that scales and codebooks are fitted to and rounding
    starts from (None: W, with a mask the best values on it). refits: rounds of refitting scales and codebooks, each followed by
    `sweeps` of coordinate descent; they end early when nothing is gained. Deterministic. Raises WeightError as `encode` does,
    CalibrationError for a second moment that is none.
    """
    weight = np.asarray(weight, np.float32)
    hessian = damped(second_moment, damping, *weight.shape)
    values = weight if start is None else np.asarray(start, np.float32)
    if mask is not None and start is None and not mask.all():
        values = solved_on_support(weight, hessian, mask)
    best = encode(values, scheme, mask, diagonals(hessian, len(weight)))
    lowest = error(weight, decode(best), hessian)
    if isinstance(scheme.codec.meaning, FloatValue) and scheme.codec.meaning.width == 32:
        return best

    def better(candidate: EncodedWeight) -> bool:
        nonlocal best, lowest
        found = error(weight, decode(candidate), hessian)
        gained, fell = found < lowest * (1 - _ENOUGH), found < lowest
        if fell:
            best, lowest = candidate, found
        return gained

    better(_rounded(values, hessian, best, order))
    descent = descended if hessian.ndim == 2 else descended_parts
    for _ in range(refits):
        fitted = refit_codebook(weight, hessian, refit_scales(weight, hessian, best))
        if not better(descent(weight, hessian, fitted, sweeps=sweeps)):
            break
    if worth_searching(best):
        for _ in range(_SEARCHES):
            found = searched(weight, hessian, best)
            better(found)
            if not better(refit_codebook(weight, hessian, refit_scales(weight, hessian, found))):
                break
    return best


def _rounded(weight: Matrix, hessian: Square, encoded: EncodedWeight, order: Order) -> EncodedWeight:
    """Compensated rounding, with more than one beginning of each row where it pays and the codec has codes of single values."""
    width = width_for(weight.shape[1])
    if width > 1 and not isinstance(encoded.scheme.codec.meaning, FloatValue | VectorValue):
        return k_best(weight, hessian, encoded, width=width, order=order)
    if hessian.ndim == 3:
        return compensated_parts(weight, hessian, encoded)
    return compensated(weight, hessian, encoded, order=order)
