"""Channels that are the same number at every place, whatever the inputs: found by walking the graph with what is known of each channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsec.passes.structure.axes import numbers, sizes
from sparsec.passes.structure.coupling import ELEMENTWISE
from sparsec.passes.structure.moments import linear_use
from sparsec.passes.structure.reshape import blocks
from sparsec.reference import Reference

__all__ = ["Known", "constant_channels", "padded"]

Floats = NDArray[np.float64]

Known = tuple[int, Floats]
"""(axis, float64 [size]): of each index of that axis, the number all its elements are, or NaN."""

_Of = dict[ir.Value, Known]


def constant_channels(model: ir.Model) -> _Of:
    """What is known of each value; values of which nothing is known are missing."""
    known: _Of = {}
    for node in model.graph:
        rule = None if node.domain else _RULES.get(node.op_type)
        if rule is None or node.outputs[0].dtype != ir.DataType.FLOAT:
            continue
        for value, found in zip(node.outputs, rule(node, known), strict=False):
            if found is not None and not np.isnan(found[1]).all():
                known[value] = found
    return known


def padded(node: ir.Node) -> bool:
    """Whether a convolution or pooling reads zeros around its input."""
    automatic = node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return automatic or any(node.attributes.get_ints("pads", ()))


def _unknown(size: int) -> Floats:
    return np.full(size, np.nan)


def _linear(node: ir.Node, known: _Of) -> list[Known | None]:
    use, x, out = linear_use(node), node.inputs[0], node.outputs[0]
    if use is None or x is None:
        return [None]
    axis = 1 if node.op_type == "Conv" else len(sizes(out)) - 1
    tensor = use.node.inputs[1]
    assert tensor is not None
    assert tensor.const_value is not None
    weight = tensor.const_value.numpy().astype(np.float64)
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1)
        weight = weight.reshape(groups, -1, weight.shape[1], int(np.prod(weight.shape[2:])))
    else:
        groups = 1
        weight = (weight.T if use.flipped else weight)[None, :, :, None]
    place, inputs = known.get(x, (axis if node.op_type == "Conv" else len(sizes(x)) - 1, _unknown(0)))
    if inputs.size == 0 or place != (1 if node.op_type == "Conv" else len(sizes(x)) - 1):
        inputs = _unknown(groups * weight.shape[2])
    if padded(node):
        inputs = np.where(inputs == 0, inputs, np.nan)
    inputs = inputs.reshape(groups, 1, -1)
    total, dead = weight.sum(3), (weight == 0).all(3)
    terms = np.where(dead, 0.0, total * np.where(np.isnan(inputs), 0.0, inputs))
    blind = (~dead & np.isnan(inputs)).any(2)
    made = np.where(blind, np.nan, terms.sum(2)).reshape(-1)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        if bias.const_value is None or bias.const_value.size not in (1, made.size):
            return [None]
        made = made + bias.const_value.numpy().astype(np.float64).reshape(-1)
    return [(axis, made)]


def _elementwise(node: ir.Node, known: _Of) -> list[Known | None]:
    shape = sizes(node.outputs[0])
    axes = {len(shape) - len(sizes(v)) + known[v][0] for v in node.inputs if v is not None and v in known}
    if len(axes) != 1:
        return [None]
    (axis,) = axes
    operands: list[Floats | None] = []
    for value in node.inputs:
        operands.append(None if value is None else _along(value, axis, shape, known))
    blind = np.any([np.isnan(one) for one in operands if one is not None], axis=0)
    made = _run(node, [None if one is None else np.where(np.isnan(one), 0.0, one) for one in operands])
    if made is None or made.shape != blind.shape:
        return [None]
    made = np.where(blind, np.nan, made)
    if node.op_type == "Mul":
        made[np.any([one == 0 for one in operands if one is not None], axis=0)] = 0
    return [(axis, made)]


def _along(value: ir.Value, axis: int, shape: tuple[int, ...], known: _Of) -> Floats:
    """An operand of a broadcast as numbers along one axis of the result."""
    given, size = sizes(value), shape[axis]
    place = axis - (len(shape) - len(given))
    if value.const_value is not None:
        array = value.const_value.numpy()
        if array.size == 1:
            return np.full(size, float(array.reshape(())))
        if place >= 0 and array.size == given[place]:
            return array.reshape(-1).astype(np.float64)
        return _unknown(size)
    if value in known and known[value][1].size == size:
        return known[value][1]
    return _unknown(size)


def _run(node: ir.Node, operands: list[Floats | None]) -> Floats | None:
    """The operator on vectors, by onnxruntime."""
    inputs: list[ir.Value | None] = []
    feed = {}
    for number, (value, given) in enumerate(zip(node.inputs, operands, strict=True)):
        if value is None or given is None:
            inputs.append(None)
            continue
        if value.const_value is not None and not value.const_value.shape.numpy():
            inputs.append(ir.Value(name=f"c{number}", const_value=value.const_value))
            continue
        if value.dtype != ir.DataType.FLOAT:
            return None
        feed[f"i{number}"] = given.astype(np.float32)
        inputs.append(ir.Value(name=f"i{number}", shape=ir.Shape(given.shape), type=ir.TensorType(ir.DataType.FLOAT)))
    copy = ir.node(node.op_type, inputs, attributes=dict(node.attributes))
    copy.outputs[0].name, copy.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    constants = [value for value in inputs if value is not None and value.const_value is not None]
    graph = ir.Graph(
        [value for value in inputs if value is not None and value.const_value is None], [copy.outputs[0]],
        nodes=[copy], initializers=constants, opset_imports=dict(node.graph.opset_imports if node.graph else {}), name="one",
    )  # fmt: skip
    return np.asarray(Reference(ir.Model(graph, ir_version=10)).run(feed)["y"], np.float64)


def _first(node: ir.Node, known: _Of) -> Known | None:
    value = node.inputs[0]
    return None if value is None else known.get(value)


def _pool(node: ir.Node, known: _Of) -> list[Known | None]:
    found = _first(node, known)
    if found is None or found[0] != 1:
        return [None]
    if node.op_type == "AveragePool" and padded(node) and node.attributes.get_int("count_include_pad", 0) == 1:
        return [(1, np.where(found[1] == 0, found[1], np.nan))]
    return [found]


def _mean(node: ir.Node, known: _Of) -> list[Known | None]:
    found, given = _first(node, known), numbers(node.inputs[1]) if len(node.inputs) > 1 else None
    if found is None or not given:
        return [None]
    axis, values = found
    rank = len(sizes(node.inputs[0]))
    gone = {place % rank for place in given}
    if axis in gone:
        return [None]
    if node.attributes.get_int("keepdims", 1) == 0:
        axis -= sum(place < axis for place in gone)
    return [(axis, values)]


def _transpose(node: ir.Node, known: _Of) -> list[Known | None]:
    found = _first(node, known)
    if found is None:
        return [None]
    order = list(node.attributes.get_ints("perm", tuple(reversed(range(len(sizes(node.inputs[0])))))))
    return [(order.index(found[0]), found[1])]


def _reshape(node: ir.Node, known: _Of) -> list[Known | None]:
    found, before, after = _first(node, known), sizes(node.inputs[0]), sizes(node.outputs[0])
    for ins, outs in blocks(before, after):
        if found is None or found[0] not in ins:
            continue
        at = ins.index(found[0])
        inner = int(np.prod([before[i] for i in ins[at + 1 :]]))
        outer = int(np.prod([before[i] for i in ins[:at]]))
        flat = np.tile(np.repeat(found[1], inner), outer)
        rows = flat.reshape(after[outs[0]], -1)
        same = (rows == rows[:, :1]).all(1)
        return [(outs[0], np.where(same, rows[:, 0], np.nan))]
    return [None]


def _concat(node: ir.Node, known: _Of) -> list[Known | None]:
    shape = sizes(node.outputs[0])
    axis = node.attributes.get_int("axis", 0) % len(shape)
    parts = []
    for value in node.inputs:
        place, values = known.get(value, (axis, _unknown(sizes(value)[axis]))) if value is not None else (axis, None)
        if values is None or place != axis:
            values = _unknown(sizes(value)[axis])
        parts.append(values)
    return [(axis, np.concatenate(parts))]


def _split(node: ir.Node, known: _Of) -> list[Known | None]:
    found = _first(node, known)
    if found is None:
        return [None]
    axis = node.attributes.get_int("axis", 0) % len(sizes(node.inputs[0]))
    if axis != found[0]:
        return [found for _ in node.outputs]
    ends = np.cumsum([sizes(out)[axis] for out in node.outputs])[:-1]
    return [(axis, part) for part in np.split(found[1], ends)]


def _slice(node: ir.Node, known: _Of) -> list[Known | None]:
    found = _first(node, known)
    if found is None:
        return [None]
    lists: list[list[Any] | None] = [numbers(value) for value in node.inputs[1:]]
    starts, ends = lists[0], lists[1]
    if starts is None or ends is None:
        return [None]
    rank = len(sizes(node.inputs[0]))
    axes = (lists[2] if len(lists) > 2 else None) or list(range(len(starts)))
    steps = (lists[3] if len(lists) > 3 else None) or [1] * len(starts)
    values = found[1]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=False):
        if axis % rank == found[0]:
            values = values[start:end:step]
    return [(found[0], values)]


def _pad(node: ir.Node, known: _Of) -> list[Known | None]:
    """Zeros around: channels they are added to stay known only where they are 0."""
    amounts, shape = numbers(node.inputs[1]), sizes(node.inputs[0])
    filled = numbers(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else [0.0]
    if (
        amounts is None
        or min(amounts) < 0
        or filled != [0.0]
        or node.attributes.get_string("mode", "constant") != "constant"
    ):
        return [None]
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        return [None]
    axes = [axis for axis in range(len(shape)) if amounts[axis] or amounts[axis + len(shape)]]
    found = _first(node, known)
    axis, values = found if found is not None else (axes[0] if len(axes) == 1 else 1, _unknown(0))
    if found is None:
        values = _unknown(shape[axis])
    if any(other != axis for other in axes):
        values = np.where(values == 0, values, np.nan)
    return [(axis, np.pad(values, (amounts[axis], amounts[axis + len(shape)])))]


_RULES: dict[str, Callable[[ir.Node, _Of], list[Known | None]]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(("Conv", "Gemm", "MatMul"), _linear),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"), _pool),
    **dict.fromkeys(("ReduceMean", "ReduceMax", "ReduceMin"), _mean),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
}
