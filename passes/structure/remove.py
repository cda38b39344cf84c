"""Take units out of a graph: constants lose indices, operators that know sizes get new ones, every shape is as it must be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsec.passes.constants import register_constant
from sparsec.passes.structure.axes import Axes, numbers, sizes
from sparsec.passes.structure.groups import Coupling, Family

__all__ = ["remove"]

Keep = NDArray[np.bool_]


def remove(model: ir.Model, coupling: Coupling, removed: Sequence[tuple[Family, NDArray[np.intp]]]) -> None:
    """Remove units in place.

    Args:
        coupling: of this model as it is; of no use afterwards.
        removed: families and the units that go, indices into a family; of each axis something stays.
    """
    keep = np.ones(coupling.labels.count, bool)
    for family, units in removed:
        keep[family.components[units]] = False
    keep = keep[coupling.component]
    if keep.all():
        return
    for node in list(model.graph):
        if not node.domain and node.op_type in _REWRITES:
            _REWRITES[node.op_type](model, node, coupling.labels.of, keep)
    _cut_constants(model, coupling, keep)
    for value, axes in coupling.labels.of.items():
        if any(axis is not None for axis in axes) and value.shape is not None:
            value.shape = ir.Shape(_after(sizes(value), axes, keep))


def _after(shape: Sequence[int], axes: Axes, keep: Keep) -> list[int]:
    return [size if axis is None else int(np.count_nonzero(keep[axis])) for size, axis in zip(shape, axes, strict=True)]


def _cut_constants(model: ir.Model, coupling: Coupling, keep: Keep) -> None:
    """Vectors with several readers may lose different indices for each: then every reader gets its own."""
    by_value: dict[ir.Value, list[tuple[Any, NDArray[Any]]]] = defaultdict(list)
    for slot in coupling.labels.slots:
        tensor = slot.value.const_value
        if tensor is None:
            continue
        array = tensor.numpy()
        for axis, one in enumerate(slot.axes):
            if one is not None:
                array = np.compress(keep[one], array, axis)
        by_value[slot.value].append((slot, array))
    for value, entries in by_value.items():
        tensor = value.const_value
        assert tensor is not None
        same = all(np.array_equal(entries[0][1], array) for _, array in entries)
        if same and entries[0][1].shape == tuple(tensor.shape.numpy()):
            continue
        value.const_value = ir.tensor(np.ascontiguousarray(entries[0][1]), name=value.name)
        value.shape = ir.Shape(entries[0][1].shape)
        for number, (slot, array) in enumerate([] if same else entries[1:], 1):
            made = register_constant(model, f"{value.name}.{number}", array)
            for node, index in slot.readers:
                node.replace_input_with(index, made)


def _set(model: ir.Model, node: ir.Node, index: int, what: str, given: Sequence[int]) -> None:
    made = register_constant(model, f"{node.name}.{what}", np.array(given, np.int64))
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, made)


_Of = dict[ir.Value, Axes]


def _axes_of(node: ir.Node, of: _Of) -> Axes:
    value = node.inputs[0]
    assert value is not None
    return of.get(value, [None] * len(sizes(value)))


def _touched(axes: Axes, keep: Keep) -> bool:
    return any(axis is not None and not keep[axis].all() for axis in axes)


def _reshape(model: ir.Model, node: ir.Node, of: _Of, keep: Keep) -> None:
    out = node.outputs[0]
    if _touched(of[out], keep):
        _set(model, node, 1, "shape", _after(sizes(out), of[out], keep))


def _split(model: ir.Model, node: ir.Node, of: _Of, keep: Keep) -> None:
    axis = node.attributes.get_int("axis", 0) % len(of[node.outputs[0]])
    if _touched([of[out][axis] for out in node.outputs], keep):
        node.attributes.pop("num_outputs", None)
        _set(model, node, 1, "split", [_after(sizes(out), of[out], keep)[axis] for out in node.outputs])


def _slice(model: ir.Model, node: ir.Node, of: _Of, keep: Keep) -> None:
    axes = _axes_of(node, of)
    if not _touched(axes, keep):
        return
    shape = sizes(node.inputs[0])
    starts, ends = (numbers(node.inputs[i]) or [] for i in (1, 2))
    places = numbers(node.inputs[3]) if len(node.inputs) > 3 else None
    for number, axis in enumerate(places or range(len(starts))):
        one = axes[axis]
        if one is not None:
            first, last, _ = slice(starts[number], ends[number]).indices(shape[axis])
            starts[number] = int(np.count_nonzero(keep[one[:first]]))
            ends[number] = starts[number] + int(np.count_nonzero(keep[one[first:last]]))
    _set(model, node, 1, "starts", starts)
    _set(model, node, 2, "ends", ends)


def _pad(model: ir.Model, node: ir.Node, of: _Of, keep: Keep) -> None:
    out = node.outputs[0]
    if not _touched(of[out], keep):
        return
    amounts, shape = numbers(node.inputs[1]) or [], sizes(node.inputs[0])
    for axis, one in enumerate(of[out]):
        if one is not None:
            before, last = amounts[axis], amounts[axis] + shape[axis]
            amounts[axis] = int(np.count_nonzero(keep[one[:before]]))
            amounts[axis + len(shape)] = int(np.count_nonzero(keep[one[last:]]))
    _set(model, node, 1, "pads", amounts)


def _expand(model: ir.Model, node: ir.Node, of: _Of, keep: Keep) -> None:
    out = node.outputs[0]
    if _touched(of[out], keep):
        _set(model, node, 1, "shape", _after(sizes(out), of[out], keep))


def _conv(model: ir.Model, node: ir.Node, of: _Of, keep: Keep) -> None:
    """A depthwise convolution has as many groups as channels."""
    groups = node.attributes.get_int("group", 1)
    inputs = _axes_of(node, of)[1]
    if groups > 1 and groups == sizes(node.inputs[0])[1] and inputs is not None:
        node.attributes["group"] = ir.AttrInt64("group", int(np.count_nonzero(keep[inputs])))


_REWRITES = {
    "Reshape": _reshape,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Expand": _expand,
    "Conv": _conv,
}
