"""GBLM-Pruner (Das, Sun, Ma, Shen, "Beyond Size: How Gradients Shape Pruning Decisions in Large Language Models", 2023).

Wanda's score and the weight's gradient: |W| * (||x|| + alpha * ||g||), the norms over the calibration samples. Gradients need a
loss and a framework that differentiates it; here they are a statistic like any other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.errors import CalibrationError
from sparsec.formats import Structure
from sparsec.passes.sparsify.masks import Mask, mask_of_scores
from sparsec.passes.sparsify.wanda import wanda_scores

__all__ = ["balance", "gblm", "gblm_scores"]


def gblm_scores(
    weight: ArrayLike, second_moment: ArrayLike, gradient_square: ArrayLike, *, alpha: float = 100.0
) -> NDArray[np.float64]:
    """The square of the paper's score, float64 [N, K].

    weight: [N, K]; second_moment: as for `wanda_scores`; gradient_square: the mean over samples of the squared
    gradient of the loss by each weight [N, K], 0 or more; alpha: the paper's 100 is for gradients as they are, of the mean loss.
    """
    w, square = np.asarray(weight, np.float64), np.asarray(gradient_square, np.float64)
    if square.shape != w.shape or not (square >= 0).all():
        raise CalibrationError(
            f"a weight {w.shape} needs squared gradients of its shape, none negative; found {square.shape}"
        )
    return np.asarray(np.square(np.sqrt(wanda_scores(w, second_moment)) + alpha * np.abs(w) * np.sqrt(square)))


def balance(power: ArrayLike, gradient_square: ArrayLike) -> float:
    """The alpha with which inputs and gradients weigh the same in a layer, whatever the units of the loss; 0 without gradients.

    power: E[x^2] of the inputs, [K] or for each weight [N, K]; gradient_square: [N, K].
    """
    mean = float(np.sqrt(np.asarray(gradient_square, np.float64)).mean())
    return float(np.sqrt(np.asarray(power, np.float64)).mean()) / mean if mean > 0 else 0.0


def gblm(
    weight: ArrayLike,
    second_moment: ArrayLike,
    gradient_square: ArrayLike,
    structure: Structure,
    *,
    alpha: float = 100.0,
    by_row: bool = True,
) -> Mask:
    """Keep-mask bool [N, K] for a sparse structure, as `wanda` chooses it from its scores."""
    return mask_of_scores(gblm_scores(weight, second_moment, gradient_square, alpha=alpha), structure, by_row=by_row)
