"""SliceGPT (Ashkboos, Croci, do Nascimento, Hoefler, Hensman, "SliceGPT: Compress Large Language Models by Deleting Rows and Columns",
2024): every point of the hidden stream in a basis of its own, of which the directions with the least energy are left out.

A norm without scale and mean commutes with rotations: the mean goes into what writes the stream ("Pre-RMSNorm and Pre-CRMSNorm
Transformers", Jiang, Gu, Zhu, Pan, 2023), the scale into what reads it. Where a value goes on from one basis to another, past a block, a
matrix turns it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, NDArray

from sparsec.passes.constants import register_constant
from sparsec.passes.structure.axes import sizes
from sparsec.passes.structure.dead import fold
from sparsec.passes.structure.hidden import Norm, Point, Stream, Term, linear_readers
from sparsec.passes.structure.moments import linear_use

__all__ = ["Turned", "narrow", "principal", "turn", "write"]

Array = np.ndarray[Any, Any]
Floats = NDArray[np.float64]


def principal(second_moment: ArrayLike, width: int) -> Floats:
    """The `width` directions with the most energy, float64 [D, width], orthonormal columns, most first; the largest entry of each
    is positive, so that equal moments give equal bytes."""
    _, vectors = np.linalg.eigh(np.asarray(second_moment, np.float64))
    found: Floats = vectors[:, ::-1][:, :width]
    largest = np.abs(found).argmax(0)
    return np.asarray(found * np.sign(found[largest, np.arange(width)]))


@dataclass(eq=False)
class Turned:
    """layers: by node, what the outputs of a layer that writes the stream were multiplied by, [D, width]. values: by the name of
    a new node: the value of the model before that it should give, times a matrix, and a node that reads it there."""

    layers: dict[str, Floats] = field(default_factory=dict)
    values: dict[str, tuple[str, str, Floats]] = field(default_factory=dict)


def turn(model: ir.Model, stream: Stream, bases: dict[ir.Value, Floats]) -> Turned:
    """Rewrite a stream in place, each point in its basis (float64 [D, width], orthonormal columns, one width for all); with width D
    exact."""
    return _Turning(model, stream, bases).run()


class _Turning:
    def __init__(self, model: ir.Model, stream: Stream, bases: dict[ir.Value, Floats]) -> None:
        self.model, self.stream, self.bases, self.done = model, stream, bases, Turned()
        self.width = next(iter(bases.values())).shape[1]
        centres = stream.points[0].norms[0].centres
        self.into = {value: base - base.mean(0) if centres else base for value, base in bases.items()}
        self.shifts: dict[str, Floats] = {}

    def run(self) -> Turned:
        # What reads the stream first: its readers are looked up while the old values are there.
        readers = {n: linear_readers([n.output]) for p in self.stream.points for n in p.norms}
        edges = {(t.node, t.index) for p in self.stream.points for t in p.terms}
        for point in self.stream.points:
            for norm in point.norms:
                self._norm(point, norm, readers[norm], edges)
        for point in self.stream.points:
            for term in point.terms:
                self._term(point, term)
            if point.terms[0].kind != "other" or point.terms[0].index >= 0:
                for value in point.sums:
                    narrow(value, self.width)
        for name, shift in self.shifts.items():
            fold(self.model, name, shift)
        return self.done

    def _norm(self, point: Point, norm: Norm, readers: list[ir.Node], edges: set[tuple[ir.Node, int]]) -> None:
        """The norm becomes one of the turned point, without scale and bias; readers take these over."""
        base, node = self.bases[point.value], norm.node
        share = len(base) / self.width
        scale = register_constant(self.model, f"{node.name}.scale", np.full(self.width, share**0.5, np.float32))
        made = ir.node(
            "RMSNormalization", [point.value, scale],
            attributes={"axis": -1, "epsilon": norm.epsilon * share}, name=f"{node.name}.turned",
        )  # fmt: skip
        out = _result(made, norm.output, self.width)
        self.model.graph.insert_after(node, made)
        outwards = norm.scale[:, None] * base  # [D, width]
        other: list[tuple[ir.Node, int]] = []
        for reader, index in list(norm.output.uses()):
            if (reader, index) in edges:
                continue  # `_term` turns it
            if reader in readers:
                self._read(reader, outwards, norm.bias)
                reader.replace_input_with(0, out)
            else:
                other.append((reader, index))
        if other or norm.output.is_graph_output():
            self._whole(norm, made, out, outwards, other)
        for turned in self.stream.points:
            for term in turned.terms:
                if term.value is norm.output and term.index >= 0:
                    term.node.replace_input_with(term.index, out)
        self.model.graph.remove(node, safe=True)

    def _whole(
        self, norm: Norm, made: ir.Node, out: ir.Value, outwards: Floats, readers: list[tuple[ir.Node, int]]
    ) -> None:
        """The result of a norm as it was, for those who cannot read it turned."""
        old = norm.output
        product = self._product(made, out, outwards.T, f"{norm.node.name}.back", len(outwards))
        value = self._add(product.producer(), product, norm.bias, f"{norm.node.name}.back.bias")
        for reader, index in readers:
            reader.replace_input_with(index, value)
        if readers:
            producer = product.producer()
            assert producer is not None
            self.done.values[producer.name or ""] = (
                old.name or "", readers[0][0].name or "", np.eye(len(outwards)),
            )  # fmt: skip
        for index, output in enumerate(self.model.graph.outputs):
            if output is old:
                name, old.name = old.name, f"{old.name}.turned"
                value.name = name
                self.model.graph.outputs[index] = value

    def _read(self, node: ir.Node, outwards: Floats, bias: Floats) -> None:
        """A layer behind a norm: W diag(g) Q, and what the norm's bias made of it in its own."""
        use, value = linear_use(node), node.inputs[1]
        assert use is not None
        assert value is not None
        matrix = _array(value).T if use.flipped else _array(value)
        turned = matrix @ outwards
        _set(value, turned.T if use.flipped else turned)
        if bias.any():
            self.shifts[node.name or ""] = self.shifts.get(node.name or "", 0.0) + matrix @ bias

    def _term(self, point: Point, term: Term) -> None:
        into, node = self.into[point.value], term.value.producer()
        match term.kind:
            case "constant" | "linear" | "table":
                write(self.model, term, into)
                if term.kind == "linear":
                    assert node is not None
                    self.done.layers[node.name or ""] = into
            case "point" | "norm":
                self._onwards(term, into, self.bases[point.value])
            case _:
                self._other(term, into)

    def _onwards(self, term: Term, into: Floats, base: Floats) -> None:
        """Past a block: from the basis of the point before to that of the next."""
        found = self.stream.norm_of(term.value)
        before = self.bases[term.value if found is None else found[0].value]
        if found is None and before is base:
            return
        now = term.node.inputs[term.index]
        assert now is not None
        matrix = before.T @ into if found is None else (found[1].scale[:, None] * before).T @ into
        name = f"{term.node.name}.onwards"
        product = self._product(term.node, now, matrix, name, self.width, before=True)
        node = product.producer()
        assert node is not None
        self.done.values[node.name or ""] = (term.value.name or "", term.node.name or "", into)
        if found is not None:
            product = self._add(node, product, found[1].bias @ into, f"{name}.bias")
        term.node.replace_input_with(term.index, product)

    def _other(self, term: Term, into: Floats) -> None:
        """What cannot be changed where it is made is turned by a product."""
        producer = term.value.producer()
        if term.index >= 0:
            product = self._product(term.node, term.value, into, f"{term.node.name}.turn", self.width, before=True)
            term.node.replace_input_with(term.index, product)
            return
        readers = list(term.value.uses())
        first = producer if producer is not None else next(iter(self.model.graph))
        product = self._product(first, term.value, into, f"{term.node.name}.turn", self.width, before=producer is None)
        for reader, index in readers:
            reader.replace_input_with(index, product)

    def _product(
        self, at: ir.Node, x: ir.Value, matrix: Floats, name: str, width: int, *, before: bool = False
    ) -> ir.Value:
        weight = register_constant(self.model, f"{name}.weight", matrix.astype(np.float32))
        node = ir.node("MatMul", [x, weight], name=name)
        (self.model.graph.insert_before if before else self.model.graph.insert_after)(at, node)
        return _result(node, x, width)

    def _add(self, at: ir.Node | None, x: ir.Value, bias: Floats, name: str) -> ir.Value:
        if not bias.any():
            return x
        assert at is not None
        node = ir.node("Add", [x, register_constant(self.model, name, bias.astype(np.float32))], name=name)
        self.model.graph.insert_after(at, node)
        return _result(node, x, sizes(x)[-1])


def write(model: ir.Model, term: Term, into: Floats) -> None:
    """A term that can be changed where it is made (`constant`, `linear`, `table`) is multiplied by `into`, [D, width]."""
    node = term.value.producer()
    if term.kind == "constant":
        term.node.replace_input_with(term.index, _times(model, term.value, into))
        return
    assert node is not None
    if term.kind == "table":
        table = node.inputs[0]
        assert table is not None
        _set(table, _array(table) @ into)
    else:
        use, value = linear_use(node), node.inputs[1]
        assert use is not None
        assert value is not None
        _set(value, _array(value) @ into if use.flipped else into.T @ _array(value))
        if len(node.inputs) > 2 and (bias := node.inputs[2]) is not None:
            node.replace_input_with(2, _times(model, bias, into))
    narrow(node.outputs[0], into.shape[1])


def _times(model: ir.Model, value: ir.Value, into: Floats) -> ir.Value:
    array = _array(value)
    wide = np.broadcast_to(array, (*array.shape[:-1], len(into)))
    return register_constant(model, f"{value.name}.turned", (wide @ into).astype(np.float32))


def _result(node: ir.Node, like: ir.Value, width: int) -> ir.Value:
    out = node.outputs[0]
    out.name, out.type = f"{node.name}.out", like.type
    out.shape = ir.Shape((*sizes(like)[:-1], width))
    return out


def narrow(value: ir.Value, width: int) -> None:
    """Give a value another width; the rest of its shape stays."""
    value.shape = ir.Shape((*sizes(value)[:-1], width))


def _array(value: ir.Value) -> Floats:
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy(), np.float64)


def _set(value: ir.Value, array: Array) -> None:
    value.const_value = ir.tensor(np.ascontiguousarray(array, np.float32), name=value.name)
    value.shape = ir.Shape(array.shape)
