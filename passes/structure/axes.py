"""Which indices of which axes go together: labels carried through a graph (coupling.py has the operators' rules).

Every constant gets a label for each index of each axis. A computed value's axis carries the labels of the weights that made it, or
None where nothing may be removed from it (batch, space, time). Where two labelled axes meet, their labels are tied; where a labelled
axis meets something that needs all of it, its labels are pinned. What is tied goes together or stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["Axes", "Axis", "Labels", "Reader", "Slot"]

Axis = NDArray[np.int64] | None
"""Labels of one axis, int64 [size]; None: nothing may be removed."""

Axes = list[Axis]


@dataclass(frozen=True, eq=False)
class Slot:
    """A constant with the labels of its axes. Vectors that several nodes read have a slot for each reader, larger tensors one."""

    value: ir.Value
    axes: tuple[Axis, ...]
    readers: list[tuple[ir.Node, int]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Reader:
    """A linear layer that sums over labelled inputs: `inputs`, int64 [channels], are the labels of the channels it reads (a
    convolution with g groups reads channels / g in each)."""

    node: ir.Node
    inputs: NDArray[np.int64]


class Labels:
    """What a walk through the graph collects."""

    def __init__(self) -> None:
        self.count = 0
        self.of: dict[ir.Value, Axes] = {}
        self.slots: list[Slot] = []
        self.ties: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self.pins: list[tuple[NDArray[np.int64], str]] = []
        self.heads: list[NDArray[np.int64]] = []
        """Labels that number the matrices of a batched product of two computed values: attention heads."""
        self.opaque: list[NDArray[np.int64]] = []
        """Labels summed over by a product without a constant weight."""
        self.readers: list[Reader] = []
        self._shared: dict[ir.Value, Slot] = {}

    def fresh(self, size: int) -> Axis:
        """New labels; an axis of size 1 has none, for it cannot lose anything."""
        if size == 1:
            return None
        self.count += size
        return np.arange(self.count - size, self.count, dtype=np.int64)

    def read(self, node: ir.Node, index: int) -> Axes:
        """The axes of an input of `node`."""
        value = node.inputs[index]
        assert value is not None
        if value.const_value is None:
            return self.of[value]
        slot = self._shared.get(value)
        if slot is None:
            slot = Slot(value, tuple(self.fresh(size) for size in sizes(value)))
            self.slots.append(slot)
            if len(slot.axes) > 1:
                self._shared[value] = slot
        slot.readers.append((node, index))
        return list(slot.axes)

    def tie(self, one: Axis, other: Axis, why: str) -> Axis:
        """Both go together, index by index (a broadcast shape is allowed); with None, the other is pinned."""
        if one is None or other is None:
            self.pin(one if other is None else other, why)
            return None
        a, b = np.broadcast_arrays(one, other)
        if a is not b and (a != b).any():
            self.ties.append((a.reshape(-1), b.reshape(-1)))
        return one

    def pin(self, axis: Axis, why: str) -> None:
        """Nothing is removed from this axis."""
        if axis is not None:
            self.pins.append((axis.reshape(-1), why))

    def pin_all(self, axes: Sequence[Axis], why: str) -> None:
        """Nothing is removed from any of these axes."""
        for axis in axes:
            self.pin(axis, why)


def sizes(value: ir.Value | None) -> tuple[int, ...]:
    """The static shape of a value."""
    assert value is not None
    if value.const_value is not None:
        return tuple(int(size) for size in value.const_value.shape.numpy())
    assert value.shape is not None
    return tuple(int(size) for size in value.shape.numpy())


def numbers(value: ir.Value | None) -> list[Any] | None:
    """The elements of a constant as a flat list; None if the value is missing or computed."""
    if value is None or value.const_value is None:
        return None
    return list(value.const_value.numpy().reshape(-1).tolist())
