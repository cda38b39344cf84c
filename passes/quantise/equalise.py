"""Ranges of channels made equal on both sides, so that one scale serves all rows of a weight; no data.

M. Nagel, M. van Baalen, T. Blankevoort, M. Welling, "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019.
Between two layers with a function that commutes with positive factors (Relu), a channel's row of the first may be multiplied by any
f > 0 and its column of the second divided by it. f = sqrt(r2 / r1) makes the largest magnitudes of both equal, which is the best for
the product of the channels' precisions; in a chain of layers pairs take turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Link", "Side", "equalised"]

_LARGEST = 2.0**10
"""Bound of a factor, and of one over it: channels that are nearly dead on one side."""


@dataclass(frozen=True)
class Side:
    """An axis of a weight that has the channels: index i belongs to channel (i // inner) % count."""

    weight: str
    axis: int
    inner: int = 1


@dataclass(frozen=True)
class Link:
    """`count` channels, the weights that make them and those that read them, at least one each."""

    count: int
    makers: tuple[Side, ...]
    readers: tuple[Side, ...]


def equalised(
    weights: Mapping[str, NDArray[np.floating]], links: Sequence[Link], *, sweeps: int = 40
) -> list[NDArray[np.float64]]:
    """Positive factors float64 [count] of each link, by which makers are multiplied and readers divided.

    sweeps: at most so many over all links; they end when no factor changes by a thousandth. A channel that is zero on one side
    keeps 1.
    """
    sizes = {name: np.abs(np.asarray(weight, np.float64)) for name, weight in weights.items()}
    found = [np.ones(link.count) for link in links]
    for _ in range(sweeps):
        largest = 0.0
        for index, link in enumerate(links):
            made, read = (_ranges(sizes, sides, link.count) for sides in (link.makers, link.readers))
            alive = (made > 0) & (read > 0)
            factor = np.sqrt(np.where(alive, read, 1) / np.where(alive, made, 1))
            factor = np.clip(found[index] * factor, 1 / _LARGEST, _LARGEST) / found[index]
            found[index] *= factor
            for sides, power in ((link.makers, 1), (link.readers, -1)):
                for side in sides:
                    sizes[side.weight] = sizes[side.weight] * _along(sizes[side.weight], side, factor**power)
            largest = max(largest, float(np.abs(np.log(factor)).max()))
        if largest < 1e-3:
            break
    return found


def _ranges(sizes: Mapping[str, NDArray[np.float64]], sides: Sequence[Side], count: int) -> NDArray[np.float64]:
    """The largest magnitude of each channel over all sides."""
    result = np.zeros(count)
    for side in sides:
        array = np.moveaxis(sizes[side.weight], side.axis, 0)
        by_index = array.reshape(len(array), -1).max(1)
        result = np.maximum(result, by_index.reshape(-1, count, side.inner).max((0, 2)))
    return result


def _along(array: NDArray[np.float64], side: Side, factor: NDArray[np.float64]) -> NDArray[np.float64]:
    index = np.arange(array.shape[side.axis]) // side.inner % len(factor)
    shape = [1] * array.ndim
    shape[side.axis] = -1
    return factor[index].reshape(shape)
