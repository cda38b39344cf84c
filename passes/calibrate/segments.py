"""A graph cut into segments, so that calibration runs every node once and keeps only what later segments read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

__all__ = ["Segment", "segments"]


@dataclass(frozen=True)
class Segment:
    """The nodes between two cuts. `reads` are values made before it (or inputs of the model), `makes` those it makes that are
    read after it, `drops` those nobody reads after it."""

    reads: tuple[str, ...]
    makes: tuple[str, ...]
    drops: tuple[str, ...]

    def model(self, whole: ir.Model) -> ir.Model | None:
        """The segment of `whole` (a graph with the same names) as a model of its own; None if it makes nothing."""
        if not self.makes:
            return None
        graph = ir.convenience.extract(whole.graph, self.reads, self.makes)
        graph.opset_imports.update(whole.opset_imports)
        return ir.Model(graph, ir_version=whole.ir_version, functions=list(whole.functions.values()))


def segments(graph: ir.Graph, cuts: Sequence[int], wanted: Sequence[Sequence[str]]) -> list[Segment]:
    """One segment for each cut: the nodes up to `cuts[i]` (ascending node numbers) that come after the cut before.

    wanted[i]: names of values that must be at hand after segment i, whoever reads them.
    """
    nodes = list(graph)
    made_at: dict[str, int] = {value.name or "": -1 for value in graph.inputs}
    last_read: dict[str, int] = {}
    reads_of: list[set[str]] = []
    for number, node in enumerate(nodes):
        read = {name for name in _reads(node) if name in made_at}
        reads_of.append(read)
        last_read.update(dict.fromkeys(read, number))
        made_at.update((out.name or "", number) for out in node.outputs)
    for cut, names in zip(cuts, wanted, strict=True):
        for name in names:
            last_read[name] = max(last_read.get(name, -1), cut)
    found, start = [], 0
    alive = {value.name or "" for value in graph.inputs}
    for cut in cuts:
        after = {name for name, last in last_read.items() if made_at[name] < cut and last >= cut}
        makes = sorted(name for name in after if made_at[name] >= start)
        reads = _needed(nodes, reads_of, made_at, makes, start)
        drops = sorted((alive | set(makes)) - after)
        found.append(Segment(tuple(sorted(reads)), tuple(makes), tuple(drops)))
        alive = after
        start = cut
    return found


def _needed(
    nodes: Sequence[ir.Node], reads_of: Sequence[set[str]], made_at: dict[str, int], makes: Sequence[str], start: int
) -> set[str]:
    """Values made before node `start` that are read on the way to `makes`."""
    found: set[str] = set()
    todo, seen = [made_at[name] for name in makes], set()
    while todo:
        number = todo.pop()
        if number in seen:
            continue
        seen.add(number)
        for name in reads_of[number]:
            if made_at[name] < start:
                found.add(name)
            else:
                todo.append(made_at[name])
    return found


def _reads(node: ir.Node) -> set[str]:
    """Names a node reads, also in the bodies of its subgraphs."""
    found = {value.name or "" for value in node.inputs if value is not None}
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            bodies = [attribute.as_graph()]
        elif attribute.type == ir.AttributeType.GRAPHS:
            bodies = list(attribute.as_graphs())
        else:
            continue
        for body in bodies:
            for inner in body:
                found |= _reads(inner)
    return found
