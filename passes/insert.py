"""Nodes put behind a value."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["insert_behind"]


def insert_behind(model: ir.Model, value: ir.Value, node: ir.Node, *, made: str, was: str) -> None:
    """What read `value` reads the first output of `node`, a new node that reads it and keeps its shape and type.

    made: ending of the new value's name. was: ending that `value` gets where it was an output of the graph, which keeps its name.
    """
    maker, new = value.producer(), node.outputs[0]
    assert maker is not None
    new.name, new.shape, new.type = f"{value.name}.{made}", value.shape, value.type
    for reader, place in list(value.uses()):
        if reader is not node:
            reader.replace_input_with(place, new)
    for place, output in enumerate(model.graph.outputs):
        if output is value:
            value.name, new.name = f"{value.name}.{was}", value.name
            model.graph.outputs[place] = new
    model.graph.insert_after(maker, node)
