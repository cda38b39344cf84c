"""Rules for sparsec::MatMul on a GPU: a weight stays as it is stored and is decoded inside gemv.py or gemm.py.

What no kernel decodes becomes halves when the model is compiled, and the report says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal, Rule, Tensor
from sparsec.codegen.cuda import fragments, pairs, scattered, strips
from sparsec.codegen.cuda.kernels import gemm, gemv
from sparsec.codegen.cuda.kernels.product import dense_weight
from sparsec.codegen.kernels.quantise import product_input
from sparsec.codegen.kernels.weights import epilogue, refused_epilogue, unpacked_weight
from sparsec.codegen.program import Decision
from sparsec.formats.encoded import EncodedWeight, Unpacked
from sparsec.op_view import SparsecNode, view

Array = np.ndarray[Any, Any]

_IS_DENSE = "the weight is dense"
_WIDE = 8192
"""Outputs from which panels are wider: fewer blocks read the inputs, and enough are left to fill a GPU."""


def lower_compressed(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::MatMul, dense weight in any codec."""
    op = view(node)
    if (refusal := refused(op, low)) is not None:
        return refusal
    weight = op.weight()
    if isinstance(weight, EncodedWeight):
        if not weight.scheme.is_dense:
            return Refusal(f"weights of structure '{weight.scheme.structure}'")
        return multiply(op, low, unpacked_weight(op))
    return multiply(op, low, weight)


def lower_decoded(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::MatMul with a weight that no kernel decodes: halves."""
    op = view(node)
    if (refusal := refused(op, low)) is not None:
        return refusal
    reasons: list[str] = []
    for rule in COMPRESSED:
        state = low.save()
        found = rule(node, low)
        low.restore(state)
        if found is not None and found.reason not in (_IS_DENSE, *reasons):
            reasons.append(found.reason)
    reason = "; ".join(reasons)
    refusal = multiply(op, low, dense_weight(op))
    if refusal is None:
        why = f"no GPU kernel takes {op.scheme}: {reason}"
        low.program.decisions[node.name or ""] = Decision((), decoded=True, reason=why, stored=low.target.storage)
    return refusal


def lower_strips(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::MatMul of up to 16 rows with a weight of blocks of 16 outputs and more."""
    op = view(node)
    if (refusal := _refused_unless_sparse(op, low)) is not None:
        return refusal
    if (m := _rows(op, low)) > gemv.MOST_ROWS:
        return Refusal(f"{m} rows; strips take up to {gemv.MOST_ROWS}")
    unpacked = unpacked_weight(op)
    reason = strips.refused(unpacked)
    if not reason:
        reason = fragments.refused(unpacked, 16 * strips.tiles_of(unpacked), low.target.storage)
    return Refusal(reason) if reason else _append(op, low, strips.pack(unpacked, low.target.storage), m)


def lower_pairs(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::MatMul with a weight of which two of every four inputs are stored."""
    op = view(node)
    if (refusal := _refused_unless_sparse(op, low)) is not None:
        return refusal
    unpacked = unpacked_weight(op)
    m = _rows(op, low)
    # two tiles where a warp's registers do not hold four
    tiles = 2 if m <= gemv.MOST_ROWS or unpacked.scheme.codec.code_bits == 8 else gemm.TILES
    reason = pairs.refused(unpacked) or fragments.refused(unpacked, 16 * tiles, low.target.storage)
    if reason:
        return Refusal(reason)
    return _append(op, low, pairs.pack(unpacked, tiles, low.target.storage), m)


def lower_scattered(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::MatMul with a weight of any structure."""
    op = view(node)
    if (refusal := _refused_unless_sparse(op, low)) is not None:
        return refusal
    unpacked, m = unpacked_weight(op), _rows(op, low)
    tiles = 1 if m <= gemv.MOST_ROWS else 2
    reason = scattered.refused(unpacked) or fragments.refused(unpacked, 16 * tiles, low.target.storage, any_group=True)
    return Refusal(reason) if reason else _append(op, low, scattered.pack(unpacked, tiles, low.target.storage), m)


COMPRESSED: tuple[Rule, ...] = (lower_strips, lower_pairs, lower_scattered, lower_compressed)
"""Rules that leave weights compressed."""
PRODUCTS: tuple[Rule, ...] = (*COMPRESSED, lower_decoded)
"""All rules for sparsec::MatMul, in order."""


def refused(op: SparsecNode, low: Lowering) -> Refusal | None:
    """Why no rule of this file takes a node, None if they may."""
    assert op.x is not None
    if low.dtype(op.x) != "float32":
        return Refusal(f"element type {low.dtype(op.x)} is not float32")
    if prod(low.shape(op.x)) == 0:
        return Refusal("the product has no rows")
    return refused_epilogue(op, low)


def _refused_unless_sparse(op: SparsecNode, low: Lowering) -> Refusal | None:
    """As `refused`, and every weight that is stored whole."""
    weight = op.weight()
    dense = not isinstance(weight, EncodedWeight) or weight.scheme.is_dense
    return refused(op, low) or (Refusal(_IS_DENSE) if dense else None)


def multiply(op: SparsecNode, low: Lowering, weight: Unpacked | Array) -> Refusal | None:
    """Steps for a dense weight, float32 or encoded."""
    m = _rows(op, low)
    few = m <= gemv.MOST_ROWS
    tiles = _gemv_tiles(weight, m, op.rows) if few else gemm.TILES
    if reason := fragments.refused(weight, 16 * tiles, low.target.storage):
        return Refusal(reason)
    return _append(op, low, fragments.pack(weight, tiles, low.target.storage), m)


def _rows(op: SparsecNode, low: Lowering) -> int:
    assert op.x is not None
    return prod(low.shape(op.x)[:-1])


def _append(op: SparsecNode, low: Lowering, packed: fragments.Packed, m: int) -> Refusal | None:
    """Steps for a packed weight and m rows."""
    params: dict[str, Any] = {"m": m, "weight": packed.params}
    if m > gemv.MOST_ROWS:
        params |= gemm.blocking(m, packed.params, low.target.gpu)
    limit = gemm.shared_limit(low.target.gpu)
    needed = (gemv if m <= gemv.MOST_ROWS else gemm).launch(params, low.target).shared_bytes
    if needed > limit:
        return Refusal(f"the product would take {needed} bytes of shared memory; {limit} are there")
    x = product_input(op, low)
    finish, added = epilogue(op, low)
    params |= {"vector": vector_width(x, op.cols), **finish}
    label = op.node.name or "weight"
    weights = [low.const(array, f"{label}.{name}") for name, array in packed.arrays]
    _call(op, low, params, x, weights, added)
    return None


def _call(
    op: SparsecNode, low: Lowering, params: Mapping[str, Any], x: Tensor, weights: list[Tensor], added: list[Tensor]
) -> None:
    """Append the product, and the sum of its parts if there are several."""
    m, n, k = params["m"], op.rows, op.cols
    note = f"[{m}, {k}] x [{k}, {n}] {op.scheme} {op.activation}".strip()
    name = op.node.name or ""
    out = low.new(op.output)
    if "parts" not in params:
        low.call("cuda.gemv", params, [x, *weights, *added], [out], node=name, op="MatMul", note=note)
    elif params["parts"] == 1:
        low.call("cuda.gemm", params, [x, *weights, *added], [out], node=name, op="MatMul", note=note)
    else:
        parts = low.temp("uint32", (params["parts"], m, n), name=f"{op.output.name}.parts")
        plain = {**params, "bias": False, "residual": False, "act": "", "act_params": []}
        low.call("cuda.gemm", plain, [x, *weights], [parts], node=name, op="MatMul", note=note)
        finish = {key: params[key] for key in ("bias", "residual", "act", "act_params")}
        joined = {"m": m, "n": n, "parts": params["parts"], "bits": True, **finish}
        low.call("cuda.join", joined, [parts, *added], [out], node=name, op="MatMul", note="sum of the parts")


def _gemv_tiles(weight: Unpacked | Array, m: int, n: int) -> int:
    wide = 1 if n < _WIDE else 2 if m <= 8 else 4
    return fragments.row_tiles(weight, wide)


def vector_width(x: Tensor, k: int) -> int:
    """Inputs that a kernel may read at once: 8 where every row begins at a multiple of 16 bytes once they are halves."""
    return 8 if k % 8 == 0 and x.offset // 4 % 8 == 0 else 1
