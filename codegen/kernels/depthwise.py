"""Depthwise convolution (group = channels, one filter a channel) on channels-last images, 1-D and 2-D.

Vectorised over channels; a tile of output pixels stays in registers, so that a row of taps is loaded once a tile and an
input pixel once for all outputs it reaches. Bias, residual and activation are fused into the store.
Float32 weights are packed [taps][C]; weights of any other scheme stay coded, and each call decodes the taps of a block of
channels into a work panel before it computes that block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec import ops
from sparsec.codegen.context import Lowering, Refusal
from sparsec.codegen.isa.epilogue import activation_cost, apply_activation
from sparsec.codegen.kernels import decode
from sparsec.codegen.kernels.window import (
    Hooks,
    Window,
    choose_tiling,
    emit_window,
    first_channel,
    read_window,
    window_units,
)
from sparsec.codegen.program import Arg, Signature
from sparsec.formats.encoded import unpack
from sparsec.target import Target


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """x [N, H, W, C], weight [taps, C], bias [C]?, residual like out?, out [N, OH, OW, C]. Units: output rows."""
    w, c, batch = Window.of(p), p["channels"], p["batch"]
    taps = w.kernel[0] * w.kernel[1]
    results = batch * w.out[0] * w.out[1] * c
    args = [Arg("x", "float32", batch * w.size[0] * w.size[1] * c, "in")]
    coded = p["decode"]
    args += decode.arguments(coded) if coded else [Arg("weight", "float32", taps * c, "in")]
    if p["bias"]:
        args.append(Arg("bias", "float32", c, "in"))
    if p["residual"]:
        args.append(Arg("residual", "float32", results, "in"))
    args.append(Arg("out", "float32", results, "out"))
    if coded:
        args.append(Arg("panel", "float32", taps * coded["nr"], "work"))
    return Signature(
        tuple(args), window_units(w, c, batch, target), results * (2 * taps + activation_cost(p["activation"]))
    )


def build(p: Mapping[str, Any], k: Any) -> None:
    """Hooks of the window nest: multiply and add, then residual and activation."""
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

    label = f"{node.name}.weight"
    ins = [low.get(source, "cl")]
    coded: dict[str, Any] | None = None
    if isinstance(weight, np.ndarray):
        ins.append(low.const(weight.reshape(group, -1).T, label))
    else:
        tiling = choose_tiling(window, group, low.target)
        rows = np.concatenate([first_channel(tiling, group, b) + np.arange(tiling.block) for b in range(tiling.blocks)])
        packed = decode.pack(
            unpack(weight), tiling.block, low.target, rows=np.where(rows < group, rows, -1), label=label
        )
        coded = packed.params
        ins += [low.const(array, name) for name, array in packed.arrays]
    if bias is not None:
        ins.append(low.get(bias))
    if residual is not None:
        ins.append(low.get(residual, "cl"))
    params = {
        **window.params(),
        "batch": shape[0],
        "channels": group,
        "bias": bias is not None,
        "residual": residual is not None,
        "activation": activation,
        "act_params": list(act_params),
        "decode": coded,
    }
    scheme = f" {fused.scheme}" if fused is not None else ""
    note = f"{'x'.join(map(str, shape))} {'x'.join(map(str, kernel))}{scheme}"
    low.call(
        "depthwise", params, ins, [low.new(node.outputs[0], "cl")], node=node.name or "", op=node.op_type, note=note
    )
    return None
