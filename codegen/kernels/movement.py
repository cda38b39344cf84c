"""Lowering of ops that only move data and need a fresh buffer: Concat, Tile, DepthToSpace, SpaceToDepth, Pad, Trilu."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Place, Refusal, same_memory
from sparsec.codegen.layouts import Choice
from sparsec.codegen.program import ITEMSIZE
from sparsec.codegen.strided import keep_layout, native, optional_input, put, strides_of


def concat_choice(node: ir.Node, low: Lowering) -> Choice | None:
    """Both layouts."""
    return Choice({"row": 0.0, "cl": 0.0}) if len(low.shape(node.outputs[0])) > 2 else None


def lower_concat(node: ir.Node, low: Lowering) -> Refusal | None:
    """Concat: every input that was not produced in its place is copied there."""
    out = node.outputs[0]
    values = [v for v in node.inputs if v is not None]
    shape = low.shape(out)
    axis = node.attributes.get_int("axis", 0) % len(shape)
    if len(values) == 1:
        low.bind(out, native(low, values[0]))
        return None
    some_cl = any(low.layout(v) == "cl" and not same_memory(low.shape(v)) for v in values)
    planned = [p.layout for v in values if (p := low.places.get(v)) is not None and p.out is out]
    layout = planned[0] if planned else low.plan.get(node) or ("cl" if some_cl else "row")
    dest = low.result_of(Place(out, layout, 0, 0))
    strides = strides_of(dest)
    at = 0
    for index, value in enumerate(values):
        start = at
        at += low.shape(value)[axis]
        if value in low.in_place:
            continue
        # A constant or another layout is read as it lies: the copy converts on the way.
        source = native(low, value)
        offset = dest.offset + start * strides[axis] * ITEMSIZE[dest.dtype]
        if source.buffer is dest.buffer and source.offset == offset and source.layout == layout:
            continue
        note = f"input {index} of {len(values)}, axis {axis}"
        put(low, node, source, dest, source.shape, strides_of(source), 0, strides, start * strides[axis], note)
    return None


def lower_tile(node: ir.Node, low: Lowering) -> Refusal | None:
    """Tile: an axis becomes (repeat, axis) with source stride 0 along the repeat."""
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    repeats = low.constant(node.inputs[1])
    if repeats is None:
        return Refusal("Tile with repeats that are computed at run time")
    source = native(low, value)
    dest = low.new(out, keep_layout(source, low.shape(out)))
    shape: list[int] = []
    src: list[int] = []
    dst: list[int] = []
    for n, times, s, d in zip(source.shape, repeats.tolist(), strides_of(source), strides_of(dest), strict=True):
        shape += [times, n]
        src += [0, s]
        dst += [n * d, d]
    put(low, node, source, dest, shape, src, 0, dst)
    return None


def lower_depth_space(node: ir.Node, low: Lowering) -> Refusal | None:
    """DepthToSpace (DCR, CRD) and SpaceToDepth: a six-dimensional strided copy."""
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    block = node.attributes.get_int("blocksize", 1)
    crd = node.attributes.get_string("mode", "DCR") == "CRD"
    source = native(low, value)
    dest = low.new(out, keep_layout(source, low.shape(out)))
    to_space = node.op_type == "DepthToSpace"
    deep, wide = (source, dest) if to_space else (dest, source)
    n, c, h, w = deep.shape
    c //= block * block
    dn, dc, dh, dw = strides_of(deep)
    wn, wc, wh, ww = strides_of(wide)
    # index space: n, c, row in block, column in block, h, w
    depth = (dn, dc * block * block, dc * block, dc, dh, dw) if crd else (dn, dc, dc * c * block, dc * c, dh, dw)
    space = (wn, wc, wh, ww, wh * block, ww * block)
    src, dst = (depth, space) if to_space else (space, depth)
    put(low, node, source, dest, [n, c, block, block, h, w], src, 0, dst)
    return None


def lower_pad(node: ir.Node, low: Lowering) -> Refusal | None:
    """Pad, all four modes; negative pads crop."""
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    mode = node.attributes.get_string("mode", "constant")
    if mode not in ("constant", "reflect", "edge", "wrap"):
        return Refusal(f"Pad mode '{mode}'")
    given = low.constant(node.inputs[1])
    if given is None:
        return Refusal("Pad with pads that are computed at run time")
    source, shape = native(low, value), low.shape(out)
    rank = len(shape)
    axes = list(range(rank))
    if (wanted := optional_input(node, 3)) is not None:
        listed = low.constant(wanted)
        if listed is None:
            return Refusal("Pad with axes that are computed at run time")
        axes = [int(a) % rank for a in listed]
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        before[axis], after[axis] = int(given[i]), int(given[len(axes) + i])
    for n, b, a in zip(source.shape, before, after, strict=True):
        if n == 0 and (b or a) and mode != "constant":
            return Refusal(f"Pad mode '{mode}' of an empty axis")
        if mode == "reflect" and max(b, a) >= n:
            return Refusal(f"reflecting pad of {max(b, a)} along an axis of {n}")
    dest = low.new(out, keep_layout(source, shape))
    if 0 in shape:
        return None
    order = [0, *range(2, rank), 1] if dest.layout == "cl" else list(range(rank))
    fill = optional_input(node, 2)
    filling = low.const(np.zeros(1, source.dtype), "zero") if fill is None else low.get(fill, "row")
    params = {
        "dtype": source.dtype,
        "mode": mode,
        "shape": [source.shape[a] for a in order],
        "before": [before[a] for a in order],
        "after": [after[a] for a in order],
    }
    note = f"{mode}, {list(source.shape)} to {list(shape)}"
    low.call("pad", params, [source, filling], [dest], node=node.name or "", op="Pad", note=note)
    return None


def lower_trilu(node: ir.Node, low: Lowering) -> Refusal | None:
    """Trilu with a constant diagonal."""
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    diagonal = 0
    if (given := optional_input(node, 1)) is not None:
        array = low.constant(given)
        if array is None:
            return Refusal("Trilu with a diagonal that is computed at run time")
        diagonal = int(array.item())
    source, dest = low.get(value, "row"), low.new(out)
    rows, cols = source.shape[-2:]
    if source.size == 0:
        return None
    params = {
        "dtype": source.dtype,
        "batch": source.size // (rows * cols),
        "rows": rows,
        "cols": cols,
        "diagonal": min(max(diagonal, -rows), cols),
        "upper": bool(node.attributes.get_int("upper", 1)),
    }
    low.call("trilu", params, [source], [dest], node=node.name or "", op="Trilu", note=f"{list(source.shape)}")
    return None
