"""Depthwise convolution (group = channels, one filter a channel), 1-D and 2-D, in either layout.

Channels last (window.py) it is vectorised over channels, in row order (planes.py) over the columns of the image. A tile of
output pixels stays in registers, so that weights are loaded once a tile and an input once for all outputs it reaches. Bias,
residual and activation are fused into the store.
Float32 weights are packed [taps][C] for channels last, [C][taps] for row order; weights of any other scheme stay coded, and each
call decodes the taps of a block of channels into a work panel before it computes that block.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec import ops
from sparsec.codegen.context import Lowering, Refusal
from sparsec.codegen.isa.epilogue import activation_cost, apply_activation
from sparsec.codegen.kernels import decode, frames, plane_tiles, planes
from sparsec.codegen.kernels.window import (
    Hooks,
    Window,
    choose_tiling,
    emit_window,
    first_channel,
    read_window,
    window_choice,
    window_units,
)
from sparsec.codegen.layouts import Choice
from sparsec.codegen.program import Arg, Signature
from sparsec.formats.encoded import unpack
from sparsec.target import Target


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """x, weight, bias [C]?, residual like out?, out; images lie in `layout`, and x in a `frame` of zeros, if there is one (row order).
    Units: output rows, or strips of planes."""
    w, c, batch = Window.of(p), p["channels"], p["batch"]
    taps = w.kernel[0] * w.kernel[1]
    results = batch * w.out[0] * w.out[1] * c
    framed = frames.Frame.of(p)
    args = [Arg("x", "float32", framed.size(batch * c) if framed else batch * w.size[0] * w.size[1] * c, "in")]
    coded = p["decode"]
    args += decode.arguments(coded) if coded else [Arg("weight", "float32", taps * c, "in")]
    if p["bias"]:
        args.append(Arg("bias", "float32", c, "in"))
    if p["residual"]:
        args.append(Arg("residual", "float32", results, "in"))
    args.append(Arg("out", "float32", results, "out"))
    if coded:
        args.append(Arg("panel", "float32", taps * coded["nr"], "work"))
    cost = results * (2 * taps + activation_cost(p["activation"]))
    if framed is not None:
        return Signature(tuple(args), c * batch, cost)
    if p["layout"] == "row":
        args.append(planes.scratch_argument(w, c * batch, target))
        return Signature(tuple(args), planes.plane_units(w, c * batch, target), cost)
    return Signature(tuple(args), window_units(w, c, batch, target), cost)


def build(p: Mapping[str, Any], k: Any) -> None:
    """Hooks of the window nest: multiply and add, then residual and activation. With a `frame` of several strips, for strip
    `k.strip`."""
    if p["layout"] == "row":
        _build_planes(p, k)
        return
    w, channels = Window.of(p), p["channels"]

    def start(c: Any, n: int) -> Any:
        return k.load(k.arg("bias"), c, n) if p["bias"] else k.f32(0.0, n)

    coded = p["decode"]

    def prepare(block: Any) -> None:
        decode.write_panel(coded, k, block, k.arg("panel"))

    def weight(tap: Any, c: Any, offset: Any, n: int) -> Any:
        if coded:
            return k.load(k.arg("panel"), tap * coded["nr"] + offset, n)
        return k.load(k.arg("weight"), tap * channels + c, n)

    def step(acc: Any, x: Any, tap: Any, n: int) -> Any:
        return acc + x * tap

    def finish(acc: Any, row: Any, taps: Any, x: Any, at: Any, n: int) -> Any:
        if p["residual"]:
            acc = acc + k.load(k.arg("residual"), at, n)
        return apply_activation(k, p["activation"], p["act_params"], acc, n)

    emit_window(k, w, channels, p["batch"], Hooks(start, step, finish, weight, prepare if coded else None))


def _build_planes(p: Mapping[str, Any], k: Any) -> None:
    w, coded = Window.of(p), p["decode"]
    taps = w.kernel[0] * w.kernel[1]

    def weight(channel: Any, tap: Any) -> Any:
        if coded:
            return k.load(k.arg("panel"), tap * coded["nr"] + k.T.truncmod(channel, coded["nr"]))
        return k.load(k.arg("weight"), channel * taps + tap)

    def finish(acc: Any, read: Any, n: int) -> Any:
        if p["residual"]:
            acc = acc + read("residual")
        return apply_activation(k, p["activation"], p["act_params"], acc, n)

    hooks = plane_tiles.Hooks(
        pad=0.0,
        start=lambda channel: k.load(k.arg("bias"), channel) if p["bias"] else k.f32(0.0),
        step=lambda acc, x, tap: acc + x * tap,
        finish=finish,
        weight=weight,
        prepare=(lambda block: decode.write_panel(coded, k, block, k.arg("panel"))) if coded else None,
        block=coded["nr"] if coded else 1,
    )
    framed = frames.Frame.of(p)
    if framed is not None:
        frames.emit_framed(k, w, p["channels"], hooks, framed, k.strip if framed.strips > 1 else k.T.int32(0))
    else:
        planes.emit_planes(k, w, p["channels"], p["batch"], hooks)


def depthwise_choice(node: ir.Node, low: Lowering) -> Choice | None:
    """Both layouts; row order copies its input to scratch and wastes lanes where the image is narrow."""
    source = node.inputs[0]
    weight = node.inputs[1]
    assert source is not None
    assert weight is not None
    group, shape, out = node.attributes.get_int("group", 1), low.shape(source), low.shape(node.outputs[0])
    if low.dtype(source) != "float32" or not group == shape[1] == out[1]:
        return None
    kernel = ops.view(node).kernel_shape if ops.is_sparsec(node) else low.shape(weight)[2:]
    window = read_window(node, low, kernel)
    if isinstance(window, Refusal):
        return None
    return window_choice(low, window, shape, prod(out))


def lower_depthwise(node: ir.Node, low: Lowering) -> Refusal | None:
    """Conv of ai.onnx or sparsec with group = channels = filters and constant weights."""
    source = node.inputs[0]
    assert source is not None
    shape = low.shape(source)
    if low.dtype(source) != "float32":
        return Refusal(f"depthwise convolution is float32, not {low.dtype(source)}")
    fused = ops.view(node) if ops.is_sparsec(node) else None
    filters = low.shape(node.outputs[0])[1]
    group = node.attributes.get_int("group", 1)
    if group != shape[1]:
        return Refusal(f"not depthwise: group {group}, {shape[1]} channels")
    if filters != group:
        return Refusal(
            f"depthwise with {filters} filters for {group} channels: only one filter a channel is taken here"
        )
    if fused is not None:
        weight, kernel = fused.weight(), fused.kernel_shape
        bias, residual = fused.bias, fused.residual
        activation, act_params = fused.activation, fused.act_params
    else:
        array = low.constant(node.inputs[1])
        if array is None:
            return Refusal("the weights are not constant")
        weight, kernel = array, array.shape[2:]
        bias, residual = node.inputs[2] if len(node.inputs) > 2 else None, None
        activation, act_params = "", ()
    window = read_window(node, low, kernel)
    if isinstance(window, Refusal):
        return window
    if residual is not None and low.shape(residual) != low.shape(node.outputs[0]):
        return Refusal(f"the residual has shape {low.shape(residual)}, the result {low.shape(node.outputs[0])}")

    layout = low.planned(node, ("cl", "row") if not window.crops else ("cl",))
    label = f"{node.name}.weight"
    ins = [low.get(source, layout)]
    coded: dict[str, Any] | None = None
    if isinstance(weight, np.ndarray):
        matrix = weight.reshape(group, -1)
        ins.append(low.const(matrix if layout == "row" else matrix.T, label))
    else:
        tiling = choose_tiling(window, group, low.target)
        starts = range(tiling.blocks)
        if layout == "row":  # one block after the other: every plane is computed once
            rows = np.arange(tiling.blocks * tiling.block)
        else:
            rows = np.concatenate([first_channel(tiling, group, b) + np.arange(tiling.block) for b in starts])
        rows = np.where(rows < group, rows, -1)
        packed = decode.pack(unpack(weight), tiling.block, low.target, rows=rows, label=label)
        coded = packed.params
        ins += [low.const(array, name) for name, array in packed.arrays]
    if bias is not None:
        ins.append(low.get(bias))
    if residual is not None:
        ins.append(low.get(residual, layout))
    params = {
        **window.params(),
        "batch": shape[0],
        "channels": group,
        "layout": layout,
        "bias": bias is not None,
        "residual": residual is not None,
        "activation": activation,
        "act_params": list(act_params),
        "decode": coded,
    }
    scheme = f" {fused.scheme}" if fused is not None else ""
    note = f"{'x'.join(map(str, shape))} {'x'.join(map(str, kernel))}{scheme}"
    low.call(
        "depthwise", params, ins, [low.new(node.outputs[0], layout)], node=node.name or "", op=node.op_type, note=note
    )
    return None
