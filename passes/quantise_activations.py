"""Int8 activations for the products of encoded weights: sparsec::MatMul gets its attribute `activations` (sparsec/int8.py).

A rule of the recipe says `activations: fp32`, `int8`, or nothing (`auto`). `auto` spends part of the error that the weight's own
rounding has made already: int8 where its expected share stays below `_BUDGET` of the weight's relative error.
"""

from __future__ import annotations

import onnx_ir as ir

from sparsec import int8, ops
from sparsec.formats import Scheme
from sparsec.passes.layers import LayerRecord

__all__ = ["choose_activations", "set_activations"]

# Squared relative error of int8 activations: a step of max|x| / 127 gives max^2 / 127^2 / 12 of noise. Of 32 normally
# distributed values the largest is about 2.1 sigma, and about 10 sigma in a row of a transformer with outliers.
_NOISE_OF_GROUP, _NOISE_OF_ROW = 2.1**2 / 127**2 / 12, 10.0**2 / 127**2 / 12
_BUDGET = 0.1
# Groups up to this size count as having the noise of a group.
_LARGEST_GROUP = 128


def choose_activations(wanted: str, scheme: Scheme, cols: int, nmse: float) -> tuple[str, str]:
    """(value of the attribute `activations`, reason when it is not what the recipe asks for).

    wanted: "auto", "fp32" or "int8"; nmse: |W' - W|^2 / |W|^2 of the encoded weight.
    """
    if wanted == "fp32":
        return "", ""
    if why := int8.refusal(scheme):
        return "", f"float32 activations: {why}" if wanted == "int8" else ""
    group = scheme.scales.group if scheme.scales.kind == "group" and scheme.is_dense else 0
    if group % 4 or (group and cols % group) or group > _LARGEST_GROUP:
        group = 0
    noise = _NOISE_OF_GROUP if group else _NOISE_OF_ROW
    if wanted == "auto" and noise > _BUDGET * nmse:
        return "", ""
    return (f"int8-g{group}" if group else "int8"), ""


def set_activations(model: ir.Model, wanted: dict[str, tuple[str, LayerRecord]]) -> bool:
    """Rebuild the MatMul nodes of the weights in `wanted` (name -> recipe's word, record); True if any changed."""
    modified = False
    for node in list(model.graph):
        if not ops.is_sparsec(node) or node.op_type != "MatMul":
            continue
        view = ops.view(node)
        name = (view.weight_inputs.values[0].name or "").removesuffix(".codes")
        if name not in wanted or view.activations:
            continue
        word, record = wanted[name]
        activations, why = choose_activations(word, view.scheme, view.cols, record.nmse)
        if why:
            record.reason = why
        if not activations:
            continue
        assert view.x is not None
        built = ops.matmul(
            view.x, view.weight_inputs, bias=view.bias, residual=view.residual, activation=view.activation,
            act_params=view.act_params, activations=activations, name=node.name or "",
        )  # fmt: skip
        old = node.outputs[0]
        built.output.shape, built.output.type = old.shape, old.type
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [built.node], [old], [built.output])
        built.register(model)
        record.activations = activations
        modified = True
    return modified
