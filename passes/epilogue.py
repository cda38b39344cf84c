"""Recognise the activation behind a value, as the names of `sparsec.activations`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

__all__ = ["ActivationMatch", "match_activation"]

_NO_PARAMS = {"Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "HardSwish": "hardswish"}
_FLOAT_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class ActivationMatch:
    """An activation by name, its parameters, and the nodes that make it up; the last one produces the result."""

    name: str
    params: tuple[float, ...]
    nodes: tuple[ir.Node, ...]


def match_activation(value: ir.Value) -> ActivationMatch | None:
    """The activation that is the only reader of `value`, or None."""
    if value.is_graph_output():
        return None
    uses = list(value.uses())
    if len(uses) == 2:
        return _match_silu(value, [node for node, _ in uses])
    if len(uses) != 1:
        return None
    node, index = uses[0]
    if node.domain or index != 0:
        return None
    named = _match_one(node)
    return None if named is None else ActivationMatch(*named, (node,))


def _match_one(node: ir.Node) -> tuple[str, tuple[float, ...]] | None:
    attributes = node.attributes
    match node.op_type:
        case "Relu" | "Sigmoid" | "Tanh" | "HardSwish":
            return _NO_PARAMS[node.op_type], ()
        case "Gelu":
            return ("gelu_tanh" if attributes.get_string("approximate", "none") == "tanh" else "gelu"), ()
        case "Swish":
            return ("silu", ()) if attributes.get_float("alpha", 1.0) == 1.0 else None
        case "LeakyRelu":
            return "leakyrelu", (attributes.get_float("alpha", 0.01),)
        case "HardSigmoid":
            return "hardsigmoid", (attributes.get_float("alpha", 0.2), attributes.get_float("beta", 0.5))
        case "Clip":
            return _match_clip(node)
        case _:
            return None


def _match_clip(node: ir.Node) -> tuple[str, tuple[float, ...]] | None:
    bounds = []
    for index, default in ((1, -_FLOAT_MAX), (2, _FLOAT_MAX)):
        value = node.inputs[index] if len(node.inputs) > index else None
        if value is not None and value.const_value is None:
            return None
        bound = default if value is None or value.const_value is None else float(value.const_value.numpy().reshape(()))
        bounds.append(min(max(bound, -_FLOAT_MAX), _FLOAT_MAX))
    low, high = bounds
    if low == 0 and high == _FLOAT_MAX:
        return "relu", ()
    return ("relu6", ()) if (low, high) == (0.0, 6.0) else ("clip", (low, high))


def _match_silu(value: ir.Value, nodes: list[ir.Node]) -> ActivationMatch | None:
    """x * sigmoid(x): x is read by the Sigmoid and by the Mul."""
    gate = next((node for node in nodes if node.op_type == "Sigmoid" and not node.domain), None)
    product = next((node for node in nodes if node.op_type == "Mul" and not node.domain), None)
    if gate is None or product is None:
        return None
    opened = gate.outputs[0]
    alone = len(opened.uses()) == 1 and not opened.is_graph_output()
    if not alone or set(product.inputs) != {value, opened}:
        return None
    return ActivationMatch("silu", (), (gate, product))
