"""Biases that calibration may change: the mean of what rounding does to a layer's output goes into them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsec.passes.constants import register_constant
from sparsec.passes.insert import insert_behind
from sparsec.passes.weights import Use

__all__ = ["add_to_bias", "own_bias"]


def own_bias(model: ir.Model, use: Use, rows: int) -> str:
    """The name of an initializer of its own that is added to the output of a layer with `rows` output channels; made of zeros
    where the layer has none, copied where other nodes read it too."""
    node = use.node
    if node.op_type == "MatMul":
        reader, index = _added_constant(node, rows) or (_add_zeros(model, node, rows), 1)
        return _unshared(model, reader, index)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None or bias.const_value is None or bias.const_value.size != rows:
        if bias is not None:  # a bias that is computed, or another for each row of a batch, stays; ours comes after it
            return _unshared(model, _add_zeros(model, node, rows), 1)
        node.resize_inputs(3)
        node.replace_input_with(2, _zeros(model, node, (rows,)))
    return _unshared(model, node, 2)


def add_to_bias(model: ir.Model, name: str, shift: NDArray[np.float32]) -> None:
    """Add float32 [N] to the initializer `name` of `own_bias`."""
    value = model.graph.initializers[name]
    assert value.const_value is not None
    old = value.const_value.numpy()
    value.const_value = ir.tensor((old + shift.reshape(old.shape)).astype(np.float32), name=name)


def _added_constant(node: ir.Node, rows: int) -> tuple[ir.Node, int] | None:
    """The Add after a MatMul whose other operand is a constant for each output channel, and its place there."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output() or uses[0][0].op_type != "Add":
        return None
    add, index = uses[0]
    other = add.inputs[1 - index]
    if other is None or other.const_value is None or other.const_value.size != rows or other.shape is None:
        return None
    return (add, 1 - index) if other.shape[-1] == rows else None


def _add_zeros(model: ir.Model, node: ir.Node, rows: int) -> ir.Node:
    """A new Add of zeros for each output channel (the last axis; the second of a convolution) behind a node."""
    out = node.outputs[0]
    assert out.shape is not None
    shape = (rows, *(1,) * (len(out.shape) - 2)) if node.op_type == "Conv" else (rows,)
    add = ir.node("Add", [out, _zeros(model, node, shape)], name=f"{node.name}.bias")
    insert_behind(model, out, add, made="biased", was="unbiased")
    return add


def _zeros(model: ir.Model, node: ir.Node, shape: tuple[int, ...]) -> ir.Value:
    return register_constant(model, f"{node.name}.bias", np.zeros(shape, np.float32))


def _unshared(model: ir.Model, reader: ir.Node, index: int) -> str:
    value = reader.inputs[index]
    assert value is not None
    assert value.const_value is not None
    if len(list(value.uses())) > 1 or value.name not in model.graph.initializers:
        value = register_constant(model, f"{reader.name}.bias", value.const_value.numpy())
        reader.replace_input_with(index, value)
    return value.name or ""
