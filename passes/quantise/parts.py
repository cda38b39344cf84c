"""Compensated rounding and coordinate descent where each part of the outputs reads inputs of its own (grouped convolutions).

The methods are those of compensate.py and descent.py. Weights lie as [K, G, R]: input, part, row of the part. There are few inputs in a
part, so errors are handed on at once and not in blocks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsec.formats import EncodedWeight, decode
from sparsec.passes.hessian import Square, inverse_upper_cholesky
from sparsec.passes.quantise.choose import Chooser, chooser_of

__all__ = ["compensated_parts", "descended_parts", "followed_parts"]

Matrix = NDArray[np.float32]


def compensated_parts(weight: Matrix, hessian: Square, encoded: EncodedWeight) -> EncodedWeight:
    """`compensated` with a damped Hessian [G, K, K] for G equal parts of W [N, K]; inputs in their order."""
    chooser = chooser_of(encoded)
    upper = np.stack([inverse_upper_cholesky(part) for part in hessian])
    factor = upper.astype(np.float32)
    rest = _split(weight, len(hessian))
    chosen = np.zeros_like(rest)
    for a, b in _runs(len(rest), chooser.dim):
        metric = np.linalg.inv(upper[:, a:b, a:b].transpose(0, 2, 1)).astype(np.float32)
        chosen[a:b] = _choose(chooser, a, rest[a:b], metric)
        errors = metric @ (rest[a:b] - chosen[a:b]).transpose(1, 0, 2)
        rest[b:] -= (factor[:, a:b, b:].transpose(0, 2, 1) @ errors).transpose(1, 0, 2)
    return chooser.encoded(chosen.reshape(len(rest), -1))


def descended_parts(weight: Matrix, hessian: Square, encoded: EncodedWeight, *, sweeps: int = 1) -> EncodedWeight:
    """`descended` with a damped Hessian [G, K, K] for G equal parts of W [N, K]."""
    chooser = chooser_of(encoded)
    target, values = _split(weight, len(hessian)), _split(decode(encoded), len(hessian))
    for _ in range(sweeps):
        if not _sweep(target, values, hessian, chooser):
            break
    return chooser.encoded(values.reshape(len(values), -1))


def followed_parts(weight: Matrix, hessian: Square, encoded: EncodedWeight) -> EncodedWeight:
    """Greedy path following (gpfq.py) with a damped Hessian [G, K, K] for G equal parts of W [N, K]."""
    chooser, target = chooser_of(encoded), _split(weight, len(hessian))
    values = target.copy()
    _sweep(target, values, hessian, chooser)
    return chooser.encoded(values.reshape(len(values), -1))


def _sweep(target: Matrix, values: Matrix, hessian: Square, chooser: Chooser) -> bool:
    """Choose all of values [K, G, R] once, in place, to come near target; whether anything changed. As `descent.sweep`."""
    wide, changed = hessian.astype(np.float32), False
    pull = (wide @ (target - values).transpose(1, 0, 2)).transpose(1, 0, 2).copy()
    for a, b in _runs(len(values), chooser.dim):
        own = hessian[:, a:b, a:b]
        step = np.linalg.inv(own).astype(np.float32) @ pull[a:b].transpose(1, 0, 2)
        wanted = values[a:b] + step.transpose(1, 0, 2)
        metric = np.linalg.cholesky(own).transpose(0, 2, 1).astype(np.float32)
        found = _choose(chooser, a, wanted, metric)
        move = found - values[a:b]
        if move.any():
            changed = True
            values[a:b] = found
            pull[b:] -= (wide[:, b:, a:b] @ move.transpose(1, 0, 2)).transpose(1, 0, 2)
    return changed


def _choose(chooser: Chooser, start: int, values: Matrix, metric: Matrix) -> Matrix:
    """`Chooser.choose` for values [d, G, R] with a metric [G, d, d] for each part."""
    flat = np.ascontiguousarray(values.reshape(len(values), -1))
    rows = np.repeat(metric, values.shape[2], 0)
    return chooser.choose(start // chooser.dim, flat, rows).reshape(values.shape)


def _runs(cols: int, dim: int) -> list[tuple[int, int]]:
    return [(a, min(a + dim, cols)) for a in range(0, cols, dim)]


def _split(weight: Matrix, parts: int) -> Matrix:
    """[K, G, R] of W [N, K], a copy."""
    rows, cols = weight.shape
    return np.array(np.asarray(weight, np.float32).T, order="C").reshape(cols, parts, rows // parts)
