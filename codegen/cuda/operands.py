"""Computed operands of products on a GPU, read where they lie: any order of axes in which one of the matrix's axes is dense.

An operand has `kind` rows or cols (neighbours in memory are neighbours in a row, or in a column), a distance `ld<name>` from row to row or
from column to column, and `steps`, one for each axis of `batches` (0 where it is broadcast). Transpositions that only products read are
left out for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Tensor, row_strides

Expr = Any
_READERS = {"MatMul": 2, "Gemm": 2}  # operators whose first operands are read by strides


@dataclass(frozen=True)
class Operand:
    """A value as matrices [rows, cols]: how far apart its axes' neighbours lie, and of its batch axes those of the product."""

    tensor: Tensor
    row: int
    col: int
    steps: tuple[int, ...]

    @property
    def kind(self) -> str:
        """rows: elements of a row are neighbours; cols: those of a column."""
        return "rows" if self.col == 1 else "cols"

    @property
    def ld(self) -> int:
        """From row to row, or from column to column."""
        return self.row if self.col == 1 else self.col

    def turned(self) -> Operand:
        """The matrices transposed."""
        return Operand(self.tensor, self.col, self.row, self.steps)

    def run(self, count: int) -> int:
        """Elements that may be read at once where `count` of them are neighbours: 8 if all such runs begin at multiples of 16 bytes as
        halves."""
        aligned = all(size % 8 == 0 for size in (count, self.ld, *self.steps, self.tensor.offset // 4))
        return 8 if aligned else 1

    def params(self, name: str) -> dict[str, Any]:
        """JSON-able form, of operand `name`."""
        return {"kind": self.kind, f"ld{name}": self.ld, "steps": list(self.steps), "size": self.tensor.size}


def turned_operands(low: Lowering) -> set[ir.Node]:
    """Transposes that nobody but products of two computed values reads, who find one of the two matrix axes dense behind them."""
    found = set()
    for node in low.graph:
        source = node.inputs[0] if node.inputs else None
        if node.domain or node.op_type != "Transpose" or source is None or low.constant(source) is not None:
            continue
        out = node.outputs[0]
        strides = _strides(low, out)
        readers = out.uses()
        reads = all(not u.domain and at < _READERS.get(u.op_type, 0) for u, at in readers)
        if readers and reads and not out.is_graph_output() and len(strides) >= 2 and 1 in strides[-2:]:
            found.add(node)
    return found


def _strides(low: Lowering, value: ir.Value) -> list[int]:
    """Of the axes of a Transpose's result, in its operand in row order."""
    node = value.producer()
    assert node is not None
    source = node.inputs[0]
    assert source is not None
    shape = low.shape(source)
    strides = row_strides(shape)
    return [strides[a] for a in node.attributes.get_ints("perm", tuple(reversed(range(len(shape)))))]


def read(low: Lowering, value: ir.Value, batch: tuple[int, ...], vector: str = "") -> Operand:
    """The value as an operand of a product over `batch`; vector: what one axis alone stands for, `row` or `column`."""
    producer = value.producer()
    shape = low.shape(value)
    if producer is not None and producer in low.left_out:
        assert producer.inputs[0] is not None
        tensor, strides = low.get(producer.inputs[0]), _strides(low, value)
    else:
        tensor, strides = low.get(value), row_strides(shape)
    if len(shape) == 1:
        return Operand(tensor, *((shape[0], 1) if vector == "row" else (1, shape[0])), (0,) * len(batch))
    leading = (0,) * (len(batch) - (len(shape) - 2))
    steps = [0 if size == 1 else stride for size, stride in zip(shape[:-2], strides[:-2], strict=True)]
    (rows, cols), (row, col) = shape[-2:], strides[-2:]
    if rows == 1 and col == 1:  # an axis of one element lies as it likes
        row = cols
    elif cols == 1 and row == 1:
        col = rows
    return Operand(tensor, row, col, (*leading, *steps))


def joined(batch: tuple[int, ...], a: Operand, b: Operand) -> tuple[tuple[int, ...], Operand, Operand]:
    """The same with batch axes joined as far as both operands allow it, and without those of one element."""
    axes: list[list[int]] = []
    for size, x, y in zip(batch, a.steps, b.steps, strict=True):
        if size == 1:
            continue
        if axes and axes[-1][1] == x * size and axes[-1][2] == y * size:
            axes[-1] = [axes[-1][0] * size, x, y]
        else:
            axes.append([size, x, y])
    sizes, steps_a, steps_b = (tuple(column) for column in zip(*axes, strict=True)) if axes else ((), (), ())
    return (
        sizes,
        Operand(a.tensor, a.row, a.col, steps_a),
        Operand(b.tensor, b.row, b.col, steps_b),
    )


def start(k: Any, p: Mapping[str, Any], name: str, batch: Expr) -> Expr:
    """Where the matrix number `batch` of operand `name` begins."""
    T, operand = k.T, p[name]
    if "steps" not in operand:
        return batch * operand["batch_stride"]
    total: Expr = T.int32(0)
    for at, (size, step) in enumerate(zip(p["batches"], operand["steps"], strict=True)):
        if step:
            inner = prod(p["batches"][at + 1 :])
            total = total + T.truncmod(T.truncdiv(batch, inner), size) * step
    return total


def largest(low: Lowering, value: ir.Value) -> float:
    """The largest magnitude of a constant; 0 of what is computed."""
    array = low.constant(value)
    return 0.0 if array is None else float(np.abs(array).max(initial=0.0))
