"""Outputs of a product in another order where the order cannot be followed to all that reads them: a Gather puts them back.

The Gather stands as far behind the product as what lies between treats every channel by itself and is read by nothing else: a bias, an
activation. They are reordered with the rows, so that they fuse with the product as before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsec.passes.constants import register_constant
from sparsec.passes.equivalent.channels import Channels, output_space
from sparsec.passes.equivalent.steps import Refused, Space, Touch, shape_of, step
from sparsec.passes.insert import insert_behind

__all__ = ["PutBack", "room_behind"]


@dataclass(frozen=True, eq=False)
class PutBack:
    """A product whose outputs may get another order: `channels` has its weight and the constants behind it; `value` is what the Gather
    reads, along `axis`."""

    node: ir.Node
    channels: Channels
    value: ir.Value
    axis: int

    def reorder(self, model: ir.Model, order: NDArray[np.intp]) -> None:
        """Row n of the weight becomes what row order[n] was; the Gather makes `value` what it was."""
        self.channels.reorder(model, order)
        value, places = self.value, np.argsort(order).astype(np.int64)
        index = register_constant(model, f"{self.node.name}.places", places)
        gather = ir.node("Gather", [value, index], {"axis": self.axis}, name=f"{self.node.name}.put_back")
        insert_behind(model, value, gather, made="put_back", was="reordered")


def room_behind(node: ir.Node) -> PutBack:
    """Where a Gather can stand behind a product. Raises Refused where rows of the weight have no order of their own."""
    value, axis = output_space(node)
    own = step(node, value, Space(axis), "order", 0)
    if own.values:
        raise Refused(f"{node.op_type} '{node.name}' has the channels of its inputs")
    touches: list[Touch] = list(own.touches)
    count = shape_of(value)[axis]
    while (found := _next(value, axis)) is not None:
        value, more = found
        touches += more
    return PutBack(node, Channels(count, "order", tuple(touches)), value, axis)


def _next(value: ir.Value, axis: int) -> tuple[ir.Value, tuple[Touch, ...]] | None:
    """What the only reader of `value` makes, and its constants, if it takes channel by channel and leaves the shape alone."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    reader = uses[0][0]
    if reader.op_type in ("MatMul", "Gemm", "Conv") or len(reader.outputs) != 1:
        return None
    out = reader.outputs[0]
    try:
        found = step(reader, value, Space(axis), "order", 0)
        same = shape_of(out) == shape_of(value)
    except Refused:
        return None
    alone = {known for known, _ in found.values} == {value, out}
    if not (same and alone and all(space == Space(axis) for _, space in found.values)):
        return None
    return out, found.touches
