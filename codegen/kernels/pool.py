"""Max and average pooling in either layout, 1-D and 2-D, and global pooling.

Windows run through the nests of window.py (channels last) and planes.py (row order) without weights. A global pool is a sum or
maximum over all pixels of each channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal
from sparsec.codegen.kernels import plane_tiles, planes
from sparsec.codegen.kernels.window import Hooks, Row, Window, emit_window, read_window, window_choice, window_units
from sparsec.codegen.layouts import Choice
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target

_OPS = {"MaxPool": "max", "AveragePool": "mean", "GlobalMaxPool": "max", "GlobalAveragePool": "mean"}


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """x, share [OH, OW]? (row order), out; images lie in `layout`. Units: output rows, or strips of planes.

    `share` is what each pixel of a sum is worth, where that differs between pixels.
    """
    w, c, batch = Window.of(p), p["channels"], p["batch"]
    results = batch * w.out[0] * w.out[1] * c
    cost = results * (w.kernel[0] * w.kernel[1] + 1)
    args = [Arg("x", "float32", batch * w.size[0] * w.size[1] * c, "in")]
    if p["layout"] == "row":
        if p["op"] == "mean" and _share(w, p["count_pads"]) is None:
            args.append(Arg("share", "float32", w.out[0] * w.out[1], "in"))
        args += [Arg("out", "float32", results, "out"), planes.scratch_argument(w, c * batch, target)]
        return Signature(tuple(args), planes.plane_units(w, c * batch, target), cost)
    args.append(Arg("out", "float32", results, "out"))
    return Signature(tuple(args), window_units(w, c, batch, target), cost)


def build(p: Mapping[str, Any], k: Any) -> None:
    """Hooks of the window nest: the maximum, or the sum times the reciprocal of the number of pixels it counts."""
    T, w = k.T, Window.of(p)
    if p["layout"] == "row":
        _build_planes(p, k)
        return

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


def _build_planes(p: Mapping[str, Any], k: Any) -> None:
    w, largest = Window.of(p), p["op"] == "max"
    share = None if largest else _share(w, p["count_pads"])

    def finish(acc: Any, read: Any, n: int) -> Any:
        if largest:
            return acc
        return acc * (k.f32(share, n) if share is not None else read("share", True))

    first = float("-inf") if largest else 0.0
    hooks = plane_tiles.Hooks(
        pad=first,
        start=lambda channel: k.f32(first),
        step=lambda acc, x, _: k.T.max(acc, x) if largest else acc + x,
        finish=finish,
    )
    planes.emit_planes(k, w, p["channels"], p["batch"], hooks)


def _counts(w: Window, axis: int, pads: bool) -> list[int]:
    """Pixels of each window along one axis that count; with `pads` those of the padding do, but not those beyond it."""
    if not pads:
        return [len(w.taps(axis, i)) for i in range(w.out[axis])]
    end = w.size[axis] + w.pads_end[axis]
    first = (i * w.strides[axis] - w.pads[axis] for i in range(w.out[axis]))
    return [min(w.kernel[axis], -((f - end) // w.dilations[axis])) for f in first]


def _share(w: Window, pads: bool) -> float | None:
    """What a pixel is worth in its sum, None if that differs between windows."""
    rows, columns = _counts(w, 0, pads), _counts(w, 1, pads)
    same = len(set(rows)) == 1 and len(set(columns)) == 1
    return 1.0 / max(1, rows[0] * columns[0]) if same else None


def _inside(k: Any, w: Window, axis: int, first: Any) -> Any:
    """Taps of the window starting at `first` that lie in the padded image: fewer at its end when ceil_mode rounded up."""
    end, step = w.size[axis] + w.pads_end[axis], w.dilations[axis]
    reach = (w.out[axis] - 1) * w.strides[axis] - w.pads[axis] + (w.kernel[axis] - 1) * step
    if reach < end:
        return w.kernel[axis]
    if isinstance(first, int):
        return min(w.kernel[axis], -((first - end) // step))
    return k.T.min(w.kernel[axis], k.T.truncdiv(end - first + step - 1, step))


def pool_choice(node: ir.Node, low: Lowering) -> Choice | None:
    """Both layouts."""
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None
    window = read_window(node, low)
    if low.dtype(source) != "float32" or isinstance(window, Refusal):
        return None
    return window_choice(low, window, low.shape(source), prod(low.shape(result)))


def global_pool_choice(node: ir.Node, low: Lowering) -> Choice:
    """Reads what is there; one pixel a channel lies the same in both layouts."""
    return Choice({"row": 0.0}, free=True)


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
    layout = low.planned(node, ("cl", "row") if not window.crops else ("cl",))
    pads = bool(node.attributes.get_int("count_include_pad", 0))
    params = {
        **window.params(),
        "batch": shape[0],
        "channels": shape[1],
        "layout": layout,
        "op": op,
        "count_pads": pads,
    }
    note = f"{'x'.join(map(str, shape))} window {window.kernel[0]}x{window.kernel[1]}"
    ins, outs = [low.get(source, layout)], [low.new(result, layout)]
    if layout == "row" and op == "mean" and _share(window, pads) is None:
        counts = np.outer(_counts(window, 0, pads), _counts(window, 1, pads))
        ins.append(low.const((1.0 / np.maximum(1, counts)).astype(np.float32), f"{node.name}.share"))
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
    layout = low.layout(source)  # either is read as it lies; the result is the same in both
    params = {"batch": batch, "channels": channels, "pixels": pixels, "layout": layout, "op": op}
    note = f"{'x'.join(map(str, low.shape(source)))}"
    ins, outs = [low.get(source, layout)], [low.new(node.outputs[0], layout)]
    low.call("global_pool", params, ins, outs, node=node.name or "", op=node.op_type, note=note)
