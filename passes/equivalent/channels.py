"""The channels of a value, followed through a graph to every constant that has them.

Values whose channels must change together are found from operator to operator (steps.py), backwards to the weights that make them
and forwards to those that read them. Nothing changes unless all of them are known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsec.passes.constants import register_constant
from sparsec.passes.equivalent.steps import Kind, Refused, Space, Touch, shape_of, step

__all__ = ["Channels", "channels_of", "input_space", "output_space"]

_LINEAR = frozenset(["MatMul", "Gemm", "Conv", "Gather"])
"""Operators whose inputs' channels are not their outputs': both may be followed."""
_MOST_PRODUCTS = 4
"""Products of two values whose sides are tried in turn."""


@dataclass(frozen=True, eq=False)
class Channels:
    """`count` channels and all constants that have them, each use of a constant once; in order of the graph."""

    count: int
    kind: Kind
    touches: tuple[Touch, ...]

    def reorder(self, model: ir.Model, order: NDArray[np.intp]) -> None:
        """Channel c becomes what channel order[c] was, in every constant."""
        assert self.kind == "order"
        for change in _changes(self.touches):
            _set(model, change, self.moved(_array(change[0].value), change[0].space, order))

    def moved(self, array: NDArray[Any], space: Space, order: NDArray[np.intp]) -> NDArray[Any]:
        """An array that has the channels in `space`, reordered."""
        index = np.arange(array.shape[space.axis]).reshape(-1, self.count, space.inner)
        return np.take(array, index[:, order].reshape(-1), space.axis)

    def rescale(self, model: ir.Model, factors: NDArray[np.floating]) -> None:
        """Multiply the channels [count] by positive factors; what reads them divides by them."""
        assert self.kind == "scale"
        for change in _changes(self.touches):
            space, array = change[0].space, _array(change[0].value)
            index = np.arange(array.shape[space.axis]) // space.inner % self.count
            shape = [1] * array.ndim
            shape[space.axis] = -1
            factor = np.asarray(factors, np.float64)[index].reshape(shape) ** change[0].power
            _set(model, change, (array * factor).astype(array.dtype))


def input_space(node: ir.Node) -> tuple[ir.Value, int]:
    """The value a linear node reads, and the axis of its channels; of a flattened image the image."""
    value = node.inputs[0]
    assert value is not None
    if node.op_type == "Conv":
        return value, 1
    made = value.producer()
    if made is not None and made.op_type in ("Flatten", "Reshape") and len(shape_of(value)) == 2:
        source = made.inputs[0]
        if source is not None and len(shape_of(source)) == 4 and shape_of(source)[1] > 1:
            return source, 1
    return value, len(shape_of(value)) - 1


def output_space(node: ir.Node) -> tuple[ir.Value, int]:
    """The value a linear node (or a lookup) makes, and the axis of its channels."""
    value = node.outputs[0]
    return value, 1 if node.op_type == "Conv" else len(shape_of(value)) - 1


def channels_of(model: ir.Model, value: ir.Value, axis: int, kind: Kind) -> Channels:
    """Follow the channels of `value` along `axis`. Raises Refused where they end in something that cannot take the change."""
    inside = set(model.graph)

    def attempt(sides: dict[ir.Node, int]) -> Channels:
        try:
            return _follow(model, inside, value, axis, kind, sides)
        except _Fork as fork:
            node = fork.node
        if len(sides) == _MOST_PRODUCTS:
            raise Refused("there are too many products of two values on the way")
        try:
            return attempt({**sides, node: 0})
        except Refused as first:
            try:
                return attempt({**sides, node: 1})
            except Refused:
                raise first from None

    return attempt({})


class _Fork(Exception):
    """Which side of a product carries the factors is open."""

    def __init__(self, node: ir.Node) -> None:
        super().__init__()
        self.node = node


def _follow(
    model: ir.Model, inside: set[ir.Node], value: ir.Value, axis: int, kind: Kind, sides: dict[ir.Node, int]
) -> Channels:
    count = shape_of(value)[axis]
    if count < 2:
        raise Refused("there is one channel")
    spaces: dict[ir.Value, Space] = {}
    handled: defaultdict[ir.Node, set[ir.Value]] = defaultdict(set)
    touches: list[Touch] = []
    todo = [(value, Space(axis))]
    while todo:
        current, space = todo.pop()
        if current in spaces:
            if spaces[current] != space:
                raise Refused(f"'{current.name}' would have the channels in two places")
            continue
        spaces[current] = space
        producer = current.producer()
        if producer is None:
            raise Refused(f"'{current.name}' is an input of the model")
        if current.is_graph_output():
            raise Refused(f"'{current.name}' is an output of the model")
        for node in (producer, *dict.fromkeys(user for user, _ in current.uses())):
            if current in handled[node]:
                continue
            if handled[node] and node.op_type not in _LINEAR:
                raise Refused(f"{node.op_type} '{node.name}' would have the channels twice")
            if node not in inside:
                raise Refused(f"{node.op_type} '{node.name}' is part of a branch or loop")
            if kind == "scale" and current is node.outputs[0] and node not in sides and _is_open(node):
                raise _Fork(node)
            found = step(node, current, space, kind, sides.get(node, 0))
            handled[node] |= {current, *(other for other, _ in found.values)}
            touches += found.touches
            todo += found.values
    numbers = {node: number for number, node in enumerate(model.graph)}
    touches = [touch for touch in touches if kind == "order" or touch.power]
    touches.sort(key=lambda touch: (numbers[touch.node], touch.index, touch.space.axis))
    _check(touches)
    return Channels(count, kind, tuple(touches))


def _is_open(node: ir.Node) -> bool:
    """A product of two values."""
    return node.op_type == "Mul" and not node.domain and not any(v is None or v.is_initializer() for v in node.inputs)


def _changes(touches: Sequence[Touch]) -> list[list[Touch]]:
    """Touches that change one axis of one constant alike."""
    found: defaultdict[tuple[ir.Value, Space, int], list[Touch]] = defaultdict(list)
    for touch in touches:
        found[touch.value, touch.space, touch.power].append(touch)
    return list(found.values())


def _check(touches: Sequence[Touch]) -> None:
    """Whatever reads a weight must read it changed, along the same axes; small constants get a copy for those that do."""
    axes: defaultdict[ir.Value, set[Space]] = defaultdict(set)
    for change in _changes(touches):
        value, space = change[0].value, change[0].space
        weight = any(touch.role != "each" for touch in change)
        if weight and not _all_readers(change):
            raise Refused(f"'{value.name}' is also read elsewhere")
        axes[value].add(space)
        if len(axes[value]) > 1 and (not weight or len({s.axis for s in axes[value]}) < len(axes[value])):
            raise Refused(f"'{value.name}' would have the channels in two places")


def _all_readers(change: Sequence[Touch]) -> bool:
    value = change[0].value
    return {(touch.node, touch.index) for touch in change} == set(value.uses()) and not value.is_graph_output()


def _set(model: ir.Model, change: Sequence[Touch], array: NDArray[np.generic]) -> None:
    """Give those that a change is for the changed constant."""
    value = change[0].value
    if _all_readers(change):
        value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
        return
    own = register_constant(model, f"{value.name}.own", array)
    for touch in change:
        touch.node.replace_input_with(touch.index, own)


def _array(value: ir.Value) -> NDArray[Any]:
    assert value.const_value is not None
    return value.const_value.numpy()
