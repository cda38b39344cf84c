"""Activations for the products of encoded weights: sparsec::MatMul gets its attribute `activations` (sparsec/int8.py).

A rule of the recipe says `activations: fp32`, `int8`, `int16` or `auto`: int8, or int16 for sparse floats, where rounding is expected to
add no more than the rule's `activation_error` to a product. `int16` (sparsec/fixed.py) is said of sparsec::Conv, too.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from sparsec import fixed, int8, ops
from sparsec.formats import Scheme
from sparsec.passes.layers import LayerRecord
from sparsec.passes.static_activations import NAME, drop_rounding, has_rounding
from sparsec.recipe import Rule

__all__ = ["choose_activations", "fixed_products", "float_activations", "set_activations"]

# Relative error of int8 activations: steps of max|x| / 127 give max|x| / 127 / sqrt(12) of noise. Of 32 normally distributed
# values the largest is about 2.4 sigma; a row of a transformer has outliers of about 10 sigma.
_ERROR_OF_GROUP, _ERROR_OF_ROW = 2.36 / 127 / 12**0.5, 10.0 / 127 / 12**0.5
# Of 16-bit products (sparsec/fixed.py), half a unit at most: of so many weights, normally distributed and in units of their mean, times
# inputs of a row of a transformer.
_ERROR_OF_FIXED = fixed.MOST_WEIGHTS * 10.0 / (1.25 * fixed.LARGEST) / 12**0.5
# Groups up to this size count as having the noise of a group.
_LARGEST_GROUP = 128


def choose_activations(rule: Rule, scheme: Scheme, cols: int) -> tuple[str, str]:
    """(value of the attribute `activations`, reason when it is not what the rule asks for) for a weight of `cols` inputs."""
    if rule.activations in ("fp32", NAME):  # static ones are rounded by an operator of their own
        return "", ""
    if rule.activations == fixed.NAME:
        why = fixed.refusal(scheme)
        return ("", f"float32 activations: {why}") if why else (fixed.NAME, "")
    if rule.activations == "auto" and not fixed.refusal(scheme):
        return (fixed.NAME if rule.activation_error >= _ERROR_OF_FIXED else ""), ""
    if why := int8.refusal(scheme):
        return "", f"float32 activations: {why}" if rule.activations == "int8" else ""
    group = scheme.scales.group if scheme.scales.kind == "group" and scheme.is_dense else 0
    if group % 4 or (group and cols % group) or group > _LARGEST_GROUP:
        group = 0
    if rule.activations == "auto" and (_ERROR_OF_GROUP if group else _ERROR_OF_ROW) > rule.activation_error:
        return "", ""
    return (f"int8-g{group}" if group else "int8"), ""


def set_activations(model: ir.Model, wanted: dict[str, tuple[Rule, LayerRecord]]) -> bool:
    """Rebuild the products with the weights in `wanted` (by name) as their rules say; True if any changed."""
    modified = False
    for node in list(model.graph):
        if not ops.is_sparsec(node) or node.op_type not in ("MatMul", "Conv"):
            continue
        view = ops.view(node)
        name = (view.weight_inputs.values[0].name or "").removesuffix(".codes")
        if name not in wanted:
            continue
        rule, record = wanted[name]
        activations, why = choose_activations(rule, view.scheme, view.cols)
        if node.op_type == "Conv" and fixed.NAME not in (activations, rule.activations):
            continue
        record.reason = why or record.reason
        if activations:
            record.activations = activations
            _rebuild(model, node, activations)
            modified = True
    return modified


def float_activations(model: ir.Model) -> ir.Model | None:
    """A copy whose products all read float32; None if they do already."""
    if not has_rounding(model) and not any(_rounds(node) for node in model.graph):
        return None
    copy = model.clone()
    drop_rounding(copy)
    for node in [node for node in copy.graph if _rounds(node)]:
        _rebuild(copy, node, "")
    return copy


def fixed_products(model: ir.Model) -> int:
    """How many products may be in 16-bit fixed point."""
    return sum(ops.is_sparsec(node) and ops.view(node).activations == fixed.NAME for node in model.graph)


def _rounds(node: ir.Node) -> bool:
    return ops.is_sparsec(node) and ops.view(node).rounds


def _rebuild(model: ir.Model, node: ir.Node, activations: str) -> None:
    view = ops.view(node)
    assert view.x is not None
    same: dict[str, Any] = {
        "bias": view.bias, "residual": view.residual, "activation": view.activation, "act_params": view.act_params,
        "activations": activations, "name": node.name or "",
    }  # fmt: skip
    if view.kind == "Conv":
        built = ops.conv(
            view.x, view.weight_inputs, kernel_shape=view.kernel_shape, strides=view.strides, pads=view.pads,
            dilations=view.dilations, group=view.group, **same,
        )  # fmt: skip
    else:
        built = ops.matmul(view.x, view.weight_inputs, **same)
    old = node.outputs[0]
    built.output.shape, built.output.type = old.shape, old.type
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], [built.node], [old], [built.output])
    built.register(model)
