"""Which nodes of a finished graph read a weight."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["readers_of"]


def readers_of(model: ir.Model) -> dict[str, list[str]]:
    """Weight name -> names of the nodes that read it, for `report.layer_rows`; an encoded weight's arrays are called `<weight>.<role>`,
    joined weights `<weight>+<weight>`."""
    readers: dict[str, list[str]] = {}
    for node in model.graph:
        for value in node.inputs:
            if value is not None and value.is_initializer() and value.name:
                for whole in {value.name, value.name.rpartition(".")[0]}:
                    for name in {whole, *whole.split("+")}:
                        readers.setdefault(name, []).append(node.name or "")
    return readers
