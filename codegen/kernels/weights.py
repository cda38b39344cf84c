"""A fused operator's constant weight and bias, laid out for the panels of gemm.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from sparsec.codegen.context import Layout, Lowering, Refusal, Tensor
from sparsec.codegen.kernels import decode
from sparsec.formats.encoded import EncodedWeight, Unpacked, unpack
from sparsec.int8 import activation_group, rounded_values
from sparsec.op_view import SparsecNode

Array = np.ndarray[Any, Any]


def refused_epilogue(view: SparsecNode, low: Lowering) -> Refusal | None:
    """Why no kernel can add this node's bias and residual to its product, None if it can."""
    if view.bias is not None and low.constant(view.bias) is None:
        return Refusal("the bias is not a constant")
    if view.residual is not None and low.shape(view.residual) != low.shape(view.output):
        return Refusal("the residual has not the shape of the result")
    return None


def int8_operands(view: SparsecNode) -> tuple[Unpacked, int] | Refusal:
    """The encoded weight of a node with int8 activations, and the inputs that share a scale (0: all of a row)."""
    if not view.rounds:
        return Refusal("the activations are float32")
    weight = view.weight()
    assert isinstance(weight, EncodedWeight)
    return unpack(weight), activation_group(view.activations, view.cols)


def flat_bias(view: SparsecNode, low: Lowering) -> Array | None:
    """The bias of a node, float32 [N]."""
    bias = low.constant(view.bias)
    return None if bias is None else np.broadcast_to(bias.reshape(-1), (view.rows,)).astype(np.float32)


def epilogue(
    view: SparsecNode, low: Lowering, *, arrange: Callable[[Array], Array] | None = None, layout: Layout = "row"
) -> tuple[dict[str, Any], list[Tensor]]:
    """What a kernel adds and applies to its product: the parameters bias, residual, act and act_params, and the bias (laid out
    by `arrange`) and residual as far as there are any."""
    bias, tensors = flat_bias(view, low), []
    if bias is not None:
        tensors.append(low.const(bias if arrange is None else arrange(bias), f"{view.node.name or 'weight'}.bias"))
    if view.residual is not None:
        tensors.append(low.get(view.residual, layout))
    params = {"bias": bias is not None, "residual": view.residual is not None}
    return params | {"act": view.activation, "act_params": list(view.act_params)}, tensors


def panel_rows(rows: int, groups: int, nr: int) -> Array:
    """Logical row of each physical row when every group is padded to whole panels (-1: padding)."""
    each = rows // groups
    padded = -(-each // nr) * nr
    index = np.arange(padded)
    one = np.where(index < each, index, -1)
    return np.concatenate([np.where(one >= 0, one + g * each, -1) for g in range(groups)])


def scales_by_tile(weight: Unpacked, tile: int) -> Array:
    """Scales as kernels read them that have vectors over rows: [tile][group][row of the tile], zeros behind the last row.

    fp16 of groups, float32 of rows; a single one for all stays a single float32. The weight has scales.
    """
    kind = weight.scheme.scales.kind
    assert weight.scales is not None
    if kind == "tensor":
        return weight.scales.reshape(-1).astype(np.float32)
    rows = np.pad(weight.scales, ((0, -weight.rows % tile), (0, 0)))
    by_tile = rows.reshape(-1, tile, rows.shape[1]).transpose(0, 2, 1)
    return np.ascontiguousarray(by_tile, np.float16 if kind == "group" else np.float32).reshape(-1)


def unpacked_weight(view: SparsecNode) -> Unpacked:
    """The encoded weight of a node as plain arrays; int8 activations come with rounded tables (sparsec/int8.py)."""
    weight = view.weight()
    assert isinstance(weight, EncodedWeight)
    unpacked = unpack(weight)
    if view.rounds and unpacked.codebook is not None:
        unpacked = replace(unpacked, codebook=rounded_values(unpacked.codebook))
    return unpacked


def pack_weight(
    view: SparsecNode, low: Lowering, nr: int, *, groups: int = 1, taps: int = 1
) -> tuple[dict[str, Any], list[Tensor]]:
    """(the `b` parameters of gemm, the constant tensors behind them) for W[N, K] of a fused node.

    K is in ONNX order (channel, tap) and becomes (tap, channel). A plain float32 weight is packed as it is, any other scheme
    stays coded and is decoded inside the kernel.
    """
    label = view.node.name or "weight"
    weight = view.weight()
    rows = panel_rows(view.rows, groups, nr)
    if isinstance(weight, np.ndarray):
        physical = weight.reshape(view.rows, -1, taps).transpose(0, 2, 1).reshape(view.rows, view.cols)
        physical = physical[np.maximum(rows, 0)] * (rows >= 0)[:, None].astype(np.float32)
        panels = physical.reshape(-1, nr, view.cols).transpose(0, 2, 1)
        return {"kind": "packed"}, [low.const(panels, f"{label}.weight")]
    packed = decode.pack(unpacked_weight(view), nr, low.target, rows=rows, taps=taps, label=label)
    return {"kind": "coded", "decode": packed.params}, [low.const(array, name) for name, array in packed.arrays]


def pack_bias(view: SparsecNode, low: Lowering, nr: int, *, groups: int = 1) -> list[Tensor]:
    """The bias padded like the rows of the weight, or nothing."""
    flat = flat_bias(view, low)
    if flat is None:
        return []
    rows = panel_rows(view.rows, groups, nr)
    return [low.const(np.where(rows >= 0, flat[np.maximum(rows, 0)], np.float32(0)), f"{view.node.name}.bias")]
