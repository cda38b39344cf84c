"""The rule for sparsec::MatMul on a GPU: a weight stays as it is stored and is decoded inside gemv.py or gemm.py (packing.py)."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import onnx_ir as ir

from sparsec.codegen.context import Layout, Lowering, Refusal, Rule, Tensor
from sparsec.codegen.cuda import blocking, few_rows, many_rows
from sparsec.codegen.cuda.capacity import shared_limit
from sparsec.codegen.cuda.fragments import Packed
from sparsec.codegen.cuda.kernels import gemm, gemv
from sparsec.codegen.cuda.packing import Use, choose, forms_for
from sparsec.codegen.kernels.quantise import product_input
from sparsec.codegen.kernels.weights import epilogue, refused_epilogue
from sparsec.op_view import SparsecNode, view


def lower_product(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::MatMul with a weight in any scheme."""
    op = view(node)
    if (refusal := refused(op, low)) is not None:
        return refusal
    assert op.x is not None
    m = prod(low.shape(op.x)[:-1])
    use = Use(m, m <= gemv.MOST_ROWS, low.target)
    note = f"[{m}, {op.cols}] x [{op.cols}, {op.rows}] {op.scheme} {op.activation}".strip()
    return choose(op, low, forms_for(use, lambda packed: multiply(op, low, packed, use, "row", note)))


PRODUCTS: tuple[Rule, ...] = (lower_product,)
"""All rules for sparsec::MatMul, in order."""


def refused(op: SparsecNode, low: Lowering) -> Refusal | None:
    """Why no product kernel takes a node whatever its weight, None if they may."""
    assert op.x is not None
    if low.dtype(op.x) != "float32":
        return Refusal(f"element type {low.dtype(op.x)} is not float32")
    if prod(low.shape(op.x)) == 0:
        return Refusal("the product has no rows")
    return refused_epilogue(op, low)


def multiply(op: SparsecNode, low: Lowering, packed: Packed, use: Use, layout: Layout, note: str) -> Refusal | None:
    """Steps for rows of inputs, or pixels of channels, times a packed weight."""
    assert op.x is not None
    params: dict[str, Any] = {"m": use.m, "weight": packed.params}
    if not use.few:
        params |= blocking.blocking(use.m, packed.params, low.target.gpu)
    if (refusal := too_large(params, use.few, low)) is not None:
        return refusal
    x = product_input(op, low) if layout == "row" else low.get(op.x, layout)
    finish, added = epilogue(op, low, layout=layout)
    params |= {"vector": vector_width(x, op.cols), **finish}
    ins, out = [x, *weights(op, low, packed)], low.new(op.output, layout)
    names = (op.node.name or "", op.kind, note)
    if use.few:
        few_rows.append(low, params, packed, ins, added, out, names)
    else:
        many_rows.append(low, "cuda.gemm", params, packed, ins, added, out, names)
    return None


def too_large(params: Mapping[str, Any], few: bool, low: Lowering) -> Refusal | None:
    """Why a block does not fit in shared memory, None if it does."""
    needed = (gemv if few else gemm).launch(params, low.target).shared_bytes
    if needed > (limit := shared_limit(low.target.gpu)):
        return Refusal(f"the product would take {needed} bytes of shared memory; {limit} are there")
    return None


def weights(op: SparsecNode, low: Lowering, packed: Packed) -> list[Tensor]:
    """The constants of a packed weight."""
    label = op.node.name or "weight"
    return [low.const(array, f"{label}.{name}") for name, array in packed.arrays]


def vector_width(x: Tensor, k: int) -> int:
    """Inputs that a kernel may read at once: 8 where every row begins at a multiple of 16 bytes once they are halves."""
    return 8 if k % 8 == 0 and x.offset // 4 % 8 == 0 else 1
