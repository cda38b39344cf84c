"""Max and average pooling on channels-last images, 1-D and 2-D, and global pooling.

Windows run through the nest of window.py without weights. A global pool is a sum or maximum over all pixels of each channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal
from sparsec.codegen.kernels.window import Hooks, Row, Window, emit_window, read_window, window_units
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target

_OPS = {"MaxPool": "max", "AveragePool": "mean", "GlobalMaxPool": "max", "GlobalAveragePool": "mean"}


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """x [N, H, W, C], out [N, OH, OW, C]. Units: output rows."""
    w, c, batch = Window.of(p), p["channels"], p["batch"]
    results = batch * w.out[0] * w.out[1] * c
    args = (
        Arg("x", "float32", batch * w.size[0] * w.size[1] * c, "in"),
        Arg("out", "float32", results, "out"),
    )
    return Signature(args, window_units(w, c, batch, target), results * (w.kernel[0] * w.kernel[1] + 1))


def build(p: Mapping[str, Any], k: Any) -> None:
    """Hooks of the window nest: the maximum, or the sum times the reciprocal of the number of pixels it counts."""
    T, w = k.T, Window.of(p)

    def largest(acc: Any, x: Any, _: Any, n: int) -> Any:
        return T.max(acc, x)

    def total(acc: Any, x: Any, _: Any, n: int) -> Any:
        return acc + x

    def mean(acc: Any, row: Row, taps: Any, x: Any, at: Any, n: int) -> Any:
        if p["count_pads"]:
            rows, columns = _inside(k, w, 0, row.top), _inside(k, w, 1, x * w.strides[1] - w.pads[1])
        else:
            rows, columns = row.hi - row.lo, taps
        if isinstance(rows, int) and isinstance(columns, int):
            return acc * k.f32(1.0 / max(1, rows * columns), n)
        return acc * k.splat(T.bind(T.float32(1) / T.cast(T.max(1, rows * columns), "float32")), n)

    if p["op"] == "max":
        hooks = Hooks(lambda c, n: k.f32(float("-inf"), n), largest, lambda acc, row, taps, x, at, n: acc)
    else:
        hooks = Hooks(lambda c, n: k.f32(0.0, n), total, mean)
    emit_window(k, w, p["channels"], p["batch"], hooks)


def _inside(k: Any, w: Window, axis: int, first: Any) -> Any:
    """Taps of the window starting at `first` that lie in the padded image: fewer at its end when ceil_mode rounded up."""
    end, step = w.size[axis] + w.pads_end[axis], w.dilations[axis]
    reach = (w.out[axis] - 1) * w.strides[axis] - w.pads[axis] + (w.kernel[axis] - 1) * step
    if reach < end:
        return w.kernel[axis]
    if isinstance(first, int):
        return min(w.kernel[axis], -((first - end) // step))
    return k.T.min(w.kernel[axis], k.T.truncdiv(end - first + step - 1, step))


def lower_pool(node: ir.Node, low: Lowering) -> Refusal | None:
    """MaxPool and AveragePool of float32 (N, C, W) or (N, C, H, W), without the indices of the maxima."""
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None
    if low.dtype(source) != "float32":
        return Refusal(f"pooling is float32, not {low.dtype(source)}")
    if len(node.outputs) > 1 and node.outputs[1].uses():
        return Refusal("the indices of the maxima (second output) are used")
    window = read_window(node, low)
    if isinstance(window, Refusal):
        return window
    shape = low.shape(source)
    op = _OPS[node.op_type]
    if (
        window.out == (1, 1)
        and window.kernel == window.size
        and window.dilations == (1, 1)
        and not any(window.pads + window.pads_end)
    ):
        _global(node, low, op)
        return None
    params = {
        **window.params(),
        "batch": shape[0],
        "channels": shape[1],
        "op": op,
        "count_pads": bool(node.attributes.get_int("count_include_pad", 0)),
    }
    note = f"{'x'.join(map(str, shape))} window {window.kernel[0]}x{window.kernel[1]}"
    ins, outs = [low.get(source, "cl")], [low.new(result, "cl")]
    low.call("pool", params, ins, outs, node=node.name or "", op=node.op_type, note=note)
    return None


def lower_global_pool(node: ir.Node, low: Lowering) -> Refusal | None:
    """GlobalMaxPool and GlobalAveragePool of float32, any number of spatial dimensions."""
    source = node.inputs[0]
    assert source is not None
    if low.dtype(source) != "float32":
        return Refusal(f"pooling is float32, not {low.dtype(source)}")
    if len(low.shape(source)) < 3:
        return Refusal(f"global pooling needs a spatial dimension, the input has shape {low.shape(source)}")
    _global(node, low, _OPS[node.op_type])
    return None


def _global(node: ir.Node, low: Lowering, op: str) -> None:
    source = node.inputs[0]
    assert source is not None
    batch, channels, *spatial = low.shape(source)
    pixels = 1
    for size in spatial:
        pixels *= size
    params = {"batch": batch, "channels": channels, "pixels": pixels, "op": op}
    note = f"{'x'.join(map(str, low.shape(source)))}"
    ins, outs = [low.get(source, "cl")], [low.new(node.outputs[0], "cl")]
    low.call("global_pool", params, ins, outs, node=node.name or "", op=node.op_type, note=note)
