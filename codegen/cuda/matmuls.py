"""Rules for MatMul and Gemm of two computed operands on a GPU: tensor cores (kernels/matmul.py), or a thread a result in float32."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal, Tensor
from sparsec.codegen.cuda import parts
from sparsec.codegen.cuda.kernels import matmul
from sparsec.codegen.cuda.operands import Operand, joined, largest, read

_LEAST_INPUTS = 8
"""Inputs from which tensor cores multiply: fewer fill an eighth of a step at most, and outer products of angles stay exact."""
_HALF_MAX = 65504.0


def lower_matmul(node: ir.Node, low: Lowering) -> Refusal | None:
    """ai.onnx MatMul of two float32 values, with numpy's broadcasting of batches."""
    left, right = _pair(node)
    if (refusal := _refused(low, left, right)) is not None:
        return refusal
    sa, sb = low.shape(left), low.shape(right)
    batch = tuple(np.broadcast_shapes(sa[:-2], sb[:-2]))
    m, k, n = 1 if len(sa) == 1 else sa[-2], sa[-1], 1 if len(sb) == 1 else sb[-1]
    a, b = read(low, left, batch, "row"), read(low, right, batch, "column")
    sizes, a, b = joined(batch, a, b)
    if len(sizes) == 1 and not b.steps[0] and a.kind == "rows" and a.steps[0] == m * a.row:
        # one matrix for all batches: its rows join the rows of A
        m, sizes, a, b = sizes[0] * m, (), Operand(a.tensor, a.row, 1, ()), Operand(b.tensor, b.row, b.col, ())
    _product(node, low, sizes, (m, n, k), a, b, {}, [])
    return None


def lower_gemm(node: ir.Node, low: Lowering) -> Refusal | None:
    """ai.onnx Gemm of two float32 values with alpha = beta = 1."""
    attribute = {name: a.value for name, a in node.attributes.items()}
    if attribute.get("alpha", 1.0) != 1.0 or attribute.get("beta", 1.0) != 1.0:
        return Refusal("alpha and beta other than 1 are not handled here")
    left, right = _pair(node)
    if (refusal := _refused(low, left, right)) is not None:
        return refusal
    addend = node.inputs[2] if len(node.inputs) > 2 else None
    a, b = read(low, left, ()), read(low, right, ())
    sa, sb = low.shape(left), low.shape(right)
    if attribute.get("transA", 0):
        a, sa = a.turned(), sa[::-1]
    if attribute.get("transB", 0):
        b, sb = b.turned(), sb[::-1]
    m, k, n = *sa, sb[1]
    shape = None if addend is None else low.shape(addend)
    if shape not in (None, (n,), (1, n), (m, n)):
        return Refusal(f"the addend has shape {shape}; it may be [{n}], [1, {n}] or [{m}, {n}]")
    whole = shape == (m, n)
    finish = {"bias": shape is not None and not whole, "residual": whole}
    _product(node, low, (), (m, n, k), a, b, finish, [] if addend is None else [low.get(addend)])
    return None


def _pair(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    left, right = node.inputs[:2]
    assert left is not None
    assert right is not None
    return left, right


def _refused(low: Lowering, left: ir.Value, right: ir.Value) -> Refusal | None:
    if low.dtype(left) != "float32":
        return Refusal(f"element type {low.dtype(left)} is not float32")
    if 0 in (*low.shape(left), *low.shape(right)):
        return Refusal("an operand is empty")
    return None


def _product(
    node: ir.Node,
    low: Lowering,
    batches: Sequence[int],
    size: tuple[int, int, int],
    a: Operand,
    b: Operand,
    finish: dict[str, bool],
    added: list[Tensor],
) -> None:
    """Append the product of operands that lie as they are said to."""
    (m, n, k), batch = size, prod(batches)
    params: dict[str, Any] = {
        "m": m, "n": n, "k": k, "batch": batch, "batch_b": 1, "batches": list(batches), "a": a.params("a"), "b": b.params("b"),
        "c": {"ldc": n, "batch_stride": m * n, "size": batch * m * n},
        "bias": False, "residual": False, "act": "", "act_params": [], **finish,
    }  # fmt: skip
    too_large = low.target.storage == "float16" and max(largest(low, v) for v in _pair(node)) > _HALF_MAX
    family = "cuda.product"
    if k >= _LEAST_INPUTS and not too_large:
        family = "cuda.matmul"
        params |= matmul.cut(m, n, k, a.kind, low.target.gpu, batch)
        params["vectors"] = [a.run(k if a.kind == "rows" else m), b.run(n if b.kind == "rows" else k)]
    note = f"{batch} x [{m}, {k}] x [{k}, {n}]"
    out = low.new(node.outputs[0])
    names = (node.name or "", node.op_type, note)
    parts.append(low, family, params, [a.tensor, b.tensor], added, out, (batch * m, n), names)
