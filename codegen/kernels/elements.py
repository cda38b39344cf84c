"""GatherElements, ScatterElements and ScatterND: element by element, or slice by slice, at run-time indices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal, row_strides
from sparsec.codegen.kernels.gather import index_tensor
from sparsec.codegen.kernels.indices import checked_index
from sparsec.codegen.program import ITEMSIZE, Arg, Signature
from sparsec.codegen.strided import put, strides_of
from sparsec.target import Target

_REDUCTIONS = ("none", "add", "mul", "min", "max")


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """`gather`: units are rows of the index tensor. Scatters write where the indices say: one unit, in order."""
    data, indices = prod(p["shape"]), prod(p["index_shape"])
    moved = prod(p["index_shape"][:-1]) * p["inner"] if p["mode"] == "nd" else indices
    arrays = [Arg("indices", p["index_dtype"], indices, "in")]
    if p["mode"] == "gather":
        arrays = [Arg("src", p["dtype"], data, "in"), *arrays, Arg("dst", p["dtype"], moved, "out")]
        units = prod(p["index_shape"][:-1])
    else:
        arrays = [*arrays, Arg("updates", p["dtype"], moved, "in"), Arg("dst", p["dtype"], data, "out")]
        units = 1
    return Signature(tuple(arrays), units=units, cost=(2 * ITEMSIZE[p["dtype"]] + 8) * moved, may_fail=True)


def build(p: Mapping[str, Any], k: Any) -> None:
    """Returns OUT_OF_RANGE for an index outside its axis."""
    if p["mode"] == "nd":
        _scatter_nd(p, k)
    else:
        _along_axis(p, k)


def _along_axis(p: Mapping[str, Any], k: Any) -> None:
    T = k.T
    shape, counts, axis = p["shape"], p["index_shape"], p["axis"]
    strides = row_strides(shape)
    indices, dst = k.arg("indices"), k.arg("dst")
    rows = prod(counts[:-1])
    first, last = (k.lo, k.hi) if p["mode"] == "gather" else (k.lo * rows, k.hi * rows)
    with T.serial(first, last) as row:
        rest: Any = row
        base: Any = T.int32(0)
        for dim in reversed(range(len(counts) - 1)):
            if dim != axis:
                base = base + rest % counts[dim] * strides[dim]
            rest = rest // counts[dim]
        base = T.bind(base)
        with T.serial(0, counts[-1]) as i:
            at = T.bind(row * counts[-1] + i)
            index = checked_index(k, indices, at, shape[axis], p["index_dtype"])
            place = base + index * strides[axis]
            if axis != len(counts) - 1:
                place = place + i
            place = T.bind(place)
            if p["mode"] == "gather":
                k.store(dst, at, k.load(k.arg("src"), place))
            else:
                _update(p, k, place, k.load(k.arg("updates"), at))


def _scatter_nd(p: Mapping[str, Any], k: Any) -> None:
    T = k.T
    *lists, depth = p["index_shape"]
    inner = p["inner"]
    with T.serial(k.lo * prod(lists), k.hi * prod(lists)) as row:
        slot: Any = T.int32(0)
        for axis in range(depth):
            index = checked_index(k, k.arg("indices"), row * depth + axis, p["shape"][axis], p["index_dtype"])
            slot = slot * p["shape"][axis] + index
        slot = T.bind(slot * inner)
        with T.serial(0, inner) as i:
            _update(p, k, slot + i, k.load(k.arg("updates"), row * inner + i))


def _update(p: Mapping[str, Any], k: Any, place: Any, value: Any) -> None:
    T, dst = k.T, k.arg("dst")
    old = k.load(dst, place)
    combine: dict[str, Callable[[], Any]] = {
        "none": lambda: value,
        "add": lambda: old + value,
        "mul": lambda: old * value,
        "min": lambda: T.min(old, value),
        "max": lambda: T.max(old, value),
    }
    k.store(dst, place, combine[p["reduction"]]())


def lower_gather_elements(node: ir.Node, low: Lowering) -> Refusal | None:
    """GatherElements along any axis."""
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    indices = index_tensor(low, node.inputs[1])
    if isinstance(indices, Refusal):
        return indices
    source = low.get(value, "row")
    params = {
        "mode": "gather",
        "dtype": source.dtype,
        "index_dtype": indices.dtype,
        "shape": list(source.shape),
        "index_shape": list(indices.shape),
        "axis": node.attributes.get_int("axis", 0) % len(source.shape),
    }
    dest = low.new(out)
    if dest.size:
        note = f"{list(indices.shape)} of {list(source.shape)}"
        low.call("elements", params, [source, indices], [dest], node=node.name or "", op=node.op_type, note=note)
    return None


def lower_scatter(node: ir.Node, low: Lowering) -> Refusal | None:
    """ScatterElements and ScatterND, all reductions: a copy of the data, then the updates in order."""
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    assert node.inputs[1] is not None
    assert node.inputs[2] is not None
    indices = index_tensor(low, node.inputs[1])
    if isinstance(indices, Refusal):
        return indices
    reduction = node.attributes.get_string("reduction", "none")
    if reduction not in _REDUCTIONS:
        return Refusal(f"reduction '{reduction}'; {', '.join(_REDUCTIONS)} are supported")
    if reduction != "none" and low.dtype(value) == "bool":
        return Refusal(f"reduction '{reduction}' of booleans")
    source, updates = low.get(value, "row"), low.get(node.inputs[2], "row")
    nd = node.op_type == "ScatterND"
    params: dict[str, Any] = {
        "mode": "nd" if nd else "scatter",
        "dtype": source.dtype,
        "index_dtype": indices.dtype,
        "shape": list(source.shape),
        "index_shape": list(indices.shape),
        "reduction": reduction,
    }
    if nd:
        params["inner"] = prod(source.shape[indices.shape[-1] :])
    else:
        params["axis"] = node.attributes.get_int("axis", 0) % len(source.shape)
    dest = low.new(out)
    put(low, node, source, dest, source.shape, strides_of(source))
    if updates.size:
        note = f"{list(updates.shape)} into {list(source.shape)}"
        low.call("elements", params, [indices, updates], [dest], node=node.name or "", op=node.op_type, note=note)
    return None
