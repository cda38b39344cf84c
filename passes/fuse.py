"""Fuse each linear operator with its weight's Decode, its bias, a residual addition and an activation into one sparsec node.

    act(linear(x, W) + bias + residual)    becomes    sparsec::MatMul / sparsec::Conv (x, <weight>, bias, residual)
    Gather(Decode(..), indices)            becomes    sparsec::Gather(<weight>, indices)

Dense weights take the same path with scheme fp32. The chain behind an operator is followed as long as each value has one
reader; nodes are visited from the last to the first, so that of two convolutions that are added the later one takes the
addition and the earlier result is its residual.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from sparsec import ops
from sparsec.formats import Scheme
from sparsec.passes.epilogue import match_activation
from sparsec.passes.weights import Use, source_of, use_of

__all__ = ["Fuse"]


@dataclass
class _Chain:
    """What has been absorbed behind a linear operator; `end` is the value the fused node will produce."""

    end: ir.Value
    absorbed: list[ir.Node] = field(default_factory=list)
    bias: ir.Value | None = None
    residual: ir.Value | None = None
    activation: str = ""
    act_params: tuple[float, ...] = ()


class Fuse(ir.passes.InPlacePass):
    """Rewrite every MatMul, Gemm, Conv and compressed Gather whose weight is constant or decoded."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        plain: dict[tuple[ir.Value, bool], ops.WeightInputs] = {}
        modified = False
        for node in reversed(list(model.graph)):
            modified |= _fuse_node(model, node, plain)
        return ir.passes.PassResult(model, modified)


def _fuse_node(model: ir.Model, node: ir.Node, plain: dict[tuple[ir.Value, bool], ops.WeightInputs]) -> bool:
    if node.domain or node.op_type not in ("MatMul", "Gemm", "Conv", "Gather"):
        return False
    index = 0 if node.op_type == "Gather" else 1
    value = source_of(node, index)
    use = use_of(node, index)
    if value is None or isinstance(use, str):
        return False
    producer = value.producer()
    if producer is not None and ops.is_sparsec(producer):
        weight = ops.weight_inputs_of(producer)
    elif node.op_type != "Gather" and value.const_value is not None and value.dtype == ir.DataType.FLOAT:
        key = (value, use.flipped)
        if key not in plain:
            plain[key] = _plain_weight(model.graph, value, use)
        weight = plain[key]
    else:
        return False  # a dense lookup gains nothing from fusion
    chain = _follow(model.graph, node, weight.rows)
    if node.op_type == "Gather":
        indices = node.inputs[1]
        assert indices is not None
        built = ops.gather(weight, indices, name=node.name or "")
    else:
        built = _linear(node, weight, chain)
    _replace(model, node, chain, built)
    return True


def _linear(node: ir.Node, weight: ops.WeightInputs, chain: _Chain) -> ops.Built:
    x = node.inputs[0]
    assert x is not None
    if node.op_type != "Conv":
        return ops.matmul(
            x, weight, bias=chain.bias, residual=chain.residual,
            activation=chain.activation, act_params=chain.act_params, name=node.name or "",
        )  # fmt: skip
    kernel = node.inputs[1]
    assert kernel is not None
    assert kernel.shape is not None
    attributes = node.attributes
    return ops.conv(
        x, weight, bias=chain.bias, residual=chain.residual,
        activation=chain.activation, act_params=chain.act_params, name=node.name or "",
        kernel_shape=[int(k) for k in kernel.shape.numpy()[2:]],
        strides=attributes.get_ints("strides"), pads=attributes.get_ints("pads"),
        dilations=attributes.get_ints("dilations"), group=attributes.get_int("group", 1),
    )  # fmt: skip


def _follow(graph: ir.Graph, node: ir.Node, rows: int) -> _Chain:
    """Absorb bias, residual and activation behind `node`."""
    chain = _Chain(node.outputs[0])
    if node.op_type == "Gather":
        return chain
    given = node.inputs[2] if len(node.inputs) > 2 else None
    if given is not None:
        chain.bias = _as_vector(graph, given, rows, node.outputs[0], axis=1 if node.op_type == "Conv" else -1)
        if chain.bias is None:
            chain.residual = given  # Gemm adds a matrix
    while (found := _addition(chain.end)) is not None and _take(graph, node, rows, chain, *found):
        pass
    match = match_activation(chain.end)
    if match is not None:
        chain.activation, chain.act_params = match.name, match.params
        for member in match.nodes:
            _absorb(chain, member)
    return chain


def _take(graph: ir.Graph, node: ir.Node, rows: int, chain: _Chain, add: ir.Node, other: ir.Value) -> bool:
    """Absorb one addition behind `node` as its bias or residual, or as that of the product that is its residual; False: neither."""
    if chain.bias is None and other.const_value is not None:
        chain.bias = _as_vector(graph, other, rows, chain.end, axis=1 if node.op_type == "Conv" else -1)
        if chain.bias is not None:
            _absorb(chain, add)
            return True
    fits = other.dtype == chain.end.dtype and _same_shape(other, chain.end) and _same_shape(add.outputs[0], chain.end)
    if not fits:
        return False
    if chain.residual is None:
        chain.residual = other
    elif _is_lone_product(chain.residual, node):
        # What a side branch gives is added to the main product; the branch itself, fused later, takes the other addition.
        sum_ = ir.node("Add", [chain.residual, other], name=f"{add.name}.before")
        sum_.outputs[0].name = f"{chain.residual.name}.sum"
        sum_.outputs[0].shape, sum_.outputs[0].type = chain.end.shape, chain.end.type
        graph.insert_before(add, sum_)
        chain.residual = sum_.outputs[0]
    else:
        return False
    _absorb(chain, add)
    return True


def _is_lone_product(value: ir.Value, node: ir.Node) -> bool:
    """Whether the value is a product with a constant weight that `node` alone will read."""
    producer = value.producer()
    if producer is None or producer.domain or producer.op_type not in ("MatMul", "Conv"):
        return False
    source = source_of(producer, 1)
    made_by = None if source is None else source.producer()
    return (
        source is not None
        and len(value.uses()) == 1
        and not value.is_graph_output()
        and (source.const_value is not None or (made_by is not None and ops.is_sparsec(made_by)))
    )


def _absorb(chain: _Chain, node: ir.Node) -> None:
    chain.absorbed.append(node)
    chain.end = node.outputs[0]


def _addition(value: ir.Value) -> tuple[ir.Node, ir.Value] | None:
    """The only reader of `value`, if it is an Add, and the other operand."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    node, index = next(iter(uses))
    other = node.inputs[1 - index] if node.op_type == "Add" and not node.domain else None
    return (node, other) if other is not None else None


def _as_vector(graph: ir.Graph, value: ir.Value, rows: int, result: ir.Value, *, axis: int) -> ir.Value | None:
    """`value` as a bias [rows] along `axis` of `result`; a new initializer if its shape has to change."""
    if value.shape is None or result.shape is None or value.dtype != ir.DataType.FLOAT:
        return None
    shape = value.shape.numpy()
    if shape == (rows,) and (axis == -1 or _is_conv_bias(value, result)):
        return value
    if value.const_value is None:
        return None
    array = value.const_value.numpy()
    rank = len(result.shape)
    wanted = tuple(rows if i == axis % rank else 1 for i in range(rank))
    if array.size != 1 and (array.ndim > rank or (1,) * (rank - array.ndim) + array.shape != wanted):
        return None
    vector = np.broadcast_to(array.reshape(-1), (rows,)).astype(np.float32)
    name = f"{result.name}.bias"
    tensor = ir.tensor(np.ascontiguousarray(vector), name=name)
    bias = ir.Value(name=name, shape=ir.Shape([rows]), type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
    graph.register_initializer(bias)
    return bias


def _is_conv_bias(value: ir.Value, result: ir.Value) -> bool:
    """True for the bias input of a Conv; the same vector in an Add would run along the last axis."""
    producer = result.producer()
    return producer is not None and producer.op_type == "Conv" and value in producer.inputs[2:]


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    return a.shape is not None and b.shape is not None and a.shape.is_static() and a.shape == b.shape


def _plain_weight(graph: ir.Graph, value: ir.Value, use: Use) -> ops.WeightInputs:
    """W[N, K] as an initializer: the tensor itself if it has that shape, else a copy that takes over its name."""
    assert value.const_value is not None
    array = value.const_value.numpy()
    matrix = array.T if use.flipped else array.reshape(array.shape[0], -1)
    if matrix is array or (not use.flipped and array.ndim == 2):
        rows, cols = array.shape
        return ops.WeightInputs(Scheme.parse("fp32"), rows, cols, (value,))
    name = value.name or ""
    graph.initializers.pop(name)
    value.name = f"{name}.onnx"
    graph.register_initializer(value)
    weight = ops.weight_inputs(np.ascontiguousarray(matrix), name)
    graph.register_initializer(weight.values[0])
    return weight


def _replace(model: ir.Model, node: ir.Node, chain: _Chain, built: ops.Built) -> None:
    """Put the fused node where the last absorbed one was: everything it reads exists there."""
    graph = model.graph
    last = chain.absorbed[-1] if chain.absorbed else node
    old, new = chain.end, built.output
    new.shape, new.type = old.shape, old.type
    ir.convenience.replace_nodes_and_values(graph, last, [*reversed(chain.absorbed), node], [built.node], [old], [new])
    built.register(model)
