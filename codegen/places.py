"""Values that are produced inside the buffer of the Concat that reads them, so that nothing is copied there.

Where the concatenated axis is the outermost one in memory that is longer than 1 (channels of one image in row order), every
input is a dense part of the result: `Lowering.new` puts it there, whichever kernel writes it. Channels last, the channels of an
input lie between those of others: kernels that can write with a distance between pixels ask for it with `Lowering.strided`.
"""

from __future__ import annotations

from math import prod

import onnx_ir as ir

from sparsec.codegen.context import Lowering, Place


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
