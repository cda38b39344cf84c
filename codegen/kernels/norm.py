"""Normalisation of rows: LayerNormalization, RMSNormalization, InstanceNormalization. Two passes over a row in cache."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal, same_memory
from sparsec.codegen.isa.vecmath import bind, sqrt
from sparsec.codegen.kernels.rows import for_run, reduce_run
from sparsec.codegen.layouts import Choice
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """x [rows, n], scale?, bias? ([n], or one a channel: row % channels), y [rows, n]. Units: rows."""
    rows, n = p["rows"], p["n"]
    width = p["channels"] or n
    args = [Arg("x", "float32", rows * n, "in")]
    args += [Arg(name, "float32", width, "in") for name in ("scale", "bias") if p[name]]
    args.append(Arg("y", "float32", rows * n, "out"))
    return Signature(tuple(args), units=rows, cost=8 * rows * n)


def build(p: Mapping[str, Any], k: Any) -> None:
    """y = (x - mean) / sqrt(var + eps) * scale + bias, the variance about the mean; RMS leaves the mean out."""
    T, n = k.T, p["n"]
    x, y = k.arg("x"), k.arg("y")

    def add(a: Any, b: Any, lanes: int) -> Any:
        return a + b

    def zero(lanes: int) -> Any:
        return k.f32(0.0, lanes)

    with T.serial(k.lo, k.hi) as row:
        base = bind(k, row * n)
        mean: Any = None
        if p["centre"]:
            total = reduce_run(k, n, zero, lambda i, lanes: k.load(x, base + i, lanes), add)
            mean = bind(k, k.load(total, 0) * T.float32(1.0 / n))

        def centred(i: Any, lanes: int, base: Any = base, mean: Any = mean) -> Any:
            value = k.load(x, base + i, lanes)
            return value if mean is None else value - k.splat(mean, lanes)

        def square(i: Any, lanes: int, centred: Any = centred) -> Any:
            value = bind(k, centred(i, lanes))
            return value * value

        squares = reduce_run(k, n, zero, square, add)
        variance = bind(k, k.load(squares, 0) * T.float32(1.0 / n) + T.float32(p["epsilon"]))
        factor = bind(k, T.float32(1.0) / sqrt(k, variance, 1))
        channel = bind(k, T.truncmod(row, p["channels"])) if p["channels"] else None

        def parameter(name: str, i: Any, lanes: int, channel: Any = channel) -> Any:
            if channel is not None:
                return k.splat(k.load(k.arg(name), channel), lanes)
            return k.load(k.arg(name), i, lanes)

        def write(
            i: Any,
            lanes: int,
            base: Any = base,
            factor: Any = factor,
            centred: Any = centred,
            parameter: Any = parameter,
        ) -> None:
            value = centred(i, lanes) * k.splat(factor, lanes)
            if p["scale"]:
                value = value * parameter("scale", i, lanes)
            if p["bias"]:
                value = value + parameter("bias", i, lanes)
            k.store(y, base + i, value, lanes)

        for_run(k, n, write)


def lower_norm(node: ir.Node, low: Lowering) -> Refusal | None:
    """LayerNormalization, RMSNormalization and SimplifiedLayerNormalization (float32, first output only)."""
    attr = {a.name: a.value for a in node.attributes.values()}
    x = node.inputs[0]
    assert x is not None
    if low.dtype(x) != "float32":
        return Refusal(f"element type {low.dtype(x)} is not float32")
    if any(out.uses() or out in low.graph.outputs for out in node.outputs[1:]):
        return Refusal("mean and inverse deviation are not computed as outputs")
    shape = low.shape(x)
    axis = attr.get("axis", -1) % len(shape)
    n, rows = prod(shape[axis:]), prod(shape[:axis])
    extras = [v for v in node.inputs[1:3] if v is not None]
    if any(prod(low.shape(v)) != n for v in extras):
        return Refusal("scale or bias has not the shape of the normalised axes")
    params = {
        "n": n, "centre": node.op_type == "LayerNormalization", "epsilon": attr.get("epsilon", 1e-5),
        "scale": len(extras) > 0, "bias": len(extras) > 1,
    }  # fmt: skip
    layout = low.planned(node, ("row", "cl") if norm_choice(node, low) is not None else ("row",))
    if layout == "cl":
        family, params = "norm_columns", params | {"images": shape[0], "pixels": shape[1]}
    else:
        family, params = "norm", params | {"rows": rows, "channels": 0}
    ins, outs = [low.get(x, layout), *(low.get(v) for v in extras)], [low.new(node.outputs[0], layout)]
    low.call(family, params, ins, outs, node=node.name or "", op=node.op_type, note=f"[{rows}, {n}]")
    return None


def norm_choice(node: ir.Node, low: Lowering) -> Choice | None:
    """Channels last as well where the last of three axes is normalised: norm_columns.py."""
    x = node.inputs[0]
    assert x is not None
    shape = low.shape(x)
    axis: int = node.attributes.get_int("axis", -1)
    if len(shape) != 3 or axis % 3 != 2 or low.dtype(x) != "float32" or same_memory(shape):
        return None
    return Choice({"row": 0.0, "cl": 0.0})


def lower_instance_norm(node: ir.Node, low: Lowering) -> Refusal | None:
    """InstanceNormalization: every (image, channel) plane is a row."""
    x, scale, bias = node.inputs
    assert x is not None
    assert scale is not None
    assert bias is not None
    if low.dtype(x) != "float32":
        return Refusal(f"element type {low.dtype(x)} is not float32")
    shape = low.shape(x)
    epsilon = node.attributes["epsilon"].value if "epsilon" in node.attributes else 1e-5
    params = {
        "rows": shape[0] * shape[1], "n": prod(shape[2:]), "centre": True, "epsilon": epsilon, "scale": True, "bias": True,
        "channels": shape[1],
    }  # fmt: skip
    ins = [low.get(x), low.get(scale), low.get(bias)]
    low.call(
        "norm", params, ins, [low.new(node.outputs[0])], node=node.name or "", op=node.op_type, note=str(list(shape))
    )
    return None
