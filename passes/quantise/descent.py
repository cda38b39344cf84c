"""Coordinate descent on the output error over representable values: each input's best value given all others, rounded.

K. Behdin, A. Acharya, A. Gupta, S. Keerthi, R. Mazumder, "QuantEase: Optimization-based Quantization for Language Models", 2023.
The error is quadratic with the same curvature in every output, so the nearest representable value is the best one: no
step raises the error, with any mask. A vector of inputs that share a code is one coordinate.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.formats import EncodedWeight, decode
from sparsec.passes.hessian import Square
from sparsec.passes.quantise.choose import Chooser, chooser_of
from sparsec.passes.quantise.parts import descended_parts
from sparsec.passes.quantise.products import damped

__all__ = ["descend", "descended", "sweep"]

Matrix = NDArray[np.float32]


def descend(
    weight: Matrix, second_moment: ArrayLike, encoded: EncodedWeight, *, damping: float = 0.01, sweeps: int = 1
) -> EncodedWeight:
    """Other codes for `encoded` that bring it nearer to W [N, K] in tr((W - Q) H (W - Q)^T), H damped.

    Positions, scales and codebooks stay. sweeps: at most so many over all inputs; it ends when nothing changes.
    """
    hessian = damped(second_moment, damping, *weight.shape)
    found = descended if hessian.ndim == 2 else descended_parts
    return found(weight, hessian, encoded, sweeps=sweeps)


def descended(weight: Matrix, hessian: Square, encoded: EncodedWeight, *, sweeps: int = 1) -> EncodedWeight:
    """`descend` for a damped Hessian."""
    chooser = chooser_of(encoded)
    target = np.ascontiguousarray(np.asarray(weight, np.float32).T)
    values = np.array(decode(encoded).T, order="C")
    for _ in range(sweeps):
        if not sweep(target, values, hessian, chooser):
            break
    return chooser.encoded(values)


def sweep(target: Matrix, values: Matrix, hessian: Square, chooser: Chooser, *, block: int = 128) -> bool:
    """Choose all of values [K, N] once, in place, to come near target [K, N]; whether anything changed.

    Values need not be representable before. block: inputs whose gradients are computed together.
    """
    cols, dim = len(target), chooser.dim
    wide = hessian.astype(np.float32)
    inverse = (1 / hessian.diagonal()).astype(np.float32)[:, None]
    changed = False
    step = max(1, block // dim) * dim
    for begin in range(0, cols, step):
        end = min(begin + step, cols)
        # What moving each input by one would gain to first order; computed anew for every block, so that rounding does not pile up.
        pull = wide[begin:end] @ (target - values)
        for a in range(begin, end, dim):
            b = min(a + dim, end)
            own = hessian[a:b, a:b]
            if dim == 1:
                wanted = np.asarray(values[a:b] + pull[a - begin : b - begin] * inverse[a:b], np.float32)
                metric = _UNIT
            else:
                best = np.asarray(np.linalg.inv(own), np.float32) @ pull[a - begin : b - begin]
                wanted = np.asarray(values[a:b] + best, np.float32)
                metric = np.asarray(np.linalg.cholesky(own).T, np.float32)
            found = chooser.choose(a // dim, wanted, metric)
            move = found - values[a:b]
            if not move.any():
                continue
            changed = True
            values[a:b] = found
            if b < end:
                pull[b - begin :] -= wide[b:end, a:b] @ move
    return changed


_UNIT = np.ones((1, 1), np.float32)
