"""Inputs whose weights are kept apart from the codes of all others.

The outlier stage of VPTQ (Liu et al., "VPTQ: extreme low-bit vector post-training quantization for large language models", 2024).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["beside_outliers", "outlier_inputs"]

Matrix = NDArray[np.float64]


def outlier_inputs(weight: Matrix, second_moment: Matrix | None, count: int) -> NDArray[np.intp]:
    """The `count` inputs that carry most: the largest E[x_k^2] times sum_n W_nk^2, in order. weight: [N, K]; second_moment: [K, K], None:
    all inputs are as large. Of equals the first ones."""
    carried = np.square(weight).sum(axis=0)
    if second_moment is not None:
        carried = carried * np.diag(second_moment)
    return np.sort(np.argsort(-carried, kind="stable")[:count])


def beside_outliers(
    weight: Matrix, second_moment: Matrix | None, chosen: NDArray[np.intp]
) -> tuple[Matrix, Matrix | None, NDArray[np.bool_]]:
    """(W, the second moment, keep-mask of the outliers [N, K]) for coding the other inputs.

    The outliers' weights are 0 there and their inputs next to nothing: how they are coded does not matter, what stands beside them makes
    up for it. Of the others' second moment only what outliers cannot tell counts: errors that go with an outlier are its to mend.
    """
    mask = np.zeros(weight.shape, bool)
    mask[:, chosen] = True
    rest = np.where(mask, 0.0, weight)
    if second_moment is None:
        return rest, None, mask
    others = np.setdiff1d(np.arange(weight.shape[1]), chosen)
    across, own = second_moment[np.ix_(others, chosen)], second_moment[np.ix_(chosen, chosen)]
    own = own + 1e-6 * max(float(np.trace(own)), np.finfo(np.float64).tiny) / len(chosen) * np.eye(len(chosen))
    inner = second_moment[np.ix_(others, others)] - across @ np.linalg.solve(own, across.T)
    result = np.zeros_like(second_moment)
    result[np.ix_(others, others)] = (inner + inner.T) / 2
    small = float(np.diag(second_moment).mean()) * 1e-6
    result[chosen, chosen] = small
    return rest, result, mask
