"""OneHot: a row of "off" values with one "on"; indices outside the depth leave the row off, as ONNX says."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal
from sparsec.codegen.kernels.gather import index_tensor
from sparsec.codegen.program import ITEMSIZE, Arg, Signature
from sparsec.target import Target


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """Units: the outer dimensions, those before the new axis."""
    outer, depth, inner = p["outer"], p["depth"], p["inner"]
    args = (
        Arg("indices", p["index_dtype"], outer * inner, "in"),
        Arg("values", p["dtype"], 2, "in"),
        Arg("dst", p["dtype"], outer * depth * inner, "out"),
    )
    return Signature(args, units=outer, cost=2 * ITEMSIZE[p["dtype"]] * outer * depth * inner)


def build(p: Mapping[str, Any], k: Any) -> None:
    """dst[o, d, i] = values[indices[o, i] == d]."""
    T = k.T
    depth, inner = p["depth"], p["inner"]
    indices, values, dst = k.arg("indices"), k.arg("values"), k.arg("dst")
    const = T.int64 if p["index_dtype"] == "int64" else T.int32
    with T.serial(k.lo, k.hi) as o:
        with T.serial(0, depth * inner) as e:
            k.store(dst, o * depth * inner + e, k.load(values, 0))
        with T.serial(0, inner) as i:
            index = T.bind(k.load(indices, o * inner + i))
            hit = T.And(index >= const(-depth), index < const(depth))
            with T.If(hit), T.Then():
                d = T.Cast("int32", T.Select(index < const(0), index + const(depth), index))
                k.store(dst, (o * depth + d) * inner + i, k.load(values, 1))


def lower_onehot(node: ir.Node, low: Lowering) -> Refusal | None:
    """OneHot with integer indices; the depth is the output's static shape."""
    out = node.outputs[0]
    assert node.inputs[0] is not None
    assert node.inputs[2] is not None
    indices = index_tensor(low, node.inputs[0])
    if isinstance(indices, Refusal):
        return indices
    shape = low.shape(out)
    axis = node.attributes.get_int("axis", -1) % len(shape)
    params = {
        "dtype": low.dtype(out),
        "index_dtype": indices.dtype,
        "outer": prod(shape[:axis]),
        "depth": shape[axis],
        "inner": prod(shape[axis + 1 :]),
    }
    dest = low.new(out)
    if dest.size:
        note = f"{list(indices.shape)} to {list(shape)}"
        values = low.get(node.inputs[2], "row")
        low.call("onehot", params, [indices, values], [dest], node=node.name or "", op="OneHot", note=note)
    return None
