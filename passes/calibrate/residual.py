"""What other branches add to a layer's outputs: the compressed model's is off by something that the layer can make up for in part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsec.passes.weights import Use

__all__ = ["Residual", "added_to"]


@dataclass(frozen=True, eq=False)
class Residual:
    """A value that an Add puts on top of a layer's outputs.

    order: int [N] where a Gather lies between: output n of the layer meets channel order[n] of the value; else None.
    """

    value: ir.Value
    order: NDArray[np.intp] | None

    @property
    def name(self) -> str:
        return self.value.name or ""


def added_to(use: Use) -> Residual | None:
    """What is added behind biases (and behind a Gather that gives outputs another order), if it has the shape of the outputs."""
    out = use.node.outputs[0]
    shape, order = out.shape, None
    if shape is None:
        return None
    axis = 1 if use.node.op_type == "Conv" else len(shape) - 1
    while out.shape == shape and not out.is_graph_output():
        uses = list(out.uses())
        if len(uses) != 1 or uses[0][0].domain:
            break
        reader, index = uses[0]
        if reader.op_type == "Gather" and order is None and index == 0:
            order = _order(reader, axis, len(shape))
            if order is None:
                break
        elif reader.op_type == "Add":
            other = reader.inputs[1 - index]
            if other is None:
                break
            if other.const_value is None:
                return Residual(other, order) if other.shape == shape else None
        else:
            break
        out = reader.outputs[0]
    return None


def _order(gather: ir.Node, axis: int, rank: int) -> NDArray[np.intp] | None:
    """Where each channel goes, if the node gives all channels along `axis` another order."""
    index = gather.inputs[1]
    if gather.attributes.get_int("axis", 0) % rank != axis or index is None or index.const_value is None:
        return None
    places = index.const_value.numpy()
    order = np.argsort(places, kind="stable")
    return order if places.ndim == 1 and np.array_equal(places[order], np.arange(len(order))) else None
