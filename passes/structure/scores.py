"""What a unit is worth: pure functions of weights and of the moments of inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsec.passes.sparsify.fluctuation import fluctuation_masks, fluctuation_scores
from sparsec.passes.structure.groups import Family
from sparsec.passes.structure.moments import Spread, linear_use

__all__ = ["chosen", "fluctuations", "magnitudes", "squared_norms"]

Vector = NDArray[np.float64]


def magnitudes(families: Sequence[Family]) -> list[Vector]:
    """`squared_norms` of the units of each family, vectors left out."""
    found = []
    for family in families:
        tensors = [(t.slot.value.const_value, t) for t in family.tied if len(t.slot.axes) > 1]
        parts = [(tensor.numpy(), t.axis, t.units) for tensor, t in tensors if tensor is not None]
        found.append(squared_norms(parts, family.size))
    return found


def fluctuations(families: Sequence[Family], spreads: Mapping[ir.Node, Spread]) -> list[Vector]:
    """FLAP's score of each unit (sparsify/fluctuation.py), summed over the layers that read it."""
    found = []
    for family in families:
        total = np.zeros(family.size)
        for reader, units in family.reads():
            use = linear_use(reader.node)
            assert use is not None
            weight = use.node.inputs[1]
            assert weight is not None
            assert weight.const_value is not None
            array = weight.const_value.numpy()
            matrix = array.T if use.flipped else array.reshape(len(array), -1)
            variance = spreads[reader.node].variance
            each = sum(
                fluctuation_scores(part, spread)
                for part, spread in zip(np.split(matrix, len(variance)), variance, strict=True)
            )
            # A convolution reads each channel once for every place of its kernel.
            by_channel = np.asarray(each).reshape(len(units), -1).sum(1)
            np.add.at(total, units[units >= 0], by_channel[units >= 0])
        found.append(total)
    return found


def squared_norms(parts: Sequence[tuple[NDArray[np.float32], int, NDArray[np.int64]]], count: int) -> Vector:
    """Squared norm of all weights of each unit, float64 [count]; each tensor counts relative to its mean square, so that tensors of
    different scales may be added (Fang and others, "DepGraph", 2023).

    parts: tensor, axis, and the unit of each index of that axis (-1: none).
    """
    scores = np.zeros(count)
    for tensor, axis, units in parts:
        square = np.square(tensor, dtype=np.float64)
        level = square.mean()
        each = square.sum(tuple(i for i in range(tensor.ndim) if i != axis))
        mine = units >= 0
        if level > 0:
            np.add.at(scores, units[mine], each[mine] / level)
    return scores


def chosen(scores: Sequence[Vector], costs: Sequence[float], share: float, *, together: bool) -> list[NDArray[np.intp]]:
    """Which units of each family go: `share` of each family (rounded to the nearest number of units), or of what all families
    cost `together` by standardised scores. The lowest go, of equals the first; at least one unit of each family stays."""
    if together:
        return [np.flatnonzero(~mask) for mask in fluctuation_masks(scores, 100 * share, costs=costs)]
    found = []
    for one in scores:
        count = min(int(np.floor(share * one.size + 0.5)), one.size - 1)
        found.append(np.sort(np.argsort(one, kind="stable")[:count]))
    return found
