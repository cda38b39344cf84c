"""Codes and codebooks learned together: codes follow the gradient of the outputs' error, scales and codebooks are fitted in between.

E. Yvinec, A. Dapogny, K. Bailly, "Network Memory Footprint Compression Through Jointly Learnable Codebooks and Mappings" (JLCM), 2023.
Weights beside the codes take gradient steps of the layer's error tr((W - Q) H (W - Q)^T), taken at the coded Q, and codes are the
nearest to them (the proximal step): a code changes to a neighbouring entry once enough has been pulled its way. The steps are small shares
of 1 / D_k, D_k = sum_j |H_kj|, with which no step could overshoot. What is learned with groups of rows that have codebooks of
their own: group_rows.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.formats import EncodedWeight, Scheme, decode, encode
from sparsec.formats.meaning import FloatValue
from sparsec.passes.hessian import diagonals
from sparsec.passes.quantise.choose import chooser_of
from sparsec.passes.quantise.products import damped, error, times
from sparsec.passes.quantise.refit import refit_codebook, refit_scales

__all__ = ["learn_jointly"]

Matrix = NDArray[np.float32]

_FIRST, _LAST = 0.1, 0.03
"""Share of a full step, falling geometrically."""
_BETWEEN_FITS = 8


def learn_jointly(
    weight: Matrix,
    second_moment: ArrayLike,
    scheme: Scheme,
    mask: NDArray[np.bool_] | None = None,
    *,
    damping: float = 0.01,
    steps: int = 64,
    start: Matrix | None = None,
) -> EncodedWeight:
    """Encode W [N, K]; arguments and errors as `quantise`. steps: over all codes at once; the best codes on the way are kept, so the
    result is never worse than rounding `start`."""
    weight = np.asarray(weight, np.float32)
    hessian = damped(second_moment, damping, *weight.shape)
    beside = weight if start is None else np.asarray(start, np.float32)
    best = found = encode(beside, scheme, mask, diagonals(hessian, len(weight)))
    if isinstance(scheme.codec.meaning, FloatValue):
        return best
    lowest = error(weight, decode(best), hessian)
    wide = hessian.astype(np.float32)
    bound = np.abs(wide).sum(-1)  # [K] or [G, K]
    by_row = bound if bound.ndim == 1 else np.repeat(bound, len(weight) // len(bound), 0)
    for step in range(steps):
        share = np.float32(_FIRST * (_LAST / _FIRST) ** (step / max(1, steps - 1)))
        beside = beside + share * times(weight - decode(found), wide) / by_row
        found = _nearest(found, beside, by_row)
        if step % _BETWEEN_FITS == _BETWEEN_FITS - 1:
            found = refit_codebook(weight, hessian, refit_scales(weight, hessian, found))
        reached = error(weight, decode(found), hessian)
        if reached < lowest:
            best, lowest = found, reached
    return best


def _nearest(encoded: EncodedWeight, values: Matrix, counts: Matrix) -> EncodedWeight:
    """Codes nearest to values [N, K], squares counting `counts`, [K] or [N, K]."""
    chooser = chooser_of(encoded)
    wanted = np.ascontiguousarray(values.T)
    chosen = np.empty_like(wanted)
    for start in range(0, len(wanted), chooser.dim):
        part = slice(start, start + chooser.dim)
        root = np.sqrt(counts[..., part])
        metric = np.diag(root) if root.ndim == 1 else np.eye(root.shape[1], dtype=np.float32) * root[:, None]
        chosen[part] = chooser.choose(start // chooser.dim, wanted[part], metric)
    return chooser.encoded(chosen)
