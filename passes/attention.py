"""Recognise scaled dot-product attention and make it one sparsec::Attention node.

    MatMul(softmax(scale * MatMul(q, k^T) + mask), v)

Transpositions of heads and positions in front of q, k and v and behind the result become attributes. Heads of q that share a head
of k and v may have been joined with the positions: Reshape [B, G, H/G * T, S] -> [B, G, H/G, T, S] around the softmax.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sparsec import ops

__all__ = ["FuseAttention"]

_SWAP = (0, 2, 1, 3)


@dataclass
class _Match:
    """The parts of one attention; `nodes` are replaced, the last of them makes `end`."""

    q: ir.Value
    k: ir.Value
    v: ir.Value
    mask: ir.Value | None
    scale: float
    swapped: list[bool]
    shared: tuple[int, int]  # query heads that share a head of k and v, positions of each
    nodes: list[ir.Node]
    end: ir.Value


class FuseAttention(ir.passes.InPlacePass):
    """Rewrite every attention found; runs after weights are fused, so that no linear layer is mistaken for one."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            if node.op_type == "Softmax" and not node.domain and (match := _match(node)) is not None:
                _rewrite(model, match, node.name or "")
                modified = True
        return ir.passes.PassResult(model, modified)


def _match(softmax: ir.Node) -> _Match | None:
    nodes = [softmax]
    weights, product = softmax.outputs[0], None
    scores = softmax.inputs[0]
    assert scores is not None
    full = _shape(scores)
    if (
        full is None
        or scores.dtype != ir.DataType.FLOAT
        or softmax.attributes.get_int("axis", -1) % len(full) != len(full) - 1
    ):
        return None
    mask: ir.Value | None = None
    scale = 1.0
    found: tuple[ir.Value, ir.Value | None] | None
    while product is None:
        node = scores.producer()
        if node is None or node.domain or not _private(scores):
            return None
        nodes.insert(0, node)
        if node.op_type == "MatMul":
            product = node
            continue
        if node.op_type == "Add" and mask is None and scale == 1.0:
            found = _addends(node, full)
        elif node.op_type in ("Mul", "Div"):
            found = _scaled(node)
            if found is not None:
                factor = float(found[1].const_value.numpy().reshape(()))  # type: ignore[union-attr]
                scale = scale * factor if node.op_type == "Mul" else scale / factor
        elif node.op_type == "Reshape" and (shape := _shape(node.inputs[0])) is not None and shape[-1] == full[-1]:
            assert node.inputs[0] is not None
            found = (node.inputs[0], None)
        else:
            return None
        if found is None:
            return None
        scores = found[0]
        if node.op_type == "Add":
            mask = found[1]
    q, right = product.inputs
    after = _reader(weights)
    if after is not None and after.op_type == "Reshape":
        nodes.append(after)
        weights = after.outputs[0]
        after = _reader(weights)
    if after is None or after.op_type != "MatMul" or after.inputs[0] is not weights:
        return None
    nodes.append(after)
    v = after.inputs[1]
    joined = _shape(product.outputs[0])
    if q is None or right is None or v is None or joined is None or len(joined) != 4 or _shape(weights) != joined:
        return None
    shared = _shared(joined, full)
    k, permutation = _untransposed(right)
    if shared is None or permutation not in ((0, 1, 3, 2), (0, 2, 3, 1)):
        return None
    if any((shape := _shape(value)) is None or len(shape) != 4 for value in (q, k, v)):
        return None
    match = _Match(
        q, k, v, mask, scale, [False, permutation == (0, 2, 3, 1), False, False], shared, nodes, after.outputs[0]
    )
    _absorb_transposes(match)
    heads = (joined[0], joined[1] * shared[0], shared[1], joined[3])
    return match if mask is None or _broadcasts(mask, heads) else None


def _absorb_transposes(match: _Match) -> None:
    """Take exchanges of heads and positions into the node."""
    if match.shared[0] == 1:
        source, permutation = _untransposed(match.q)
        if permutation == _SWAP:
            match.q, match.swapped[0] = source, True
    source, permutation = _untransposed(match.v)
    if permutation == _SWAP:
        match.v, match.swapped[2] = source, True
    reader, skipped = _reader(match.end), None
    if match.shared[0] > 1 and reader is not None and reader.op_type == "Reshape":
        shape = _shape(match.end)
        if shape is not None and _shape(reader.outputs[0]) == (
            shape[0],
            shape[1] * match.shared[0],
            match.shared[1],
            shape[3],
        ):
            skipped, reader = reader, _reader(reader.outputs[0])
    if reader is None or (match.shared[0] > 1 and skipped is None):
        return
    if reader.op_type == "Transpose" and tuple(reader.attributes.get_ints("perm", ())) == _SWAP:
        match.nodes += [node for node in (skipped, reader) if node is not None]
        match.swapped[3], match.end = True, reader.outputs[0]


def _shared(joined: tuple[int, ...], full: tuple[int, ...]) -> tuple[int, int] | None:
    """(heads that share k and v, positions) when scores of shape `joined` were given the shape `full` for the softmax."""
    if joined == full:
        return 1, joined[2]
    if len(full) == 5 and full[:2] == joined[:2] and full[2] * full[3] == joined[2] and full[4] == joined[3]:
        return full[2], full[3]
    return None


def _broadcasts(mask: ir.Value, scores: tuple[int, ...]) -> bool:
    """Whether the mask, given for the grouped shape, means the same for [B, H, T, S]: nothing but T and S may vary then."""
    shape = _shape(mask)
    if shape is None or mask.dtype != ir.DataType.FLOAT:
        return False
    if len(shape) > 4:
        return False
    return all(n in (1, m) for n, m in zip(shape[::-1], scores[::-1], strict=False)) and (
        len(shape) <= 2 or all(n == 1 for n in shape[:-2]) or len(shape) == 4
    )


def _rewrite(model: ir.Model, match: _Match, name: str) -> None:
    graph = model.graph
    last, old = match.nodes[-1], match.end
    q, before = match.q, []
    groups, positions = match.shared
    if groups > 1:
        b, g, _, d = _static(match.q)
        before.append(_reshape(graph, q, (b, g * groups, positions, d)))
        q = before[0].outputs[0]
    built = ops.attention(
        q, match.k, match.v, mask=match.mask, scale=match.scale, swapped=match.swapped, name=name or (old.name or "")
    )
    new, inserted = built.output, [*before, built.node]
    if _static(new) != _static(old):  # the heads were joined with the positions, and still are behind the node
        inserted.append(_reshape(graph, new, _static(old)))
        new = inserted[-1].outputs[0]
    new.shape, new.type = old.shape, old.type
    ir.convenience.replace_nodes_and_values(graph, last, list(reversed(match.nodes)), inserted, [old], [new])
    built.register(model)


def _reshape(graph: ir.Graph, value: ir.Value, shape: tuple[int, ...]) -> ir.Node:
    name = "shape." + "x".join(map(str, shape))
    target = graph.initializers.get(name)
    if target is None:
        tensor = ir.tensor(np.array(shape, np.int64), name=name)
        target = ir.Value(
            name=name, shape=ir.Shape([len(shape)]), type=ir.TensorType(ir.DataType.INT64), const_value=tensor
        )
        graph.register_initializer(target)
    node = ir.node("Reshape", [value, target])
    node.outputs[0].shape, node.outputs[0].type = ir.Shape(shape), value.type
    return node


def _shape(value: ir.Value | None) -> tuple[int, ...] | None:
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(int(n) for n in value.shape.numpy())


def _static(value: ir.Value) -> tuple[int, ...]:
    shape = _shape(value)
    assert shape is not None
    return shape


def _private(value: ir.Value) -> bool:
    """Read once, and by nobody outside of the graph."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def _reader(value: ir.Value) -> ir.Node | None:
    """The only reader of a value, if it is a standard operator."""
    if not _private(value):
        return None
    node, _ = next(iter(value.uses()))
    return None if node.domain else node


def _addends(node: ir.Node, full: tuple[int, ...]) -> tuple[ir.Value, ir.Value] | None:
    """(scores, mask) of an addition: the scores have the whole shape and are computed for it."""
    for index in (0, 1):
        scores, mask = node.inputs[index], node.inputs[1 - index]
        if scores is None or mask is None or _shape(scores) != full or not _private(scores):
            continue
        producer = scores.producer()
        if producer is not None and producer.op_type in ("Mul", "Div", "Reshape", "MatMul"):
            return scores, mask
    return None


def _scaled(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """(scores, constant scalar) of a multiplication or division."""
    for index in (0, 1) if node.op_type == "Mul" else (0,):
        scores, factor = node.inputs[index], node.inputs[1 - index]
        if (
            scores is not None
            and factor is not None
            and factor.const_value is not None
            and factor.const_value.size == 1
        ):
            return scores, factor
    return None


def _untransposed(value: ir.Value) -> tuple[ir.Value, tuple[int, ...]]:
    """(source, permutation) when the value is a transposition, else (value, ())."""
    node = value.producer()
    if node is None or node.domain or node.op_type != "Transpose" or node.inputs[0] is None:
        return value, ()
    return node.inputs[0], tuple(node.attributes.get_ints("perm", ()))
