"""Values that need no memory of their own: they are produced, or read, inside another one.

Where a concatenated axis is the outermost one in memory that is longer than 1 (channels of one image in row order), every
input is a dense part of the result: `Lowering.new` puts it there, whichever kernel writes it. Channels last, the channels of an
input lie between those of others: kernels that can write with a distance between pixels ask for it with `Lowering.strided`.

The parts of a Split along the last axis that only attention reads, as heads, are read where they lie (`Lowering.part`).
"""

from __future__ import annotations

from math import prod

import onnx_ir as ir

from sparsec.codegen.context import Lowering, Part, Place


def concat_places(low: Lowering) -> dict[ir.Value, Place]:
    """The place of every value that is an input of a planned Concat and can be produced there."""
    places: dict[ir.Value, Place] = {}
    for node in low.graph:
        if node.domain != "" or node.op_type != "Concat" or len(node.inputs) < 2:
            continue
        shape = low.shape(node.outputs[0])
        axis = node.attributes.get_int("axis", 0) % len(shape)
        layout = low.plan.get(node, "row")
        order = [0, *range(2, len(shape)), 1] if layout == "cl" else list(range(len(shape)))
        before, after = order[: order.index(axis)], order[order.index(axis) + 1 :]
        dense, inner = prod(shape[a] for a in before) == 1, prod(shape[a] for a in after)
        at = 0
        for value in node.inputs:
            assert value is not None
            size, produced = low.shape(value)[axis], value.producer() is not None and low.constant(value) is None
            alone = len(value.uses()) == 1 and not value.is_graph_output()
            if produced and value not in places and 0 not in shape and (dense or (inner == 1 and alone)):
                places[value] = Place(node.outputs[0], layout, at * inner, 0 if dense else shape[axis])
            at += size
    return places


def split_parts(low: Lowering) -> tuple[dict[ir.Value, Part], set[ir.Node]]:
    """The heads that attention reads inside the operand of a Split, and the nodes that are left out for it."""
    parts: dict[ir.Value, Part] = {}
    nodes: set[ir.Node] = set()
    for node in low.graph:
        source = node.inputs[0] if node.inputs else None
        if node.domain or node.op_type != "Split" or source is None:
            continue
        shape = low.shape(source)
        if node.attributes.get_int("axis", 0) % len(shape) != len(shape) - 1:
            continue
        found: dict[ir.Value, Part] = {}
        at = 0
        for value in node.outputs:
            for heads in _heads_of(low, value):
                found[heads] = Part(source, at, shape[-1])
            at += low.shape(value)[-1]
        reshapes = {user for value in node.outputs for user, _ in value.uses()}
        if len(found) == len(reshapes) and not any(value.is_graph_output() for value in node.outputs):
            parts |= found
            nodes |= {node, *reshapes}
    return parts, nodes


def _heads_of(low: Lowering, value: ir.Value) -> list[ir.Value]:
    """Results of Reshapes of `value` to [batch, positions, heads, elements] that nobody but attention reads."""
    results = []
    for reshape, _ in value.uses():
        heads = reshape.outputs[0]
        if reshape.domain or reshape.op_type != "Reshape" or heads.is_graph_output():
            continue
        shape = low.shape(heads)
        if len(shape) == 4 and shape[:2] == low.shape(value)[:-1] and all(_strides(low, n, i) for n, i in heads.uses()):
            results.append(heads)
    return results


def _strides(low: Lowering, node: ir.Node, index: int) -> bool:
    """Whether this operand is read by strides, positions before heads, in row order."""
    fits = node.domain == "sparsec" and node.op_type == "Attention" and index < 3 and low.plan.get(node) != "cl"
    return fits and bool(node.attributes.get_ints("swapped")[index])
