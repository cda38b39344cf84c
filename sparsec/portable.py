"""What a portable ONNX file holds: a compressed graph, its biases in halves where that costs nothing that counts."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsec.formats.meaning import FloatValue
from sparsec.op_view import SparsecNode, is_sparsec, view

__all__ = ["portable", "saved_by_halves"]

_LEAST = 64
"""Elements of a bias that are worth a Cast node of some 60 bytes."""
_LOST = 2.0**-11
"""Of a bias, root of the relative squared error: what rounding to fp16 costs; more where its values are too small or too large."""


def portable(model: ir.Model) -> ir.Model:
    """A copy of a compressed graph whose constant biases of weights of up to 16 bits are fp16, with a Cast to float32 behind.

    Such a weight's own rounding is as large as theirs, mostly much larger; in small files biases are several percent of the bytes.
    onnxruntime folds the Cast when it loads the file, and so does compiling it.
    """
    result = model.clone()
    found: dict[str, list[SparsecNode]] = {}
    for node in result.graph:
        op = view(node) if is_sparsec(node) and node.op_type in ("MatMul", "Conv") else None
        if op is not None and op.bias is not None and op.bias.name and op.bias.is_initializer():
            found.setdefault(op.bias.name, []).append(op)
    for name, ops in found.items():
        value = result.graph.initializers[name]
        if all(_is_rounded(op) for op in ops) and len(value.uses()) == len(ops) and not value.is_graph_output():
            _halve(result.graph, value, ops[0].node)
    return result


def saved_by_halves(model: ir.Model) -> dict[str, int]:
    """Bytes that the fp16 bias of a node saves, by the node's name, in a graph that `portable` made."""
    found = {}
    for node in model.graph:
        if is_sparsec(node) and node.op_type in ("MatMul", "Conv") and (bias := view(node).bias) is not None:
            cast = bias.producer()
            if (
                cast is not None
                and cast.op_type == "Cast"
                and (half := cast.inputs[0]) is not None
                and half.is_initializer()
            ):
                assert half.const_value is not None
                found[node.name or ""] = half.const_value.nbytes
    return found


def _is_rounded(op: SparsecNode) -> bool:
    meaning = op.scheme.codec.meaning
    return not op.scheme.is_plain and not (isinstance(meaning, FloatValue) and meaning.width == 32)


def _halve(graph: ir.Graph, value: ir.Value, first: ir.Node) -> None:
    name = value.name
    assert name is not None
    assert value.const_value is not None
    array = value.const_value.numpy()
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    off = np.square(half.astype(np.float64) - array).sum()
    if (
        array.dtype != np.float32
        or array.size < _LEAST
        or not off <= _LOST**2 * np.square(array, dtype=np.float64).sum()
    ):
        return
    stored = ir.Value(
        name=f"{name}.half", shape=ir.Shape(half.shape), type=ir.TensorType(ir.DataType.FLOAT16),
        const_value=ir.Tensor(half, name=f"{name}.half"),
    )  # fmt: skip
    cast = ir.node("Cast", [stored], {"to": int(ir.DataType.FLOAT)})
    wide = cast.outputs[0]
    wide.dtype, wide.shape = ir.DataType.FLOAT, ir.Shape(half.shape)
    graph.initializers.add(stored)
    graph.insert_before(first, cast)
    value.replace_all_uses_with(wide)
    graph.initializers.pop(name)
    wide.name = name
