"""Resize of channels-last images, nearest and linear, 1-D and 2-D: source pixels and weights of each axis are tables made when
the model is compiled, so every coordinate transformation is the same kernel.

Coordinates follow the ONNX Resize operator, in float32 as onnxruntime computes them (rounding decides nearest neighbours).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal
from sparsec.codegen.isa.pieces import pieces
from sparsec.codegen.layouts import Choice
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target

Array = np.ndarray[Any, Any]

_ROUNDING: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda x: np.ceil(x - np.float32(0.5)),
    "round_prefer_ceil": lambda x: np.floor(x + np.float32(0.5)),
    "floor": np.floor,
    "ceil": np.ceil,
}
_COORDINATES = ("align_corners", "asymmetric", "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel")


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """x [N, H, W, C], rows and columns of source pixels (and, linear, of their weights), out [N, OH, OW, C].

    Units: output rows. The tables `rows` and `columns` hold, per output index, one source index (nearest) or two (linear),
    `row_weights` and `column_weights` the weight of the second.
    """
    (h, w), (oh, ow), batch, c = p["size"], p["out"], p["batch"], p["channels"]
    taps = 2 if p["mode"] == "linear" else 1
    args = [
        Arg("x", "float32", batch * h * w * c, "in"),
        Arg("rows", "int32", taps * oh, "in"),
        Arg("columns", "int32", taps * ow, "in"),
    ]
    if taps == 2:
        args += [Arg("row_weights", "float32", oh, "in"), Arg("column_weights", "float32", ow, "in")]
    args.append(Arg("out", "float32", batch * oh * ow * c, "out"))
    return Signature(tuple(args), batch * oh, batch * oh * ow * c * (8 if taps == 2 else 2))


def build(p: Mapping[str, Any], k: Any) -> None:
    """Rows, columns, vectors of channels."""
    T = k.T
    (h, w), (oh, ow), c = p["size"], p["out"], p["channels"]
    linear = p["mode"] == "linear"
    taps = 2 if linear else 1
    x = k.arg("x")
    with T.serial(k.lo, k.hi) as unit:
        image = T.bind(T.truncdiv(unit, oh))
        row = T.bind(unit - image * oh)
        lines = [T.bind((image * h + k.load(k.arg("rows"), row * taps + i)) * (w * c)) for i in range(taps)]
        down = T.bind(k.load(k.arg("row_weights"), row)) if linear else None
        with T.serial(0, ow) as column:
            offsets = [T.bind(k.load(k.arg("columns"), column * taps + i) * c) for i in range(taps)]
            right = T.bind(k.load(k.arg("column_weights"), column)) if linear else None
            target = T.bind((unit * ow + column) * c)

            def channels(at: Any, n: int) -> None:
                corners = [[T.bind(k.load(x, line + o + at, n)) for o in offsets] for line in lines]
                value = corners[0][0]
                if linear:
                    upper, lower = (T.bind(a + (b - a) * k.splat(right, n)) for a, b in corners)
                    value = upper + (lower - upper) * k.splat(down, n)
                k.store(k.arg("out"), target + at, value, n)

            if c < k.lanes:
                for at, n in pieces(c, k.lanes):
                    channels(at, n)
            else:
                with T.serial(0, -(-c // k.lanes)) as v:
                    channels(T.bind(T.min(v * k.lanes, c - k.lanes)), k.lanes)


def source_coordinates(mode: str, size: int, out: int, scale: float) -> Array:
    """float32 [out]: where each output index lies on the input axis."""
    f = np.float32
    x, s, half = np.arange(out, dtype=f), f(scale), f(0.5)
    if mode == "align_corners":
        return x * f(size - 1) / f(out - 1) if out > 1 else np.zeros(1, f)
    if mode == "asymmetric":
        return x / s
    if mode == "pytorch_half_pixel" and out == 1:
        return np.zeros(1, f)
    centred: Array = (x + half) / s - half
    if mode == "half_pixel_symmetric":
        return centred + f(size) / f(2) * (f(1) - f(out) / (s * f(size)))
    return centred


def resize_choice(node: ir.Node, low: Lowering) -> Choice | None:
    """Channels last only."""
    source = node.inputs[0]
    assert source is not None
    return Choice({"cl": 0.0}) if len(low.shape(source)) in (3, 4) else None


def lower_resize(node: ir.Node, low: Lowering) -> Refusal | None:
    """Resize of float32 (N, C, W) or (N, C, H, W) along the spatial axes, modes nearest and linear."""
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None
    shape, out = low.shape(source), low.shape(result)
    text = {
        "mode": "nearest",
        "coordinate_transformation_mode": "half_pixel",
        "nearest_mode": "round_prefer_floor",
        "keep_aspect_ratio_policy": "stretch",
    }
    text |= {name: a.as_string() for name in text if (a := node.attributes.get(name)) is not None}
    mode, transform = text["mode"], text["coordinate_transformation_mode"]
    if low.dtype(source) != "float32" or len(shape) not in (3, 4):
        return Refusal(f"resize is float32 of rank 3 or 4, not {low.dtype(source)} of rank {len(shape)}")
    if out[:2] != shape[:2]:
        return Refusal(f"resize from {shape} to {out} changes more than the spatial axes")
    if mode not in ("nearest", "linear") or transform not in _COORDINATES:
        return Refusal(f"resize mode {mode} with {transform} coordinates")
    if node.attributes.get_int("antialias", 0) or text["keep_aspect_ratio_policy"] != "stretch":
        return Refusal("resize with antialias or a kept aspect ratio")
    scales = _scales(node, low, shape, out)
    if isinstance(scales, Refusal):
        return scales

    tables: list[Array] = []
    weights: list[Array] = []
    for size, wanted, scale in zip(shape[2:], out[2:], scales[2:], strict=True):
        at = source_coordinates(transform, size, wanted, scale)
        if mode == "nearest":
            tables.append(np.clip(_ROUNDING[text["nearest_mode"]](at), 0, size - 1).astype(np.int32))
            continue
        at = np.clip(at, 0, size - 1).astype(np.float32)
        first = np.floor(at).astype(np.int32)
        tables.append(np.stack([first, np.minimum(first + 1, size - 1)], axis=1).reshape(-1).astype(np.int32))
        weights.append(at - first.astype(np.float32))
    if len(shape) == 3:  # one row
        tables.insert(0, np.zeros(2 if weights else 1, np.int32))
        if weights:
            weights.insert(0, np.zeros(1, np.float32))

    params = {
        "mode": mode,
        "size": [1, *shape[2:]][-2:],
        "out": [1, *out[2:]][-2:],
        "batch": shape[0],
        "channels": shape[1],
    }
    consts = [low.const(t, f"{node.name}.{axis}") for t, axis in zip(tables, ("rows", "columns"), strict=True)]
    consts += [
        low.const(t, f"{node.name}.{axis}_weights") for t, axis in zip(weights, ("row", "column"), strict=bool(weights))
    ]
    note = f"{'x'.join(map(str, shape))} -> {'x'.join(map(str, out))} {mode}"
    ins, outs = [low.get(source, "cl"), *consts], [low.new(result, "cl")]
    low.call("resize", params, ins, outs, node=node.name or "", op=node.op_type, note=note)
    return None


def _scales(node: ir.Node, low: Lowering, shape: tuple[int, ...], out: tuple[int, ...]) -> list[float] | Refusal:
    """The scale of every axis: as given, or output over input where sizes are given."""
    axes_attribute = node.attributes.get("axes")
    axes = [int(a) % len(shape) for a in axes_attribute.as_ints()] if axes_attribute else list(range(len(shape)))
    ratios = [o / i for o, i in zip(out, shape, strict=True)]
    given = node.inputs[2] if len(node.inputs) > 2 else None
    if given is None or low.shape(given) == (0,):
        return ratios
    array = low.constant(given)
    if array is None:
        return Refusal("the scales are not constant")
    for axis, scale in zip(axes, array.tolist(), strict=True):
        ratios[axis] = scale
    return ratios
