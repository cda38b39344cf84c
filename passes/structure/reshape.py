"""Labels of axes that are merged and split: images flattened into rows, rows split into heads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sparsec.passes.structure.axes import Axes, Axis, Labels

__all__ = ["blocks", "reshaped"]


def reshaped(labels: Labels, axes: Axes, before: Sequence[int], after: Sequence[int]) -> Axes:
    """Labels after a Reshape from the sizes `before` to `after`.

    Merged axes keep labels if one of them has some: [C, H * W] -> a label for every H * W neighbours. An axis that is split passes
    its labels to one of the parts - the outermost, whose indices then go as wholes (heads), unless the labels repeat like an inner one.
    """
    result: Axes = [None] * len(after)
    for ins, outs in blocks(before, after):
        if len(ins) == len(outs) == 1:
            result[outs[0]] = axes[ins[0]]
            continue
        merged = _merged(labels, [axes[i] for i in ins], [before[i] for i in ins])
        place, axis = _split(labels, merged, [after[i] for i in outs])
        if axis is not None:
            result[outs[place]] = axis
    return result


def blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The finest pairs of runs of axes that hold the same elements; axes of size 1 are left out."""
    ins, outs = ([i for i, size in enumerate(shape) if size != 1] for shape in (before, after))
    found: list[tuple[list[int], list[int]]] = []
    while ins or outs:
        left, right = [ins.pop(0)] if ins else [], [outs.pop(0)] if outs else []
        while (a := math.prod(before[i] for i in left)) != (b := math.prod(after[i] for i in right)):
            if a < b:
                left.append(ins.pop(0))
            else:
                right.append(outs.pop(0))
        found.append((left, right))
    return found


def _merged(labels: Labels, axes: Sequence[Axis], sizes: Sequence[int]) -> Axis:
    named = [i for i, axis in enumerate(axes) if axis is not None]
    if len(named) != 1:
        labels.pin_all(axes, "several axes with channels are merged by a Reshape")
        return None
    axis = axes[named[0]]
    assert axis is not None
    return np.tile(np.repeat(axis, math.prod(sizes[named[0] + 1 :])), math.prod(sizes[: named[0]]))


def _split(labels: Labels, merged: Axis, sizes: Sequence[int]) -> tuple[int, Axis]:
    """(which part has the labels, they)."""
    if merged is None:
        return 0, None
    grid = merged.reshape(tuple(sizes))
    for place in range(len(sizes)):
        rows = np.moveaxis(grid, place, 0).reshape(sizes[place], -1)
        if (rows == rows[:, :1]).all():
            return place, rows[:, 0].copy()
    rows = grid.reshape(sizes[0], -1)
    labels.tie(rows[:, :1], rows, "")
    return 0, rows[:, 0].copy()
