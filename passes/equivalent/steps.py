"""How each operator passes on the channels of a value: to which other values, and to which axes of constants."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

__all__ = ["Kind", "Refused", "Space", "Step", "Touch", "step"]

Kind = Literal["order", "scale"]
"""What is to be done to the channels: another order, or a positive factor each."""


class Refused(Exception):
    """The channels cannot be followed; says why."""


@dataclass(frozen=True)
class Space:
    """Where channels lie along an axis: index i holds channel (i // inner) % count."""

    axis: int
    inner: int = 1


@dataclass(frozen=True, eq=False)
class Touch:
    """An axis of a constant that has the channels.

    power: a factor s of the channel multiplies the constant by s ** power. role: the constant is a weight that makes the channels
    (`out`) or reads them (`in`), or it acts on each (`each`).
    """

    value: ir.Value
    space: Space
    node: ir.Node
    index: int
    power: int
    role: Literal["out", "in", "each"]


@dataclass(frozen=True, eq=False)
class Step:
    """What a node does with channels: values that have them too, and constants."""

    values: tuple[tuple[ir.Value, Space], ...] = ()
    touches: tuple[Touch, ...] = ()


# Operators that treat every element alike; the second set commutes with a positive factor.
_NAMES = (
    "Abs Cast Ceil Celu Clip Cos Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu Log Mish Neg Reciprocal "
    "Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
)
_ELEMENTWISE = frozenset(_NAMES.split())
_HOMOGENEOUS = frozenset(["Abs", "Dropout", "Identity", "LeakyRelu", "Neg", "Relu"])
_BINARY = frozenset(["Add", "Sub", "Mul", "Div", "Pow", "PRelu", "Max", "Min", "Mean", "Sum", "Where"])
_ADDITIVE = frozenset(["Add", "Sub", "Max", "Min", "Mean", "Sum"])
_POOLS = frozenset(["MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
_NORMS = frozenset(["LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"])


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """The static shape of a value of a canonical graph."""
    if value.shape is None:
        raise Refused(f"the shape of '{value.name}' is not known")
    return tuple(int(size) for size in value.shape.numpy())


def step(node: ir.Node, known: ir.Value, space: Space, kind: Kind, scaled: int) -> Step:
    """What `node` does with the channels of `known`, one of its inputs or outputs.

    scaled: where the node multiplies two values, the input that carries the factor. Raises Refused.
    """
    if node.domain:
        raise Refused(f"{node.domain}::{node.op_type} '{node.name}' is not followed")
    made = node.outputs[0] is known
    if not made and known not in node.inputs:
        raise Refused(f"another output of {node.op_type} '{node.name}' is not followed")
    op = node.op_type
    if op in _ELEMENTWISE:
        _only_if(kind == "order" or op in _HOMOGENEOUS, node, "does not commute with factors")
        return Step(_both(node, space))
    if op in _BINARY:
        return _binary(node, known, space, kind, scaled)
    rule = _RULES.get("Pool" if op in _POOLS else "Norm" if op in _NORMS else op)
    if rule is None:
        raise Refused(f"{op} '{node.name}' is not followed")
    return rule(node, known, space, kind)


def _only_if(condition: bool, node: ir.Node, why: str) -> None:
    if not condition:
        raise Refused(f"{node.op_type} '{node.name}' {why}")


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _some(node: ir.Node, index: int) -> ir.Value:
    value = _input(node, index)
    assert value is not None
    return value


def _both(node: ir.Node, space: Space) -> tuple[tuple[ir.Value, Space], ...]:
    return ((_some(node, 0), space), (node.outputs[0], space))


def _touch(node: ir.Node, index: int, axis: int, inner: int, power: int, role: Literal["out", "in", "each"]) -> Touch:
    value = _some(node, index)
    _only_if(
        value.is_initializer() and value.const_value is not None, node, f"reads '{value.name}', which is no constant"
    )
    return Touch(value, Space(axis, inner), node, index, power, role)


def _binary(node: ir.Node, known: ir.Value, space: Space, kind: Kind, scaled: int) -> Step:
    """Operands broadcast, so axes are counted from the right. Factors: all operands of a sum have them, one operand of a product."""
    out, op = node.outputs[0], node.op_type
    rank = len(shape_of(out))
    here = Space(space.axis + rank - len(shape_of(known)), space.inner)
    size = shape_of(out)[here.axis]
    _only_if(shape_of(known)[space.axis] == size, node, "repeats the channels")
    if kind == "scale":
        _only_if(op in _ADDITIVE or op in ("Mul", "Div", "PRelu"), node, "does not commute with factors")
        if op not in _ADDITIVE:
            scaled = node.inputs.index(known) if known in node.inputs else scaled
            _only_if(op == "Mul" or scaled == 0, node, "divides by the channels")
            _only_if(node.inputs[0] is not node.inputs[1], node, "squares the channels")
    values: list[tuple[ir.Value, Space]] = [(out, here)]
    touches = []
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        axis = here.axis - rank + len(shape_of(value))
        power = 1 if op in _ADDITIVE else 0
        if axis < 0 or shape_of(value)[axis] != size:
            # One element for all channels: the same for every order; a sum would need one for each factor.
            _only_if(kind == "order" or not power, node, "adds one value to all channels")
        elif value.is_initializer():
            if kind == "scale" and op == "Mul" and known is out:  # takes the factors up
                return Step(touches=(Touch(value, Space(axis, here.inner), node, index, 1, "each"),))
            touches.append(Touch(value, Space(axis, here.inner), node, index, power, "each"))
        elif kind == "order" or power or index == scaled:
            values.append((value, Space(axis, here.inner)))
    if kind == "scale" and op not in _ADDITIVE:
        _only_if(any(value is node.inputs[scaled] for value, _ in values), node, "repeats the channels")
    return Step(tuple(values), tuple(touches))


def _matmul(node: ir.Node, known: ir.Value, space: Space, kind: Kind) -> Step:
    out, left, right = node.outputs[0], _some(node, 0), _some(node, 1)
    _only_if(
        right.is_initializer() and len(shape_of(right)) == 2 and not left.is_initializer(), node, "multiplies no weight"
    )
    if known is out and space.axis == len(shape_of(out)) - 1:
        return Step(touches=(_touch(node, 1, 1, space.inner, 1, "out"),))
    if known is left and space.axis == len(shape_of(left)) - 1:
        return Step(touches=(_touch(node, 1, 0, space.inner, -1, "in"),))
    return Step(_both(node, space))


def _gemm(node: ir.Node, known: ir.Value, space: Space, kind: Kind) -> Step:
    out = node.outputs[0]
    flags = [node.attributes.get_int(name, 0) for name in ("transA", "transB")]
    _only_if(not flags[0] and space.axis == 1, node, "has channels elsewhere than along its inputs or outputs")
    if known is _some(node, 0):
        return Step(touches=(_touch(node, 1, 1 if flags[1] else 0, space.inner, -1, "in"),))
    _only_if(known is out, node, "has channels in its bias")
    touches = [_touch(node, 1, 0 if flags[1] else 1, space.inner, 1, "out")]
    bias = _input(node, 2)
    if bias is not None:
        shape = shape_of(bias)
        if shape and shape[-1] == shape_of(out)[1]:
            touches.append(_touch(node, 2, len(shape) - 1, space.inner, 1, "each"))
        else:
            _only_if(kind == "order", node, "adds one value to all channels")
    return Step(touches=tuple(touches))


def _conv(node: ir.Node, known: ir.Value, space: Space, kind: Kind) -> Step:
    _only_if(space.axis == 1, node, "has channels along an image's axis")
    out, weight, groups = node.outputs[0], _some(node, 1), node.attributes.get_int("group", 1)
    bias = (_touch(node, 2, 0, space.inner, 1, "each"),) if _input(node, 2) is not None else ()
    depthwise = groups > 1 and shape_of(weight)[:2] == (groups, 1)
    if depthwise and kind == "order":
        return Step(_both(node, space), (_touch(node, 1, 0, space.inner, 0, "each"), *bias))
    if known is out:
        _only_if(groups == 1 or kind == "scale", node, "keeps its groups apart")
        return Step(touches=(_touch(node, 1, 0, space.inner, 1, "out"), *bias))
    if depthwise:
        return Step(touches=(_touch(node, 1, 0, space.inner, -1, "in"),))
    _only_if(groups == 1, node, "keeps its groups apart")
    return Step(touches=(_touch(node, 1, 1, space.inner, -1, "in"),))


def _norm(node: ir.Node, known: ir.Value, space: Space, kind: Kind) -> Step:
    """Over the axes from `axis` on, each element with a scale and a bias: the end of factors that come from behind."""
    rank = len(shape_of(_some(node, 0)))
    first = node.attributes.get_int("axis", -1) % rank
    touches = []
    if space.axis >= first:
        size = shape_of(_some(node, 0))[space.axis]
        for index in (1, 2):
            value = _input(node, index)
            if value is not None:
                shape = shape_of(value)
                axis = space.axis - rank + len(shape)
                same = axis >= 0 and shape[axis] == size
                _only_if(
                    same or (kind == "order" and (axis < 0 or shape[axis] == 1)), node, "has one scale for all channels"
                )
                if same:
                    touches.append(_touch(node, index, axis, space.inner, 1, "each"))
    if kind == "order":
        return Step(_both(node, space), tuple(touches))
    _only_if(known is node.outputs[0] and space.axis >= first, node, "does not commute with factors")
    return Step(touches=tuple(touches))


def _batch_norm(node: ir.Node, known: ir.Value, space: Space, kind: Kind) -> Step:
    _only_if(space.axis == 1, node, "has channels along an image's axis")
    last = 2 if node.op_type == "InstanceNormalization" or kind == "scale" else 4
    touches = tuple(_touch(node, index, 0, space.inner, 1, "each") for index in range(1, last + 1))
    if kind == "order":
        return Step(_both(node, space), touches)
    _only_if(known is node.outputs[0], node, "does not commute with factors")
    return Step(touches=touches)


def _pool(node: ir.Node, known: ir.Value, space: Space, kind: Kind) -> Step:
    del known, kind
    _only_if(space.axis < 2, node, "has channels along an image's axis")
    return Step(_both(node, space))


def _softmax(node: ir.Node, known: ir.Value, space: Space, kind: Kind) -> Step:
    del known
    _only_if(kind == "order", node, "does not commute with factors")
    return Step(_both(node, space))


def _same_axis(node: ir.Node, known: ir.Value, space: Space, kind: Kind) -> Step:
    """Operators that leave an axis alone where its size stays: Resize, Pad with zeros, Slice forwards, Expand."""
    del known
    ins, outs = shape_of(_some(node, 0)), shape_of(node.outputs[0])
    axis = space.axis - len(outs) + len(ins)
    _only_if(axis >= 0 and len(ins) == len(outs) and ins[axis] == outs[axis], node, "changes the channels")
    if node.op_type == "Slice":
        steps = _input(node, 4)
        _only_if(
            steps is None or (steps.const_value is not None and bool((steps.const_value.numpy() > 0).all())),
            node, "reads backwards",
        )  # fmt: skip
    if node.op_type == "Pad" and kind == "scale":
        filler = _input(node, 2)
        zero = filler is None or (filler.const_value is not None and not filler.const_value.numpy().any())
        _only_if(zero, node, "pads with a value")
    return Step(_both(node, space))


def _transpose(node: ir.Node, known: ir.Value, space: Space, kind: Kind) -> Step:
    del kind
    rank = len(shape_of(node.outputs[0]))
    order = list(node.attributes.get_ints("perm", tuple(range(rank))[::-1]))
    ins, outs = (order[space.axis], space.axis) if known is node.outputs[0] else (space.axis, order.index(space.axis))
    return Step(((_some(node, 0), Space(ins, space.inner)), (node.outputs[0], Space(outs, space.inner))))


def _reshape(node: ir.Node, known: ir.Value, space: Space, kind: Kind) -> Step:
    """Channels that repeat with a period of elements do so in any shape; they must lie along one axis of it."""
    del kind
    source, out = _some(node, 0), node.outputs[0]
    other = source if known is out else out
    stride = math.prod(shape_of(known)[space.axis + 1 :]) * space.inner
    count = shape_of(known)[space.axis] // space.inner
    here, step_size = shape_of(other), 1
    for axis in range(len(here) - 1, -1, -1):
        if here[axis] > 1 and step_size <= stride < step_size * here[axis]:
            inner = stride // step_size
            _only_if(stride % step_size == 0 and here[axis] % (inner * count) == 0, node, "splits the channels")
            found = Space(axis, inner)
            return Step(((known, space), (other, found)))
        step_size *= here[axis]
    raise Refused(f"{node.op_type} '{node.name}' splits the channels")


def _concat(node: ir.Node, known: ir.Value, space: Space, kind: Kind) -> Step:
    del known, kind
    axis = node.attributes.get_int("axis", 0) % len(shape_of(node.outputs[0]))
    _only_if(axis != space.axis, node, "joins channels with others")
    values = [(value, space) for value in node.inputs if value is not None and not value.is_initializer()]
    touches = tuple(
        Touch(value, space, node, index, 1, "each")
        for index, value in enumerate(node.inputs)
        if value is not None and value.is_initializer()
    )
    return Step((*values, (node.outputs[0], space)), touches)


def _gather(node: ir.Node, known: ir.Value, space: Space, kind: Kind) -> Step:
    del kind
    rank = len(shape_of(_some(node, 1)))
    axis = node.attributes.get_int("axis", 0)
    _only_if(known is node.outputs[0] and axis == 0 and space.axis >= rank, node, "picks channels")
    table = _some(node, 0)
    own = Space(space.axis - rank + 1, space.inner)
    if table.is_initializer():
        return Step(touches=(_touch(node, 0, own.axis, own.inner, 1, "out"),))
    return Step(((table, own), (node.outputs[0], space)))


def _reduce(node: ir.Node, known: ir.Value, space: Space, kind: Kind) -> Step:
    source, out = _some(node, 0), node.outputs[0]
    rank = len(shape_of(source))
    axes = _input(node, 1)
    if axes is not None:
        _only_if(axes.const_value is not None, node, "reduces axes that data decides")
        assert axes.const_value is not None
        listed = [int(axis) % rank for axis in axes.const_value.numpy().reshape(-1)]
    else:
        listed = [axis % rank for axis in node.attributes.get_ints("axes", tuple(range(rank)))]
    kept = [axis for axis in range(rank) if axis not in listed]
    keeps = bool(node.attributes.get_int("keepdims", 1))
    if known is source and space.axis in listed:
        _only_if(kind == "order", node, "sums over the channels")
        return Step(((source, space),))
    positions = list(range(rank)) if keeps else kept
    ins, outs = (positions[space.axis], space.axis) if known is out else (space.axis, positions.index(space.axis))
    return Step(((source, Space(ins, space.inner)), (out, Space(outs, space.inner))))


_RULES: dict[str, Callable[[ir.Node, ir.Value, Space, Kind], Step]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "Norm": _norm,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _batch_norm,
    "Pool": _pool,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    **dict.fromkeys(("Resize", "Pad", "Slice", "Expand"), _same_axis),
    "Transpose": _transpose,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Concat": _concat,
    "Gather": _gather,
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"), _reduce),
}
