"""CumSum: running sums along an axis, forwards or backwards, with or without the element itself."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target

_TYPES = ("float32", "float64", "int32", "int64")


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """Units: the outer dimensions of [outer, n, inner]."""
    size = p["outer"] * p["n"] * p["inner"]
    args = (Arg("src", p["dtype"], size, "in"), Arg("dst", p["dtype"], size, "out"))
    return Signature(args, units=p["outer"], cost=8 * size)


def build(p: Mapping[str, Any], k: Any) -> None:
    """dst[t] = dst[t - 1] + src[t] (exclusive: + src[t - 1]); t counts from the end when reversed."""
    T = k.T
    n, inner = p["n"], p["inner"]
    src, dst = k.arg("src"), k.arg("dst")
    zero = T.Cast(p["dtype"], T.int32(0))
    with T.serial(k.lo, k.hi) as o:

        def row(t: Any, o: Any = o) -> Any:
            return (o * n + (n - 1 - t if p["reverse"] else t)) * inner

        with T.serial(0, inner) as i:
            k.store(dst, row(0) + i, zero if p["exclusive"] else k.load(src, row(0) + i))
        with T.serial(1, n) as t, T.serial(0, inner) as i:
            added = k.load(src, row(t - 1 if p["exclusive"] else t) + i)
            k.store(dst, row(t) + i, k.load(dst, row(t - 1) + i) + added)


def lower_cumsum(node: ir.Node, low: Lowering) -> Refusal | None:
    """CumSum along a constant axis."""
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    if (dtype := low.dtype(value)) not in _TYPES:
        return Refusal(f"element type {dtype}; {', '.join(_TYPES)} are supported")
    axis = low.constant(node.inputs[1])
    if axis is None:
        return Refusal("CumSum along an axis that is computed at run time")
    source = low.get(value, "row")
    at = int(axis.item()) % len(source.shape)
    params = {
        "dtype": dtype,
        "outer": prod(source.shape[:at]),
        "n": source.shape[at],
        "inner": prod(source.shape[at + 1 :]),
        "exclusive": bool(node.attributes.get_int("exclusive", 0)),
        "reverse": bool(node.attributes.get_int("reverse", 0)),
    }
    dest = low.new(out)
    if dest.size:
        note = f"{list(source.shape)} along {at}"
        low.call("cumsum", params, [source], [dest], node=node.name or "", op="CumSum", note=note)
    return None
