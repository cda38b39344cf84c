"""Nodes outside of the graph that stand for one of it: the same on a decoded weight."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsec.formats.encoded import EncodedWeight, decode
from sparsec.op_view import view


def decoded_twin(node: ir.Node) -> ir.Node | None:
    """The node on its decoded weight, scheme fp32, outside of the graph; None when the weight is plain already, or meant to be
    multiplied in bytes."""
    op = view(node)
    weight = op.weight()
    if not isinstance(weight, EncodedWeight) or op.rounds:
        return None
    name = op.weight_inputs.values[0].name
    plain = ir.Value(
        name=f"{name}.decoded",
        const_value=ir.tensor(np.ascontiguousarray(decode(weight), np.float32), name=f"{name}.decoded"),
        shape=ir.Shape([op.rows, op.cols]),
        type=ir.TensorType(ir.DataType.FLOAT),
    )
    rest = node.inputs[1 + len(op.weight_inputs.values) :]
    attributes = [a if a.name != "scheme" else ir.AttrString("scheme", "fp32") for a in node.attributes.values()]
    twin = ir.Node(node.domain, node.op_type, [node.inputs[0], plain, *rest], attributes, num_outputs=1, name=node.name)
    out, wanted = twin.outputs[0], node.outputs[0]
    out.name, out.shape, out.type = wanted.name, wanted.shape, wanted.type
    return twin


def forget(node: ir.Node) -> None:
    """Take a node that is not in the graph out of the uses of the graph's values."""
    for index in range(len(node.inputs)):
        node.replace_input_with(index, None)
