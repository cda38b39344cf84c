"""Find the weights of a canonical graph: constant operands of linear operators, seen as matrices W[N outputs, K inputs].

    MatMul B[K, N]               transposed, rows N
    Gemm   B[N, K] if transB, else B[K, N]
    Conv   [O, I/g, kh, kw]      as [O, I/g * kh * kw]
    Gather table [V, D], axis 0

A Transpose between a table and a MatMul (a tied embedding, stored once) only flips the matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["Dense", "Use", "Weight", "find_weights", "source_of", "use_of"]


@dataclass(frozen=True)
class Use:
    """One node that reads a weight. `index` is the input; `flipped` says that the tensor is [K, N]."""

    node: ir.Node
    index: int
    operator: str
    flipped: bool


@dataclass(frozen=True)
class Weight:
    """A weight and all its uses, which agree on how the tensor is a matrix [rows, cols]."""

    value: ir.Value
    uses: tuple[Use, ...]
    rows: int
    cols: int

    @property
    def name(self) -> str:
        return self.value.name or ""

    @property
    def flipped(self) -> bool:
        return self.uses[0].flipped

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor as ONNX has it."""
        assert self.value.const_value is not None
        return tuple(self.value.const_value.shape.numpy())

    def matrix(self) -> NDArray[np.float32]:
        """W[rows, cols], contiguous float32."""
        assert self.value.const_value is not None
        array = self.value.const_value.numpy()
        return np.ascontiguousarray(array.T if self.flipped else array.reshape(self.rows, self.cols), np.float32)


@dataclass(frozen=True)
class Dense:
    """A constant that looks like a weight and cannot be compressed, with the reason."""

    name: str
    node: str
    operator: str
    shape: tuple[int, ...]
    reason: str
    nbytes: int


def find_weights(model: ir.Model) -> list[Weight | Dense]:
    """All weights in the order of their first use; those that must stay as they are come as `Dense`."""
    found: list[Weight | Dense] = []
    seen: set[ir.Value] = set()
    for node in model.graph:
        for value, reason in _operands(node):
            if value in seen:
                continue
            seen.add(value)
            found.append(_weight(node, value) if not reason else _dense(node, value, reason))
    return found


def source_of(node: ir.Node, index: int) -> ir.Value | None:
    """The value that holds the weight of `node`: its input, or what a Transpose before it reads."""
    value = node.inputs[index] if index < len(node.inputs) else None
    producer = None if value is None else value.producer()
    return producer.inputs[0] if producer is not None and _is_flip(producer) else value


def _is_flip(node: ir.Node) -> bool:
    if node.op_type != "Transpose" or node.domain:
        return False
    value = node.inputs[0]
    return (
        value is not None
        and value.shape is not None
        and len(value.shape) == 2
        and (tuple(node.attributes.get_ints("perm", (1, 0))) == (1, 0))
    )


def use_of(node: ir.Node, index: int) -> Use | str:
    """How `node` reads input `index` as a weight, or the reason why it is none."""
    if node.domain:
        return f"operator {node.domain}::{node.op_type}"
    value = node.inputs[index]
    rank = 0 if value is None or value.shape is None else len(value.shape)
    match node.op_type:
        case "MatMul":
            if index == 0:
                return "constant left operand of MatMul"
            if rank != 2:
                return f"batched operand of rank {rank}"
            return Use(node, 1, "MatMul", source_of(node, 1) is value)
        case "Gemm":
            if index != 1:
                return "left operand or bias of Gemm"
            if node.attributes.get_int("transA", 0):
                return "Gemm with a transposed left operand"
            if node.attributes.get_float("alpha", 1.0) != 1.0 or node.attributes.get_float("beta", 1.0) != 1.0:
                return "Gemm with alpha or beta that could not be folded"
            return Use(node, 1, "Gemm", not node.attributes.get_int("transB", 0))
        case "Conv":
            if index != 1:
                return "input or bias of Conv"
            return Use(node, 1, "DepthwiseConv" if _is_depthwise(node) else "Conv", False)
        case "Gather":
            if index != 0 or rank != 2 or node.attributes.get_int("axis", 0) != 0:
                return "Gather that is not a lookup of table rows"
            return Use(node, 0, "Gather", False)
        case _:
            return f"operand of {node.op_type}"


def _is_depthwise(node: ir.Node) -> bool:
    weight = node.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    return node.attributes.get_int("group", 1) > 1 and weight.shape[1] == 1


def _operands(node: ir.Node) -> Iterator[tuple[ir.Value, str]]:
    """The inputs of a node that are weights or look like one, each with the reason why it must stay dense, or ''."""
    if node.domain:
        return
    if node.op_type in ("LSTM", "GRU", "RNN"):
        for index in (1, 2):
            if (value := _constant(node, index)) is not None:
                yield value, "recurrent weights stay dense"
    elif node.op_type == "ConvTranspose":
        if (value := _constant(node, 1)) is not None:
            yield value, "transposed convolutions stay dense"
    elif node.op_type in ("MatMul", "Gemm", "Conv"):
        for index in (0, 1):
            value = _constant(node, index)
            if value is not None:
                use = use_of(node, index)
                yield value, use if isinstance(use, str) else ""
    elif node.op_type == "Gather":
        value = _constant(node, 0)
        if value is not None and value.dtype is not None and value.dtype.is_floating_point():
            use = use_of(node, 0)
            yield value, use if isinstance(use, str) else ""


def _weight(node: ir.Node, value: ir.Value) -> Weight | Dense:
    tensor = value.const_value
    assert tensor is not None
    if tensor.dtype != ir.DataType.FLOAT:
        return _dense(node, value, f"dtype {tensor.dtype.name.lower()}; only float32 is compressed")
    if 0 in tensor.shape.numpy():
        return _dense(node, value, "empty")
    uses = []
    for user, index in sorted(_readers(value), key=lambda use: (use[0].name or "", use[1])):
        use = use_of(user, index)
        if isinstance(use, str):
            return _dense(node, value, f"shared: also {use} ({user.name})")
        uses.append(use)
    if value.is_graph_output():
        return _dense(node, value, "shared: also an output of the model")
    if len({use.flipped for use in uses}) > 1:
        return _dense(node, value, f"shared by {len(uses)} nodes that read it in different orientations")
    uses.sort(key=lambda use: use.node is not node)
    shape = tensor.shape.numpy()
    rows = shape[1] if uses[0].flipped else shape[0]
    return Weight(value, tuple(uses), int(rows), int(tensor.size // rows))


def _readers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    for node, index in value.uses():
        flipped = _is_flip(node) and not node.outputs[0].is_graph_output()
        if flipped and all(user.op_type == "MatMul" and i == 1 for user, i in node.outputs[0].uses()):
            yield from node.outputs[0].uses()
        else:
            yield node, index


def _dense(node: ir.Node, value: ir.Value, reason: str) -> Dense:
    tensor = value.const_value
    assert tensor is not None
    shape = tuple(int(size) for size in tensor.shape.numpy())
    return Dense(value.name or "", node.name or "", node.op_type, shape, reason, int(tensor.nbytes))


def _constant(node: ir.Node, index: int) -> ir.Value | None:
    value = source_of(node, index) if node.op_type == "MatMul" else node.inputs[index]
    return value if value is not None and value.const_value is not None else None
