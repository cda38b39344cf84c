"""Whether a ModelProto is a graph at all: every value is made once, before it is read."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from sparsec.errors import ModelError

SHOWN = 10


def check_graph(graph: onnx.GraphProto, where: str) -> None:
    """Raises ModelError listing values that are made twice, read but never made, or read before they are made."""
    problems = list(_problems(graph, frozenset()))
    if problems:
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ModelError(
            f"{where}: no valid ONNX graph; export the model again:\n  " + "\n  ".join(problems[:SHOWN]) + more
        )


def _problems(graph: onnx.GraphProto, outer: frozenset[str]) -> Iterator[str]:
    made = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    made |= {tensor.values.name for tensor in graph.sparse_initializer}
    later = {name for node in graph.node for name in node.output}
    for node in graph.node:
        label = f"{node.op_type} '{node.name}'"
        for name in dict.fromkeys(filter(None, node.input)):
            if name not in made and name not in outer:
                why = (
                    "which is made after it (a circle, or nodes out of order)"
                    if name in later
                    else "which nothing makes"
                )
                yield f"{label} reads '{name}', {why}"
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _problems(inner, outer | made)
        for name in filter(None, node.output):
            if name in made:
                yield f"{label} makes '{name}', which exists already"
            made.add(name)
    for value in graph.output:
        if value.name not in made and value.name not in outer:
            yield f"output '{value.name}' is made by nothing"
