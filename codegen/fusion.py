"""Which elementwise nodes are computed inside their consumer's kernel instead of one of their own."""

from __future__ import annotations

import onnx_ir as ir

from sparsec.codegen.context import Lowering
from sparsec.codegen.kernels.elementwise import OPS, check


def deferred_nodes(low: Lowering) -> set[ir.Node]:
    """Nodes whose one reader is an elementwise node of the same output shape: nothing is computed twice by deferring them."""
    deferred: set[ir.Node] = set()
    outputs = set(low.graph.outputs)
    for node in low.graph:
        if not _fusible(node, low) or node.outputs[0] in outputs:
            continue
        readers = {user for user, _ in node.outputs[0].uses()}
        if len(readers) != 1:
            continue
        reader = next(iter(readers))
        same = _fusible(reader, low) and low.shape(reader.outputs[0]) == low.shape(node.outputs[0])
        # bounds and exponents are read as constants, never as operands
        if same and (reader.op_type != "Clip" or reader.inputs[0] is node.outputs[0]):
            deferred.add(node)
    return deferred


def _fusible(node: ir.Node, low: Lowering) -> bool:
    standard = node.domain == "" and node.op_type in OPS
    return (
        (standard or (node.domain, node.op_type) == ("sparsec", "Quantise"))
        and len(node.outputs) == 1
        and check(node, low) is None
    )
