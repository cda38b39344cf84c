"""Nodes of the `sparsec` domain without weights, and their function bodies: Attention, Quantise (ops.py lists all)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from sparsec.built_op import Built
from sparsec.errors import ModelError
from sparsec.onnx_body import Body, reference
from sparsec.op_view import DOMAIN

__all__ = ["attention", "quantise"]


def attention(
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    *,
    mask: ir.Value | None = None,
    scale: float = 1.0,
    swapped: Sequence[bool] = (False, False, False, False),
    name: str = "",
) -> Built:
    """sparsec::Attention: softmax(scale q k^T + mask) v for q [B, H, T, D], k [B, G, S, D], v [B, G, S, V], G a divisor of H.

    Head h of q reads head h // (H / G) of k and v. `swapped` says which of q, k, v and the result have heads and positions
    exchanged: [B, T, H, D]. The mask is float32, added to the scores and broadcast to [B, H, T, S]. All shapes are static.

    Raises ModelError when the shapes do not fit each other.
    """
    sizes = []
    for value, swap in zip((q, k, v), swapped, strict=False):
        if value.shape is None or len(value.shape) != 4 or not value.shape.is_static():
            raise ModelError(
                f"Attention '{name}': '{value.name}' has shape {value.shape}; four static dimensions are needed"
            )
        b, *middle, d = (int(dim) for dim in value.shape.numpy())
        sizes.append((b, *(reversed(middle) if swap else middle), d))
    (batch, heads, queries, depth), (kb, groups, keys, kd), (vb, vg, vs, width) = sizes
    if (kb, vb, vg, vs, kd) != (batch, batch, groups, keys, depth) or heads % groups:
        raise ModelError(
            f"Attention '{name}': q, k and v are {sizes} (batch, heads, positions, elements) and do not fit"
        )

    def exchanged(body: Body, value: ir.Value, swap: bool) -> ir.Value:
        return body.op("Transpose", value, perm=[0, 2, 1, 3]) if swap else value

    def fill(body: Body, values: dict[str, ir.Value]) -> ir.Value:
        left = exchanged(body, values["q"], swapped[0])
        right = body.op("Transpose", values["k"], perm=[0, 2, 3, 1] if swapped[1] else [0, 1, 3, 2])
        grouped = heads != groups
        if grouped:  # the heads that share keys share a product
            left = body.op("Reshape", left, body.ints_const([batch, groups, -1, depth]))
        scores = body.op("MatMul", left, right)
        if grouped:
            scores = body.op("Reshape", scores, body.ints_const([batch, heads, queries, keys]))
        scores = body.op("Mul", scores, body.op("Constant", references={"value_float": factor}))
        if mask is not None:
            scores = body.op("Add", scores, values["mask"])
        weights = body.op("Softmax", scores, axis=-1)
        if grouped:
            weights = body.op("Reshape", weights, body.ints_const([batch, groups, -1, keys]))
        result = body.op("MatMul", weights, exchanged(body, values["v"], swapped[2]))
        if grouped:
            result = body.op("Reshape", result, body.ints_const([batch, heads, queries, width]))
        return exchanged(body, result, swapped[3])

    factor = reference("scale", ir.AttributeType.FLOAT, "value_float")
    marks = ["swap" + "".join(str(int(swap)) for swap in swapped)]
    if heads != groups:
        marks.append(f"{batch}x{heads}x{groups}x{queries}x{keys}x{depth}x{width}")
    if mask is not None:
        marks.append("mask")
    overload = "/".join(["fp32", *marks])
    inputs = [("q", q), ("k", k), ("v", v), *([] if mask is None else [("mask", mask)])]
    node = ir.node(
        "Attention",
        [value for _, value in inputs],
        {"scale": float(np.float32(scale)), "swapped": [int(swap) for swap in swapped]},
        domain=DOMAIN,
        overload=overload,
        name=name or None,
    )
    node.outputs[0].dtype = ir.DataType.FLOAT
    shape = (batch, queries, heads, width) if swapped[3] else (batch, heads, queries, width)
    node.outputs[0].shape = ir.Shape(shape)

    def make(opset: int) -> ir.Function:
        formal = [ir.Value(name=role) for role, _ in inputs]
        body = Body()
        result = fill(body, {role: value for (role, _), value in zip(inputs, formal, strict=True)})
        kinds = [(key, attribute.type) for key, attribute in node.attributes.items()]
        return body.function(DOMAIN, "Attention", overload, formal, result, kinds, opset)

    return Built(node, (), overload, make)


def quantise(x: ir.Value, scale: float, low: int, high: int, *, name: str = "") -> Built:
    """sparsec::Quantise: x rounded to `scale` times whole numbers from `low` to `high` (`int8.rounded_static`).

    Raises ModelError unless the scale is positive, zero lies between the limits and a byte holds all of them.
    """
    if not (math.isfinite(scale) and np.float32(scale) > 0 and low <= 0 <= high and 0 < high - low <= 255):
        raise ModelError(
            f"Quantise '{name}': scale {scale}, {low} to {high}: a byte's numbers of a positive scale, zero among them"
        )
    attributes = {"scale": float(np.float32(scale)), "low": float(low), "high": float(high)}
    node = ir.node("Quantise", [x], attributes, domain=DOMAIN, overload="int8", name=name or None)
    node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, x.shape

    def make(opset: int) -> ir.Function:
        formal, body = ir.Value(name="x"), Body()
        step, least, most = (
            body.op("Constant", references={"value_float": reference(key, ir.AttributeType.FLOAT, "value_float")})
            for key in attributes
        )
        whole = body.op("Round", body.op("Mul", formal, body.op("Div", body.float_const(1), step)))
        result = body.op("Mul", body.op("Clip", whole, least, most), step)
        kinds = [(key, ir.AttributeType.FLOAT) for key in attributes]
        return body.function(DOMAIN, "Quantise", "int8", [formal], result, kinds, opset)

    return Built(node, (), "int8", make)
