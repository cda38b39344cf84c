"""TopK: the k largest or smallest elements along an axis with their indices, equal ones in order of index."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target

_TYPES = ("float32", "float64", "int8", "int32", "int64", "uint8")


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """Units: lines along the axis, [outer, n, inner] -> [outer, k, inner]."""
    outer, n, inner, k = p["outer"], p["n"], p["inner"], p["k"]
    args = (
        Arg("src", p["dtype"], outer * n * inner, "in"),
        Arg("values", p["dtype"], outer * k * inner, "out"),
        Arg("indices", "int64", outer * k * inner, "out"),
    )
    return Signature(args, units=outer * inner, cost=outer * inner * (4 * n + k * k))


def build(p: Mapping[str, Any], k: Any) -> None:
    """Insertion into the sorted result: most elements lose against its last one and cost one comparison."""
    T = k.T
    n, inner, count = p["n"], p["inner"], p["k"]
    src, values, indices = k.arg("src"), k.arg("values"), k.arg("indices")
    place = k.local(1, "int32")
    with T.serial(k.lo, k.hi) as unit:
        o, i = T.bind(unit // inner), T.bind(unit % inner)
        base = T.bind(o * count * inner + i)

        def beats(x: Any, rank: Any, base: Any = base) -> Any:
            other = k.load(values, base + rank * inner)
            return x > other if p["largest"] else x < other

        with T.serial(0, n) as e:
            x = T.bind(k.load(src, (o * n + e) * inner + i))
            with T.If(T.if_then_else(e < count, True, beats(x, count - 1))), T.Then():
                k.store(place, 0, T.min(e, count - 1))
                with T.While(T.if_then_else(k.load(place, 0) > 0, beats(x, k.load(place, 0) - 1), False)):
                    to = T.bind(base + k.load(place, 0) * inner)
                    k.store(values, to, k.load(values, to - inner))
                    k.store(indices, to, k.load(indices, to - inner))
                    k.store(place, 0, k.load(place, 0) - 1)
                at = T.bind(base + k.load(place, 0) * inner)
                k.store(values, at, x)
                k.store(indices, at, T.Cast("int64", e))


def lower_topk(node: ir.Node, low: Lowering) -> Refusal | None:
    """TopK; k is the outputs' static size."""
    value = node.inputs[0]
    assert value is not None
    if (dtype := low.dtype(value)) not in _TYPES:
        return Refusal(f"element type {dtype}; {', '.join(_TYPES)} are supported")
    source = low.get(value, "row")
    axis = node.attributes.get_int("axis", -1) % len(source.shape)
    named = next(v for v in node.outputs if v.name)
    shape = low.shape(named)
    params = {
        "dtype": dtype,
        "outer": prod(source.shape[:axis]),
        "n": source.shape[axis],
        "inner": prod(source.shape[axis + 1 :]),
        "k": shape[axis],
        "largest": bool(node.attributes.get_int("largest", 1)),
    }
    outs = [
        low.new(out) if out.name else low.temp(kind, shape, name=f"{node.name}.unused")
        for out, kind in zip([*node.outputs, ir.Value(name="")][:2], (dtype, "int64"), strict=True)
    ]
    if prod(shape):
        note = f"{shape[axis]} of {list(source.shape)}"
        low.call("topk", params, [source], outs, node=node.name or "", op="TopK", note=note)
    return None
