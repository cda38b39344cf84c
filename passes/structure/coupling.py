"""How each operator carries labels from its inputs to its outputs (axes.py). What has no rule here pins all it touches."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from sparsec.passes.structure.axes import Axes, Axis, Labels, Reader, numbers, sizes
from sparsec.passes.structure.moves import MOVES, unknown

__all__ = ["ELEMENTWISE", "labelled"]

ELEMENTWISE = frozenset([
    "Abs", "Add", "And", "Cast", "Ceil", "Celu", "Clip", "Cos", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp",
    "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Less",
    "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow",
    "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Sum",
    "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
])  # fmt: skip
"""Operators that treat every element alike, operands broadcast."""

_Rule = Callable[[Labels, ir.Node], list[Axes]]


def labelled(model: ir.Model) -> Labels:
    """Walk through a canonical graph (static shapes)."""
    labels = Labels()
    for value in model.graph.inputs:
        labels.of[value] = [None] * len(sizes(value))
    for node in model.graph:
        rule = _RULES.get(node.op_type, unknown) if not node.domain else unknown
        for value, axes in zip(node.outputs, rule(labels, node), strict=False):
            labels.of[value] = [_several(labels, axis, node) for axis in axes]
        for value in node.outputs:
            labels.of.setdefault(value, [None] * (len(value.shape) if value.shape is not None else 0))
    for value in model.graph.outputs:
        axes = labels.of.get(value, [axis for slot in labels.slots if slot.value is value for axis in slot.axes])
        labels.pin_all(axes, f"'{value.name}' is an output of the model")
    return labels


def _several(labels: Labels, axis: Axis, node: ir.Node) -> Axis:
    if axis is None or axis.size > 1:
        return axis
    labels.pin(axis, f"{node.op_type} ({node.name}) takes one channel")
    return None


def _elementwise(labels: Labels, node: ir.Node) -> list[Axes]:
    shape = sizes(node.outputs[0])
    result: Axes = [None] * len(shape)
    met = [False] * len(shape)
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        given = sizes(value)
        for back, axis in enumerate(reversed(labels.read(node, index)), 1):
            if given[-back] == 1 and shape[-back] != 1:
                continue
            place = len(shape) - back
            why = f"{node.op_type} ({node.name}) joins it with what cannot lose channels"
            result[place] = labels.tie(result[place], axis, why) if met[place] else axis
            met[place] = True
    return [result]


def _conv(labels: Labels, node: ir.Node) -> list[Axes]:
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        return unknown(labels, node)
    x, w = labels.read(node, 0), labels.read(node, 1)
    groups = node.attributes.get_int("group", 1)
    labels.pin_all(x[2:], f"positions of {node.op_type} ({node.name})")
    labels.pin_all(w[2:], "")
    rows, inputs = w[0], x[1]
    if groups > 1 and sizes(weight)[1] == 1:  # depthwise: a group has its own outputs
        rows = _depthwise(labels, rows, inputs, groups, node)
    elif groups > 1:  # one channel of each group goes, so that groups stay equal
        if inputs is None or w[1] is None or rows is None:
            labels.pin_all([inputs, w[1], rows], f"groups of {node.op_type} ({node.name}) must stay equal")
            rows = None
        else:
            labels.tie(w[1][None], inputs.reshape(groups, -1), "")
            labels.readers.append(Reader(node, w[1]))
            by_group = rows.reshape(groups, -1)
            labels.tie(by_group[:1], by_group, "")
    else:
        met = labels.tie(inputs, w[1], f"{node.op_type} ({node.name}) reads what cannot lose channels")
        if met is not None:
            labels.readers.append(Reader(node, met))
    _tie_bias(labels, node, 2, rows)
    return [[x[0], rows, *[None] * (len(x) - 2)]]


def _depthwise(labels: Labels, rows: Axis, inputs: Axis, groups: int, node: ir.Node) -> Axis:
    if rows is None or inputs is None:
        labels.pin_all([rows, inputs], f"depthwise {node.op_type} ({node.name}) reads what cannot lose channels")
        return None
    labels.tie(inputs[:, None], rows.reshape(groups, -1), "")
    return rows


def _tie_bias(labels: Labels, node: ir.Node, index: int, rows: Axis) -> None:
    if len(node.inputs) > index and node.inputs[index] is not None:
        for axis in labels.read(node, index)[-1:]:
            if axis is not None:
                labels.tie(axis, rows, f"the bias of {node.op_type} ({node.name})")


def _conv_transpose(labels: Labels, node: ir.Node) -> list[Axes]:
    weight = node.inputs[1]
    if weight is None or weight.const_value is None or node.attributes.get_int("group", 1) > 1:
        return unknown(labels, node)
    x, w = labels.read(node, 0), labels.read(node, 1)
    labels.pin_all([*x[2:], *w[2:]], f"positions of {node.op_type} ({node.name})")
    met = labels.tie(x[1], w[0], f"{node.op_type} ({node.name}) reads what cannot lose channels")
    if met is not None:
        labels.opaque.append(met)
    _tie_bias(labels, node, 2, w[1])
    return [[x[0], w[1], *[None] * (len(x) - 2)]]


def _gemm(labels: Labels, node: ir.Node) -> list[Axes]:
    if any(value is not None and value.const_value is not None for value in node.inputs[:1]):
        return unknown(labels, node)
    a, b = labels.read(node, 0), labels.read(node, 1)
    if node.attributes.get_int("transA", 0):
        a = a[::-1]
    if node.attributes.get_int("transB", 0):
        b = b[::-1]
    _contract(labels, node, a[1], b[0])
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        given = sizes(node.inputs[2])
        for back, axis in enumerate(reversed(labels.read(node, 2)), 1):
            if axis is not None and given[-back] != 1:
                labels.tie(axis, (a[0], b[1])[-back], f"the bias of Gemm ({node.name})")
    return [[a[0], b[1]]]


def _matmul(labels: Labels, node: ir.Node) -> list[Axes]:
    a, b = labels.read(node, 0), labels.read(node, 1)
    if len(a) < 2 or len(b) < 2:
        return unknown(labels, node)
    _contract(labels, node, a[-1], b[-2])
    shape = sizes(node.outputs[0])
    batch: Axes = [None] * (len(shape) - 2)
    met = [False] * len(batch)
    computed = all(value is not None and value.const_value is None for value in node.inputs)
    for value, axes in zip(node.inputs, (a, b), strict=True):
        given = sizes(value)
        for back, axis in enumerate(reversed(axes[:-2]), 1):
            if given[-back - 2] == 1 and shape[-back - 2] != 1:
                continue
            place = len(batch) - back
            batch[place] = labels.tie(batch[place], axis, f"batches of MatMul ({node.name})") if met[place] else axis
            met[place] = True
            if axis is not None and computed:
                labels.heads.append(axis)
    return [[*batch, a[-2], b[-1]]]


def _contract(labels: Labels, node: ir.Node, inputs: Axis, cols: Axis) -> None:
    met = labels.tie(inputs, cols, f"{node.op_type} ({node.name}) reads what cannot lose channels")
    if met is None:
        return
    weight, x = node.inputs[1], node.inputs[0]
    plain = node.op_type == "MatMul" or not node.attributes.get_int("transA", 0)
    if plain and weight is not None and weight.const_value is not None and len(sizes(weight)) == 2:
        assert x is not None
        labels.readers.append(Reader(node, met))
    else:
        labels.opaque.append(met)


def _same(labels: Labels, node: ir.Node) -> list[Axes]:
    """One input, whose batch and channels pass; positions may not have labels (pooling, Resize by scales)."""
    x = labels.read(node, 0)
    scales = numbers(node.inputs[2]) if node.op_type == "Resize" and len(node.inputs) > 2 else [1, 1]
    if scales is None or scales[:2] != [1, 1] or len(node.outputs) > 1:
        return unknown(labels, node)
    labels.pin_all(x[2:], f"positions of {node.op_type} ({node.name})")
    for index in range(1, len(node.inputs)):
        if node.inputs[index] is not None:
            labels.pin_all(labels.read(node, index), "")
    return [[*x[:2], *[None] * (len(x) - 2)]]


def _normalised(labels: Labels, node: ir.Node) -> list[Axes]:
    """Everything from an axis on is normalised together."""
    x = labels.read(node, 0)
    axis = node.attributes.get_int("axis", -1) % len(x)
    last = axis + 1 if node.op_type in ("Softmax", "LogSoftmax", "Hardmax") else len(x)
    why = f"{node.op_type} ({node.name}) normalises all of it together"
    labels.pin_all(x[axis:last], why)
    for index in range(1, len(node.inputs)):
        if node.inputs[index] is not None:
            labels.pin_all(labels.read(node, index), why)
    return [[*x[:axis], *[None] * (last - axis), *x[last:]]]


def _per_channel(labels: Labels, node: ir.Node) -> list[Axes]:
    """BatchNormalization, InstanceNormalization: a parameter for each channel."""
    x = labels.read(node, 0)
    labels.pin_all(x[2:], f"positions of {node.op_type} ({node.name})")
    channels = x[1]
    for index in range(1, len(node.inputs)):
        channels = labels.tie(channels, labels.read(node, index)[0], f"parameters of {node.op_type} ({node.name})")
    return [[x[0], channels, *[None] * (len(x) - 2)]]


def _reduce(labels: Labels, node: ir.Node) -> list[Axes]:
    x = labels.read(node, 0)
    given = numbers(node.inputs[1]) if len(node.inputs) > 1 else list(node.attributes.get_ints("axes", range(len(x))))
    if not given:
        return unknown(labels, node)
    gone = {axis % len(x) for axis in given}
    for axis in gone:
        labels.pin(x[axis], f"{node.op_type} ({node.name}) reduces over it")
    keep = bool(node.attributes.get_int("keepdims", 1))
    return [[None if place in gone else axis for place, axis in enumerate(x) if keep or place not in gone]]


_RULES: dict[str, _Rule] = {
    **MOVES,
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "Resize"), _same),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "Softmax", "LogSoftmax", "Hardmax"), _normalised),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _per_channel),
    **dict.fromkeys(
        ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"), _reduce
    ),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
