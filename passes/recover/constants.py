"""Constants of a graph that recovery trains beside the weights: biases of products, scales and biases of norms."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["biases", "norms"]

_LINEAR = ("MatMul", "Gemm", "Conv", "ConvTranspose")
_NORMS = {
    "LayerNormalization": (1, 2), "RMSNormalization": (1,), "InstanceNormalization": (1, 2), "BatchNormalization": (1, 2),
}  # fmt: skip


def biases(model: ir.Model) -> dict[str, str]:
    """Names of constants that are added to the result of a product, one value for each output (or one for all), and the value
    they become part of."""
    found: dict[str, str] = {}
    for node in model.graph:
        if node.domain:
            continue
        if node.op_type in _LINEAR[1:] and len(node.inputs) > 2:
            _note(found, node.inputs[2], node)
        elif node.op_type == "Add":
            for index in (0, 1):
                other = node.inputs[1 - index]
                producer = None if other is None else other.producer()
                if producer is not None and producer.op_type in _LINEAR and not producer.domain:
                    _note(found, node.inputs[index], node)
    return found


def norms(model: ir.Model) -> list[str]:
    """Names of the scales and biases of norms."""
    found: dict[str, str] = {}
    for node in model.graph:
        for index in _NORMS.get(node.op_type, ()) if not node.domain else ():
            if index < len(node.inputs):
                _note(found, node.inputs[index], node)
    return list(found)


def _note(found: dict[str, str], value: ir.Value | None, node: ir.Node) -> None:
    if value is None or value.const_value is None or value.dtype != ir.DataType.FLOAT or value.is_graph_output():
        return
    sizes = [size for size in value.const_value.shape.numpy() if size != 1]
    if len(sizes) < 2 and value.name and value.is_initializer():
        found.setdefault(value.name, node.outputs[0].name or "")
