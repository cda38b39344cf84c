"""The knee of a front: where saving more begins to cost much."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["knee"]


def knee(sizes: Sequence[float], errors: Sequence[float]) -> int | None:
    """Index of the point of a falling front that lies farthest below the straight line between its ends, sizes in proportion and
    errors as logarithms (Satopaa, Albrecht, Irwin and Raghavan, "Finding a Kneedle in a Haystack", 2011); None where no point does.

    sizes ascend; points without error count as the smallest error there is.
    """
    x, y = np.asarray(sizes, np.float64), np.asarray(errors, np.float64)
    if len(x) < 3 or x[-1] <= x[0] or not (y > 0).any():
        return None
    y = np.log(np.maximum(y, y[y > 0].min()))
    if y[0] <= y[-1]:
        return None
    below = 1 - (x - x[0]) / (x[-1] - x[0]) - (y - y[-1]) / (y[0] - y[-1])
    best = int(below.argmax())
    return best if below[best] > 1e-9 else None
