"""What a scheme in one layer does to the outputs of the model: the layer's own error times how much that matters.

To first order the squared errors of the outputs that changes in several layers cause add up (their errors are hardly correlated), and
that of one layer is proportional to the layer's own output error. The factor is measured for a few schemes of each layer and
interpolated between them: networks amplify small and large errors differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["output_errors", "probed"]


def probed(layer_errors: Sequence[float], most: int = 3) -> list[int]:
    """Which schemes of a layer to measure: indices of at most `most` that spread evenly over its errors, ends included, exact ones
    (error 0) never."""
    order = [int(index) for index in np.argsort(layer_errors, kind="stable") if layer_errors[index] > 0]
    if len(order) <= most:
        return order
    logs = np.log([layer_errors[index] for index in order])
    wanted = np.linspace(logs[0], logs[-1], most)
    return sorted({order[int(np.abs(logs - place).argmin())] for place in wanted}, key=lambda i: layer_errors[i])


def output_errors(layer_errors: Sequence[float], measured: Mapping[int, float]) -> NDArray[np.float64]:
    """Relative squared error of the model's outputs for each scheme of a layer, float64 [S].

    layer_errors: relative squared error of the layer's outputs (or of its weight), 0 where exact. measured: the model's, by index, for
    some of the schemes. In between, the logarithm of the ratio of the two is interpolated over the logarithm of the layer's error.
    """
    own = np.asarray(layer_errors, np.float64)
    points = sorted((own[i], value / own[i]) for i, value in measured.items() if own[i] > 0 and value > 0)
    if not points:
        return np.zeros(len(own))
    x, ratio = np.log([p[0] for p in points]), np.log([p[1] for p in points])
    result = np.zeros(len(own))
    live = own > 0
    result[live] = own[live] * np.exp(np.interp(np.log(own[live]), x, ratio))
    for index, value in measured.items():
        result[index] = value
    return result
