"""Gather and GatherND: contiguous slices of a tensor at run-time indices; a table lookup is the case of one index a slice."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal, Tensor
from sparsec.codegen.kernels.indices import checked_index
from sparsec.codegen.kernels.views import pick_one
from sparsec.codegen.program import ITEMSIZE, Arg, Signature
from sparsec.target import Target

INDEX_TYPES = ("int32", "int64")


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """Units: slices. Source [outer, dims..., inner], indices [outer if batched else 1, count, len(dims)]."""
    outer, count, inner = p["outer"], p["count"], p["inner"]
    lists = (outer if p["batched"] else 1) * count
    moved = outer * count * inner
    args = (
        Arg("src", p["dtype"], outer * prod(p["dims"]) * inner, "in"),
        Arg("indices", p["index_dtype"], lists * len(p["dims"]), "in"),
        Arg("dst", p["dtype"], moved, "out"),
    )
    return Signature(
        args, units=outer * count, cost=2 * ITEMSIZE[p["dtype"]] * moved + 8 * outer * count, may_fail=True
    )


def build(p: Mapping[str, Any], k: Any) -> None:
    """Each unit checks its indices, then copies one slice. Returns OUT_OF_RANGE for an index outside its axis."""
    T = k.T
    count, inner, dims = p["count"], p["inner"], p["dims"]
    src, indices, dst = k.arg("src"), k.arg("indices"), k.arg("dst")
    with T.serial(k.lo, k.hi) as unit:
        at = unit if p["batched"] else unit % count
        slot: Any = unit // count
        for axis, n in enumerate(dims):
            slot = slot * n + checked_index(k, indices, at * len(dims) + axis, n, p["index_dtype"])
        copy_run(k, src, T.bind(slot * inner), dst, unit * inner, inner, p["dtype"])


def copy_run(k: Any, src: Any, s: Any, dst: Any, d: Any, n: int, dtype: str) -> None:
    """dst[d : d + n] = src[s : s + n], n known at build time."""
    T = k.T
    lanes = min(k.target.vector_bits // 8 // ITEMSIZE[dtype], 32)
    whole = n // lanes
    if whole:
        with T.serial(0, whole) as v:
            k.store(dst, d + v * lanes, k.load(src, s + v * lanes, lanes), lanes)
        if n % lanes:  # overlaps the vector before
            k.store(dst, d + (n - lanes), k.load(src, s + (n - lanes), lanes), lanes)
        return
    at = 0
    while at < n:
        width = 1 << ((n - at).bit_length() - 1)
        k.store(dst, d + at, k.load(src, s + at, width), width)
        at += width


def index_tensor(low: Lowering, value: ir.Value | None) -> Tensor | Refusal:
    """Indices in row order, or why they cannot be used."""
    assert value is not None
    if low.dtype(value) not in INDEX_TYPES:
        return Refusal(f"indices of type {low.dtype(value)}; int32 and int64 are supported")
    return low.get(value, "row")


def lower_constant_gather(node: ir.Node, low: Lowering) -> Refusal | None:
    """Gather at constant, evenly spaced indices: a strided view or copy."""
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    indices = low.constant(node.inputs[1])
    if indices is None:
        return Refusal("the indices are computed at run time")
    if indices.ndim > 1 or indices.size == 0:
        return Refusal("the constant indices are not a scalar or a list")
    shape = low.shape(value)
    axis = node.attributes.get_int("axis", 0) % len(shape)
    picked = np.where(indices < 0, indices + shape[axis], indices).reshape(-1).astype(np.int64)
    if (picked < 0).any() or (picked >= shape[axis]).any():
        return Refusal(f"constant indices {indices.tolist()} outside an axis of {shape[axis]}")
    steps = np.unique(np.diff(picked))
    if steps.size > 1:
        return Refusal("the constant indices are not evenly spaced")
    pick_one(node, low, value, out, axis, int(picked[0]), int(steps[0]) if steps.size else 1)
    return None


def lower_gather(node: ir.Node, low: Lowering) -> Refusal | None:
    """Gather along any axis."""
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    indices = index_tensor(low, node.inputs[1])
    if isinstance(indices, Refusal):
        return indices
    shape = low.shape(value)
    axis = node.attributes.get_int("axis", 0) % len(shape)
    params = {
        "outer": prod(shape[:axis]),
        "count": indices.size,
        "batched": False,
        "dims": [shape[axis]],
        "inner": prod(shape[axis + 1 :]),
    }
    return _call(node, low, params, low.get(value, "row"), indices, out)


def lower_gather_nd(node: ir.Node, low: Lowering) -> Refusal | None:
    """GatherND with any number of batch dimensions."""
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    indices = index_tensor(low, node.inputs[1])
    if isinstance(indices, Refusal):
        return indices
    shape = low.shape(value)
    batch, depth = node.attributes.get_int("batch_dims", 0), indices.shape[-1]
    outer = prod(shape[:batch])
    params = {
        "outer": outer,
        "count": indices.size // max(1, depth * outer),
        "batched": True,
        "dims": list(shape[batch : batch + depth]),
        "inner": prod(shape[batch + depth :]),
    }
    return _call(node, low, params, low.get(value, "row"), indices, out)


def _call(
    node: ir.Node, low: Lowering, params: dict[str, Any], source: Tensor, indices: Tensor, out: ir.Value
) -> Refusal | None:
    if prod(low.shape(out)) == 0:
        low.new(out)
        return None
    if source.size == 0:
        return Refusal(f"{node.op_type} from an empty tensor of shape {list(source.shape)}")
    params = {"dtype": source.dtype, "index_dtype": indices.dtype, **params}
    note = f"{list(indices.shape)} of {list(source.shape)}"
    low.call("gather", params, [source, indices], [low.new(out)], node=node.name or "", op=node.op_type, note=note)
    return None
