"""Matrix products: sparsec::MatMul on constant weights, MatMul and Gemm on two activations. All lower to gemm.py."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal, Tensor, row_strides
from sparsec.codegen.kernels.gemm import panel_width
from sparsec.codegen.kernels.quantise import product_input
from sparsec.codegen.kernels.weights import pack_bias, pack_weight, refused_epilogue
from sparsec.op_view import view


def lower_fused_matmul(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::MatMul: act(x @ W^T + bias + residual), W constant in any scheme."""
    op = view(node)
    assert op.x is not None
    if (refusal := refused_epilogue(op, low)) is not None:
        return refusal
    if low.dtype(op.x) != "float32":
        return Refusal(f"element type {low.dtype(op.x)} is not float32")
    shape = low.shape(op.x)
    m, n, k = prod(shape[:-1]), op.rows, op.cols
    if m == 0:
        return Refusal("the product has no rows")
    nr = panel_width(n, m, low.target)
    b, weights = pack_weight(op, low, nr)
    x = product_input(op, low)
    bias = pack_bias(op, low, nr)
    residual = [] if op.residual is None else [low.get(op.residual)]
    params = {
        "m": m, "n": n, "k": k, "batch": 1, "batch_b": 1,
        "a": {"kind": "rows", "lda": k, "batch_stride": 0, "size": m * k}, "b": b,
        "c": {"ldc": n, "batch_stride": 0, "size": m * n},
        "bias": bool(bias), "residual": bool(residual), "act": op.activation, "act_params": list(op.act_params),
    }  # fmt: skip
    note = f"[{m}, {k}] x [{k}, {n}] {op.scheme} {op.activation}".strip()
    low.call(
        "gemm",
        params,
        [x, *weights, *bias, *residual],
        [low.new(op.output)],
        node=node.name or "",
        op="MatMul",
        note=note,
    )
    return None


def _operand(value: ir.Value, low: Lowering, batch: tuple[int, ...], matrix: tuple[int, int], node: ir.Node) -> Tensor:
    """The value as [*batch, *matrix] in row order; broadcast batches are expanded by a copy."""
    tensor = low.get(value)
    shape = tensor.shape[:-2] if len(tensor.shape) > 2 else ()
    if prod(shape) in (1, prod(batch)):
        return tensor
    full = (1,) * (len(batch) - len(shape)) + shape
    strides = row_strides((*full, *matrix))
    wanted = [0 if f == 1 and b != 1 else s for f, b, s in zip(full, batch, strides, strict=False)] + strides[-2:]
    dest = low.temp(tensor.dtype, (*batch, *matrix), name=f"{value.name}.expanded")
    low.copy(tensor, dest, shape=(*batch, *matrix), src_strides=wanted, node=node.name or "", op="Expand")
    return dest


def _product(
    node: ir.Node,
    low: Lowering,
    a: tuple[Tensor, int],
    b: tuple[Tensor, str, int],
    sizes: tuple[int, int, int, int],
    extras: dict[str, Any],
    tensors: list[Tensor],
) -> None:
    """One gemm over computed operands; sizes are (batch, m, n, k), a and b come with their batch strides."""
    batch, m, n, k = sizes
    params = {
        "m": m, "n": n, "k": k, "batch": batch, "batch_b": 1,
        "a": {"kind": "rows", "lda": k, "batch_stride": a[1], "size": a[0].size},
        "b": {"kind": b[1], "ldb": n if b[1] == "rows" else k, "batch_stride": b[2], "size": b[0].size},
        "c": {"ldc": n, "batch_stride": m * n, "size": batch * m * n},
        "bias": False, "residual": False, "act": "", "act_params": [], **extras,
    }  # fmt: skip
    note = f"{batch} x [{m}, {k}] x [{k}, {n}]"
    out = low.new(node.outputs[0])
    low.call("gemm", params, [a[0], b[0], *tensors], [out], node=node.name or "", op=node.op_type, note=note)


def lower_matmul(node: ir.Node, low: Lowering) -> Refusal | None:
    """ai.onnx MatMul of two float32 values, with numpy's broadcasting of batches."""
    left, right = node.inputs
    assert left is not None
    assert right is not None
    if low.dtype(left) != "float32":
        return Refusal(f"element type {low.dtype(left)} is not float32")
    sa, sb = low.shape(left), low.shape(right)
    if 0 in (*sa, *sb):
        return Refusal("an operand is empty")
    m, k = (1 if len(sa) == 1 else sa[-2]), sa[-1]
    n = 1 if len(sb) == 1 else sb[-1]
    batch = tuple(np.broadcast_shapes(sa[:-2], sb[:-2]))
    count = prod(batch)
    if prod(sb[:-2]) == 1:  # one matrix for all batches: its rows join the rows of A
        a = low.get(left)
        rows = prod(sa[:-2]) * m
        _product(node, low, (a, 0), (low.get(right), "rows", 0), (1, rows, n, k), {}, [])
        return None
    a, b = _operand(left, low, batch, (m, k), node), _operand(right, low, batch, (k, n), node)
    a_step = m * k if a.size == count * m * k else 0
    _product(node, low, (a, a_step), (b, "rows", k * n), (count, m, n, k), {}, [])
    return None


def lower_gemm(node: ir.Node, low: Lowering) -> Refusal | None:
    """ai.onnx Gemm of computed operands with alpha = beta = 1 and transA = 0."""
    attribute = {name: a.value for name, a in node.attributes.items()}
    if attribute.get("alpha", 1.0) != 1.0 or attribute.get("beta", 1.0) != 1.0 or attribute.get("transA", 0):
        return Refusal("alpha, beta other than 1 or transA are not handled here")
    left, right = node.inputs[:2]
    addend = node.inputs[2] if len(node.inputs) > 2 else None
    assert left is not None
    assert right is not None
    if low.dtype(left) != "float32":
        return Refusal(f"element type {low.dtype(left)} is not float32")
    (m, k), trans = low.shape(left), bool(attribute.get("transB", 0))
    n = low.shape(right)[0 if trans else 1]
    if addend is not None and low.shape(addend) != (m, n):
        return Refusal("the addend has not the shape of the result")
    tensors = [] if addend is None else [low.get(addend)]
    operand = (low.get(right), "cols" if trans else "rows", 0)
    _product(node, low, (low.get(left), 0), operand, (1, m, n, k), {"residual": bool(tensors)}, tensors)
    return None
