"""Greedy path following: each input's value is rounded so that the outputs so far come as near as they can.

E. Lybrand, R. Saab, "A Greedy Algorithm for Quantizing Neural Networks", 2021; J. Zhang, Y. Zhou, R. Saab, "Post-training Quantization
for Neural Networks with Provable Guarantees", 2023. The walk of the papers over samples, u += (w - q) x, meets the samples only in inner
products, so their second moment is enough. Unlike GPTQ it needs no inverse, and looks back only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.formats import EncodedWeight, Scheme, encode
from sparsec.passes.hessian import diagonals
from sparsec.passes.quantise.choose import chooser_of
from sparsec.passes.quantise.descent import sweep
from sparsec.passes.quantise.parts import followed_parts
from sparsec.passes.quantise.products import damped

__all__ = ["follow_paths"]


def follow_paths(
    weight: NDArray[np.float32],
    second_moment: ArrayLike,
    scheme: Scheme,
    mask: NDArray[np.bool_] | None = None,
    *,
    damping: float = 0.01,
) -> EncodedWeight:
    """Encode W [N, K], inputs in their order; arguments and errors as `compensate`."""
    hessian = damped(second_moment, damping, *weight.shape)
    encoded = encode(weight, scheme, mask, diagonals(hessian, len(weight)))
    if hessian.ndim == 3:
        return followed_parts(weight, hessian, encoded)
    chooser = chooser_of(encoded)
    target = np.ascontiguousarray(np.asarray(weight, np.float32).T)
    values = target.copy()
    sweep(target, values, hessian, chooser)
    return chooser.encoded(values)
