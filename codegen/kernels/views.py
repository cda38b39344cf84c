"""Lowering of reshapes, transpositions, slices, splits and static shapes: views where possible, else one strided copy."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import LAYOUTS, Layout, Lowering, Refusal, Tensor
from sparsec.codegen.layouts import FOLLOWS, Choice, move_time
from sparsec.codegen.strided import (
    bind_view,
    is_dense,
    keep_layout,
    layout_strides,
    native,
    optional_input,
    strides_of,
)


def reshape_choice(node: ir.Node, low: Lowering) -> Choice | None:
    """A channels-last source stays so while only the spatial axes are regrouped; else row order."""
    value = node.inputs[0]
    assert value is not None
    shape, source = low.shape(node.outputs[0]), low.shape(value)
    return FOLLOWS if len(shape) >= 3 and shape[:2] == source[:2] else None


def lower_reshape(node: ir.Node, low: Lowering) -> Refusal | None:
    """Reshape, Flatten, Squeeze, Unsqueeze: always a view.

    A channels-last source stays so while only the spatial axes are regrouped.
    """
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    shape = low.shape(out)
    source = native(low, value)
    if source.layout == "cl" and len(shape) >= 3 and shape[:2] == source.shape[:2]:
        low.bind(out, Tensor(source.buffer, source.dtype, shape, "cl", source.offset))
        return None
    source = low.get(value, "row")
    low.bind(out, Tensor(source.buffer, source.dtype, shape, "row", source.offset))
    return None


def lower_identity(node: ir.Node, low: Lowering) -> Refusal | None:
    """Identity, and Dropout at inference: the same memory."""
    value = node.inputs[0]
    assert value is not None
    for extra in node.outputs[1:]:
        if extra.uses() or extra.is_graph_output():
            return Refusal(f"{node.op_type} with a used mask output")
    if node.op_type == "Dropout" and (training := optional_input(node, 2)) is not None:
        given = low.constant(training)
        if given is None or given.any():
            return Refusal("Dropout in training mode")
    low.bind(node.outputs[0], native(low, value))
    return None


def lower_transpose(node: ir.Node, low: Lowering) -> Refusal | None:
    """Transpose: a view when the permuted strides are row or channels-last order."""
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    source = native(low, value)
    rank = len(source.shape)
    perm = node.attributes.get_ints("perm", tuple(reversed(range(rank))))
    strides = strides_of(source)
    bind_view(low, node, out, source, [strides[a] for a in perm], note=f"{list(source.shape)} by {list(perm)}")
    return None


def transpose_choice(node: ir.Node, low: Lowering) -> Choice | None:
    """Reads what is there: free where the permuted strides are those of a layout, else a copy to row order."""
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    shape = low.shape(value)
    perm = node.attributes.get_ints("perm", tuple(reversed(range(len(shape)))))
    copy: dict[Layout, float] = {}
    results: dict[Layout, Layout] = {}
    for layout in LAYOUTS if len(shape) >= 3 else LAYOUTS[:1]:
        strides = layout_strides(shape, layout)
        views = [to for to in LAYOUTS if is_dense(low.shape(out), [strides[a] for a in perm], to)]
        copy[layout] = 0.0 if views else move_time(low, value)
        results[layout] = views[0] if views else "row"
    if len(set(results.values())) > 1:  # the result's layout would follow from the operand's: row order alone
        copy = {"row": copy["row"]}
    return Choice(copy, out=results["row"])


def lower_slice(node: ir.Node, low: Lowering) -> Refusal | None:
    """Slice with constant bounds: offsets and strides, negative steps too."""
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    shape = low.shape(value)
    starts, ends = (low.constant(optional_input(node, i)) for i in (1, 2))
    if starts is None or ends is None:
        return Refusal("Slice with bounds that are computed at run time")
    lists = []
    for index, default in ((3, np.arange(starts.size)), (4, np.ones(starts.size, np.int64))):
        given = optional_input(node, index)
        array = default if given is None else low.constant(given)
        if array is None:
            return Refusal("Slice with axes or steps that are computed at run time")
        lists.append(array)
    picks = [slice(None)] * len(shape)
    for start, end, axis, step in zip(starts, ends, *lists, strict=True):
        n, lowest = shape[axis], -1 if step < 0 else 0
        first = min(max(int(start) + (n if start < 0 else 0), 0), n - 1 if step < 0 else n)
        last = min(max(int(end) + (n if end < 0 else 0), lowest), n)
        picks[axis] = slice(first, None if last < 0 else last, int(step))
    return _pick(node, low, value, out, [range(n)[p] for n, p in zip(shape, picks, strict=True)])


def _pick(node: ir.Node, low: Lowering, value: ir.Value, out: ir.Value, ranges: list[range]) -> Refusal | None:
    shape = low.shape(out)
    if tuple(len(r) for r in ranges) != shape:
        return Refusal(f"the bounds give shape {[len(r) for r in ranges]}, the model says {list(shape)}")
    source = native(low, value)
    strides = strides_of(source)
    if 0 in shape:
        low.new(out)
        return None
    offset = sum(r.start * s for r, s in zip(ranges, strides, strict=True))
    steps = [r.step * s for r, s in zip(ranges, strides, strict=True)]
    bind_view(low, node, out, source, steps, offset, keep_layout(source, shape))
    return None


def lower_split(node: ir.Node, low: Lowering) -> Refusal | None:
    """Split: every output is a slice; sizes come from the outputs' shapes."""
    value = node.inputs[0]
    assert value is not None
    shape = low.shape(value)
    axis = node.attributes.get_int("axis", 0) % len(shape)
    sizes = [low.shape(out)[axis] for out in node.outputs]
    if sum(sizes) != shape[axis]:
        return Refusal(f"pieces of {sizes} do not add up to {shape[axis]}")
    at = 0
    for out, size in zip(node.outputs, sizes, strict=True):
        ranges = [range(n) for n in shape]
        ranges[axis] = range(at, at + size)
        if (refusal := _pick(node, low, value, out, ranges)) is not None:
            return refusal
        at += size
    return None


def pick_one(node: ir.Node, low: Lowering, value: ir.Value, out: ir.Value, axis: int, start: int, step: int) -> None:
    """Bind `out` to value[..., start + i * step, ...] along `axis`, i up to the output's size.

    The axis is dropped when the output's rank is one lower (a Gather by a constant scalar).
    """
    source = native(low, value)
    strides = strides_of(source)
    offset = start * strides[axis]
    shape = low.shape(out)
    if len(shape) == len(source.shape):
        strides[axis] *= step
        prefer = keep_layout(source, shape)
    else:
        del strides[axis]
        prefer = "row"
    bind_view(low, node, out, source, strides, offset, prefer)


def lower_expand(node: ir.Node, low: Lowering) -> Refusal | None:
    """Expand: source stride 0 along the repeated axes."""
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    shape, source = low.shape(out), native(low, value)
    lead = len(shape) - len(source.shape)
    if lead < 0 or any(n not in (1, m) for n, m in zip(source.shape, shape[lead:], strict=True)):
        return Refusal(f"shape {list(source.shape)} does not broadcast to {list(shape)}")
    strides = [
        0 if n == 1 and m != 1 else s for n, m, s in zip(source.shape, shape[lead:], strides_of(source), strict=True)
    ]
    bind_view(low, node, out, source, [0] * lead + strides, prefer=keep_layout(source, shape))
    return None


def lower_shape(node: ir.Node, low: Lowering) -> Refusal | None:
    """Shape and Size of a static shape: a constant."""
    value = node.inputs[0]
    assert value is not None
    shape = low.shape(value)
    if node.op_type == "Size":
        array = np.array(np.prod(shape, dtype=np.int64))
    else:
        end = node.attributes.get_int("end", len(shape))
        array = np.array(shape[node.attributes.get_int("start", 0) : end], np.int64)
    _constant(node, low, array)
    return None


def lower_constant_of_shape(node: ir.Node, low: Lowering) -> Refusal | None:
    """ConstantOfShape: a constant of the output's static shape."""
    fill = node.attributes.get_tensor("value", None)
    value = np.zeros(1, np.float32) if fill is None else fill.numpy()
    _constant(node, low, np.full(low.shape(node.outputs[0]), value.reshape(-1)[0]))
    return None


def lower_range(node: ir.Node, low: Lowering) -> Refusal | None:
    """Range with constant bounds: a constant."""
    start, limit, delta = (low.constant(v) for v in node.inputs)
    if start is None or limit is None or delta is None:
        return Refusal("Range with bounds that are computed at run time")
    count = max(0, int(np.ceil((limit.item() - start.item()) / delta.item())))
    _constant(node, low, (start + np.arange(count, dtype=start.dtype) * delta).astype(start.dtype))
    return None


def _constant(node: ir.Node, low: Lowering, array: np.ndarray) -> None:
    out = node.outputs[0]
    low.bind(out, low.const(array, out.name or "const", shape=array.shape))
