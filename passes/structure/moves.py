"""How operators that move elements carry labels: shapes, orders, parts of tensors. Also what becomes of operators without a rule."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from sparsec.passes.structure.axes import Axes, Labels, numbers, sizes
from sparsec.passes.structure.reshape import reshaped

__all__ = ["MOVES", "unknown"]


def unknown(labels: Labels, node: ir.Node) -> list[Axes]:
    """An operator that channels are not followed through: all it reads is pinned, nothing is known of what it makes."""
    what = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    _pin_inputs(labels, node, f"read by {what} ({node.name}), which channels are not followed through")
    return []


def _pin_inputs(labels: Labels, node: ir.Node, why: str) -> None:
    for index, value in enumerate(node.inputs):
        if value is not None:
            labels.pin_all(labels.read(node, index), why)


def _transpose(labels: Labels, node: ir.Node) -> list[Axes]:
    x = labels.read(node, 0)
    order = node.attributes.get_ints("perm", tuple(reversed(range(len(x)))))
    return [[x[i] for i in order]]


def _reshape(labels: Labels, node: ir.Node) -> list[Axes]:
    """Reshape, Flatten, Squeeze, Unsqueeze."""
    return [reshaped(labels, labels.read(node, 0), sizes(node.inputs[0]), sizes(node.outputs[0]))]


def _concat(labels: Labels, node: ir.Node) -> list[Axes]:
    parts = [labels.read(node, index) for index in range(len(node.inputs))]
    axis = node.attributes.get_int("axis", 0) % len(parts[0])
    result = list(parts[0])
    for part in parts[1:]:
        for place in range(len(result)):
            if place != axis:
                result[place] = labels.tie(result[place], part[place], f"Concat ({node.name})")
    if all(part[axis] is None for part in parts):
        result[axis] = None
        return [result]
    joined = []
    for value, part in zip(node.inputs, parts, strict=True):
        one = part[axis]
        if one is None:  # these channels stay, their neighbours need not
            labels.count += sizes(value)[axis]
            one = np.arange(labels.count - sizes(value)[axis], labels.count, dtype=np.int64)
            labels.pin(one, f"Concat ({node.name}) joins it with what cannot lose channels")
        joined.append(one)
    result[axis] = np.concatenate(joined)
    return [result]


def _split(labels: Labels, node: ir.Node) -> list[Axes]:
    x = labels.read(node, 0)
    axis = node.attributes.get_int("axis", 0) % len(x)
    whole = x[axis]
    if whole is None:
        return [list(x) for _ in node.outputs]
    ends = np.cumsum([sizes(value)[axis] for value in node.outputs])[:-1]
    return [[*x[:axis], part, *x[axis + 1 :]] for part in np.split(whole, ends)]


def _slice(labels: Labels, node: ir.Node) -> list[Axes]:
    x = labels.read(node, 0)
    starts, ends = numbers(node.inputs[1]), numbers(node.inputs[2])
    axes = numbers(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else list(range(len(x)))
    steps = numbers(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else [1] * len(axes or [])
    if starts is None or ends is None or axes is None or steps is None:
        return unknown(labels, node)
    result = list(x)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=False):
        one = result[axis]
        if one is not None and step == 1:
            result[axis] = one[start:end]
        elif one is not None:
            labels.pin(one, f"Slice ({node.name}) takes channels in steps of {step}")
            result[axis] = None
    return [result]


def _pad(labels: Labels, node: ir.Node) -> list[Axes]:
    x, amounts = labels.read(node, 0), numbers(node.inputs[1])
    if amounts is None or (len(node.inputs) > 3 and node.inputs[3] is not None):
        return unknown(labels, node)
    result: Axes = []
    for place, axis in enumerate(x):
        before, after = amounts[place], amounts[place + len(x)]
        if axis is None or (before == 0 and after == 0):
            result.append(axis)
        elif node.attributes.get_string("mode", "constant") != "constant" or min(before, after) < 0:
            labels.pin(axis, f"Pad ({node.name}) repeats channels")
            result.append(None)
        else:
            labels.count += before + after
            made = np.arange(labels.count - before - after, labels.count, dtype=np.int64)
            result.append(np.concatenate([made[:before], axis, made[before:]]))
    return [result]


def _gather(labels: Labels, node: ir.Node) -> list[Axes]:
    x, indices = labels.read(node, 0), node.inputs[1]
    axis = node.attributes.get_int("axis", 0) % len(x)
    assert indices is not None
    if indices.const_value is None:
        labels.pin_all(labels.of[indices], f"indices of Gather ({node.name})")
    labels.pin(x[axis], f"Gather ({node.name}) looks up its rows by number")
    return [[*x[:axis], *[None] * len(sizes(indices)), *x[axis + 1 :]]]


def _expand(labels: Labels, node: ir.Node) -> list[Axes]:
    x, given, shape = labels.read(node, 0), sizes(node.inputs[0]), sizes(node.outputs[0])
    lead = len(shape) - len(given)
    return [[None] * lead + [a if given[i] == shape[lead + i] else None for i, a in enumerate(x)]]


MOVES: dict[str, Callable[[Labels, ir.Node], list[Axes]]] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Gather": _gather,
    "Expand": _expand,
}
"""Operator -> rule."""
