"""The hidden stream of a transformer: what its norms read, and the terms that are added up to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsec.passes.constants import register_constant
from sparsec.passes.structure.axes import sizes
from sparsec.passes.structure.moments import linear_use

__all__ = ["Norm", "Point", "Stream", "Term", "find_stream", "linear_readers", "separate_norms"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Norm:
    """A normalisation of the last axis: y = n * scale + bias, where n is x (less its mean, if `centres`) over its root mean
    square. scale, bias: float64 [D]."""

    node: ir.Node
    centres: bool
    epsilon: float
    scale: NDArray[np.float64]
    bias: NDArray[np.float64]

    @property
    def output(self) -> ir.Value:
        return self.node.outputs[0]


@dataclass(frozen=True, eq=False)
class Term:
    """One of the values that make a point: input `index` of the addition `node` (or the point itself, index -1). kind: `constant`,
    `linear` (a layer of its own), `table` (a lookup of its own), `point`, `norm` (the result of a norm of the stream), or `other`."""

    node: ir.Node
    index: int
    value: ir.Value
    kind: str


@dataclass(frozen=True, eq=False)
class Point:
    """A value that norms of the stream read. sums: it, and the sums on the way to it, which nobody else reads."""

    value: ir.Value
    norms: list[Norm]
    terms: list[Term] = field(default_factory=list)
    sums: list[ir.Value] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Stream:
    """points, in order of execution; width: D; why_not: the reason why the stream cannot be rotated, or ''."""

    points: list[Point]
    width: int
    why_not: str

    def norm_of(self, value: ir.Value) -> tuple[Point, Norm] | None:
        """The point and the norm that made a value."""
        return next(((p, n) for p in self.points for n in p.norms if n.output is value), None)


def find_stream(model: ir.Model) -> Stream:
    """The stream with the most norms of one width."""
    norms = [norm for node in model.graph if (norm := _norm(node)) is not None]
    if not norms:
        return Stream([], 0, "the model has no LayerNormalization or RMSNormalization of the last axis")
    width = Counter(len(norm.scale) for norm in norms).most_common(1)[0][0]
    norms = [norm for norm in norms if len(norm.scale) == width]
    points: dict[ir.Value, Point] = {}
    for norm in norms:
        value = norm.node.inputs[0]
        assert value is not None
        points.setdefault(value, Point(value, [])).norms.append(norm)
    outputs = {norm.output for norm in norms}
    for point in points.values():
        _expand(point, point.value, points, outputs, width)
    stream = Stream(list(points.values()), width, "")
    return Stream(stream.points, width, _refusal(stream))


def separate_norms(model: ir.Model) -> None:
    """Where a norm reads another norm's result (a block between them was bypassed), an addition of zeros becomes the point."""
    for node in list(model.graph):
        norm = _norm(node)
        value = node.inputs[0] if node.inputs else None
        before = None if value is None else value.producer()
        if norm is None or value is None or before is None or _norm(before) is None:
            continue
        zeros = register_constant(model, f"{node.name}.zeros", np.zeros(len(norm.scale), np.float32))
        add = ir.node("Add", [value, zeros], name=f"{node.name}.point")
        made = add.outputs[0]
        made.name, made.type, made.shape = f"{node.name}.point.out", value.type, value.shape
        model.graph.insert_before(node, add)
        node.replace_input_with(0, made)


def _norm(node: ir.Node) -> Norm | None:
    if node.domain or node.op_type not in ("LayerNormalization", "RMSNormalization"):
        return None
    x, scale = node.inputs[0], node.inputs[1]
    if x is None or scale is None or x.const_value is not None or scale.const_value is None:
        return None
    shape = sizes(x)
    if node.attributes.get_int("axis", -1) % len(shape) != len(shape) - 1 or any(o.uses() for o in node.outputs[1:]):
        return None
    g = np.broadcast_to(scale.const_value.numpy().astype(np.float64), (shape[-1],))
    given = node.inputs[2] if len(node.inputs) > 2 else None
    if given is not None and given.const_value is None:
        return None
    b = np.zeros(shape[-1])
    if given is not None and given.const_value is not None:
        b = b + given.const_value.numpy()
    return Norm(node, node.op_type == "LayerNormalization", node.attributes.get_float("epsilon", 1e-5), g, b)


def _expand(point: Point, total: ir.Value, points: dict[ir.Value, Point], outputs: set[ir.Value], width: int) -> None:
    node = total.producer()
    shape = sizes(total)
    if node is None or node.op_type != "Add" or node.domain or any(not _fits(v, width) for v in node.inputs):
        point.terms.append(Term(point.norms[0].node, -1, total, _kind(total, own=False)))
        point.sums.append(total)
        return
    point.sums.append(total)
    for index, value in enumerate(node.inputs):
        assert value is not None
        single = len(value.uses()) == 1 and not value.is_graph_output()
        producer = value.producer()
        if value.const_value is not None:
            point.terms.append(Term(node, index, value, "constant"))
        elif value in points or value in outputs:
            point.terms.append(Term(node, index, value, "point" if value in points else "norm"))
        elif single and producer is not None and producer.op_type == "Add" and sizes(value) == shape:
            if all(_fits(v, width) for v in producer.inputs):
                _expand(point, value, points, outputs, width)
            else:
                point.terms.append(Term(node, index, value, "other"))
        else:
            point.terms.append(Term(node, index, value, _kind(value, own=True)))


def _fits(value: ir.Value | None, width: int) -> bool:
    """Whether an operand has the stream's width (constants may be the same for all of it)."""
    if value is None:
        return False
    shape = sizes(value)
    return (shape[-1:] == (width,)) or (value.const_value is not None and (not shape or shape[-1] == 1))


def _kind(value: ir.Value, *, own: bool) -> str:
    """own: only a value with a single reader may be changed where it is made."""
    node = value.producer()
    if node is None or node.domain or (own and len(value.uses()) > 1) or value.is_graph_output():
        return "other"
    if linear_use(node) is not None and node.op_type != "Conv" and _single(node.inputs[1]):
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return "linear" if bias is None or bias.const_value is not None else "other"
    table = node.inputs[0] if node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0 else None
    if table is not None and table.const_value is not None and len(sizes(table)) == 2 and _single(table):
        return "table"
    return "other"


def _single(value: ir.Value | None) -> bool:
    return value is not None and len(value.uses()) == 1


def _refusal(stream: Stream) -> str:
    if len({norm.centres for point in stream.points for norm in point.norms}) > 1:
        return "norms of both kinds, LayerNormalization and RMSNormalization, read the stream"
    edges = {(t.node, t.index) for point in stream.points for t in point.terms if t.index >= 0}
    results = {norm.output for point in stream.points for norm in point.norms}
    for point in stream.points:
        if point.value in results:
            return f"'{point.value.name}' is both read and made by norms"
        readers = {norm.node for norm in point.norms}
        if point.value.is_graph_output():
            return f"'{point.value.name}' is an output of the model"
        for node, index in point.value.uses():
            if (node, index) not in edges and node not in readers:
                return f"'{point.value.name}' is also read by {node.op_type} ({node.name})"
    return ""


def linear_readers(values: Sequence[ir.Value]) -> list[ir.Node]:
    """Layers that read one of the values as their rows and whose weight nobody else reads."""
    found = []
    for value in values:
        for node, index in value.uses():
            if index == 0 and node.op_type != "Conv" and linear_use(node) is not None and _single(node.inputs[1]):
                found.append(node)
    return found
