"""Lowering of sparsec::Attention to attention.py: where heads lie, and masks in the order the kernel reads."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, prod
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Layout, Lowering, Refusal, Tensor
from sparsec.codegen.kernels.attention import blocking, few, too_few
from sparsec.codegen.layouts import Choice, move_time

# Turning queries and results in registers, in the time of a conversion of layouts.
_TURNED = 0.3


def attention_choice(node: ir.Node, low: Lowering) -> Choice | None:
    """Channels last too where all operands are [batch, positions, heads, elements]: positions are the channels then, side by side as
    the kernel's vectors want them."""
    shapes = [low.shape(value) for value in node.inputs[:3] if value is not None]
    if not all(node.attributes.get_ints("swapped")) or too_few(shapes[0][1], low.target):
        return None
    if any(shape[1] == 1 or prod(shape[2:]) == 1 for shape in shapes):  # both layouts are the same memory
        return None
    turned = sum(move_time(low, value) for value in (node.inputs[0], node.outputs[0]) if value is not None)
    return Choice({"row": _TURNED * turned, "cl": 0.0})


def lower_attention(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::Attention."""
    swapped = node.attributes.get_ints("swapped")
    layout = low.planned(node, ("row", "cl") if attention_choice(node, low) is not None else ("row",))
    operands = [_heads(low, value, bool(swap), layout) for value, swap in zip(node.inputs[:3], swapped, strict=False)]
    (q, k, v), ins = [operand[:2] for operand in operands], [operand[2] for operand in operands]
    (batch, heads, t, d), (_, kv_heads, s, _), dv = q[0], k[0], v[0][3]
    out = low.new(node.outputs[0], layout)
    shape = (batch, heads, t, dv)
    strides = _turned_strides(shape) if layout == "cl" else _strides(shape, bool(swapped[3]), heads * dv)
    p: dict[str, Any] = {
        "batch": batch, "heads": heads, "groups": heads // kv_heads, "t": t, "s": s, "d": d, "dv": dv,
        "scale": node.attributes.get_float("scale"), "causal": False, "mask": None,
        "q": q[1], "k": k[1], "v": v[1], "out": strides,
    }  # fmt: skip
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        p["causal"], p["mask"], tensor = _mask(low, node.inputs[3], p)
        ins += [tensor] if tensor is not None else []
    note = f"{batch} x {heads} heads, {t} queries, {s} keys, {d}{' causal' if p['causal'] else ''}"
    low.call("attention", p, ins, [out], node=node.name or "", op="Attention", note=note)
    return None


def _strides(shape: tuple[int, ...], swapped: bool, pitch: int) -> dict[str, int]:
    """Strides of (batch, head, row) of a tensor [B, H, T, D], or in memory [B, T, H, D] with `pitch` from row to row."""
    b, h, t, d = shape
    if not swapped:
        return {"batch": h * t * d, "head": t * d, "row": d, "size": b * h * t * d}
    return {"batch": t * pitch, "head": d, "row": pitch, "size": (b * t - 1) * pitch + h * d}


def _turned_strides(shape: tuple[int, ...]) -> dict[str, int]:
    """The same of a tensor [B, H, T, D] that is [B, H, D, T] in memory."""
    b, h, t, d = shape
    return {"batch": h * d * t, "head": d * t, "row": 1, "element": t, "size": b * h * d * t}


def _heads(
    low: Lowering, value: ir.Value | None, swapped: bool, layout: Layout
) -> tuple[tuple[int, ...], dict[str, int], Tensor]:
    """(shape [B, H, T, D], strides, tensor) of an operand."""
    assert value is not None
    b, h, t, d = low.shape(value)
    if layout == "cl":
        return (b, t, h, d), _turned_strides((b, t, h, d)), low.get(value, "cl")
    if not swapped:
        return (b, h, t, d), _strides((b, h, t, d), False, 0), low.get(value)
    tensor, pitch = low.part(value)
    return (b, t, h, d), _strides((b, t, h, d), True, pitch), tensor


def _mask(low: Lowering, value: ir.Value, p: Mapping[str, Any]) -> tuple[bool, dict[str, int] | None, Tensor | None]:
    """(causal, strides, tensor) of a mask, brought into the order the kernel reads."""
    t, s = p["t"], p["s"]
    shape = low.shape(value)
    b, h, rows, keys = (1,) * (4 - len(shape)) + shape
    array = low.constant(value)
    causal = False
    if array is not None and (rows, keys) == (t, s):
        later = np.arange(s) > np.arange(t)[:, None] + (s - t)
        flat = array.reshape(-1, t, s)
        causal = bool((flat[:, later] <= -1e30).all())
        if causal and s >= t and not flat[:, ~later].any():
            return True, None, None
    tensor = low.get(value)
    if keys != s:  # one value for all keys changes nothing, but need not be finite
        tensor = _expanded(low, tensor, (b, h, rows, s), [h * rows, rows, 1, 0])
    if rows == 1 or few(p, low.target):
        row = s if rows > 1 else 0
        strides = {"batch": h * rows * s if b > 1 else 0, "head": rows * s if h > 1 else 0, "row": row, "key": 1}
        return causal, {**strides, "size": b * h * rows * s}, tensor
    # Vectors run over queries: a row of the mask for each key, padded so that the last block may be read whole.
    width = blocking(p, low.target).width
    padded = ceil(t / width) * width
    strides = {"batch": h * s * padded if b > 1 else 0, "head": s * padded if h > 1 else 0, "row": 1, "key": padded}
    return causal, {**strides, "size": b * h * s * padded}, _turned(low, value, tensor, (b * h, t, s), padded)


def _expanded(low: Lowering, tensor: Tensor, shape: tuple[int, ...], strides: list[int]) -> Tensor:
    out = low.temp("float32", shape, name="mask.expanded")
    low.copy(tensor, out, shape=shape, src_strides=strides, node="mask", op="Expand")
    return out


def _turned(low: Lowering, value: ir.Value, tensor: Tensor, shape: tuple[int, int, int], padded: int) -> Tensor:
    """The mask with keys outside and queries inside, once for all attentions that read it."""
    planes, t, s = shape
    array = low.constant(value)
    if array is not None and array.size == planes * t * s:
        turned = np.zeros((planes, s, padded), np.float32)
        turned[:, :, :t] = array.reshape(shape).swapaxes(1, 2)
        return low.const(turned, f"{value.name}.turned")
    key = (value, padded)
    if key not in low.notes:
        out = low.temp("float32", (planes, s, padded), name=f"{value.name}.turned")
        low.copy(
            tensor, out, shape=(planes, s, t), src_strides=[t * s, 1, s], dst_strides=[s * padded, padded, 1],
            node=value.name or "", op="Transpose", note="mask with queries inside",
        )  # fmt: skip
        low.notes[key] = out
    found: Tensor = low.notes[key]
    return found
