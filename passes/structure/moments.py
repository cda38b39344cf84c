"""Means and variances of what linear layers read, from one pass of the calibration samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsec.passes.calibrate.inputs import layer_rows
from sparsec.passes.calibrate.segments import segments
from sparsec.passes.calibrate.stream import Stream
from sparsec.passes.weights import Use, use_of

__all__ = ["Spread", "first_input", "input_spreads", "linear_use", "row_limit", "second_moments", "visit"]

Array = np.ndarray[Any, Any]
Value = Callable[[int], Array]

_ROWS_PER_INPUT, _ROWS = 64, 1 << 16
"""As in calibrate/layers.py: beyond, pixels of an image say much the same."""


@dataclass(frozen=True, eq=False)
class Spread:
    """Of the K inputs of a layer (of each group of a convolution): mean and variance, float64 [groups, K]."""

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]


def linear_use(node: ir.Node) -> Use | None:
    """How a node reads a constant weight of its own, if it is a linear layer."""
    if node.domain or node.op_type not in ("MatMul", "Gemm", "Conv"):
        return None
    weight = node.inputs[1]
    found = use_of(node, 1)
    return found if weight is not None and weight.const_value is not None and isinstance(found, Use) else None


def row_limit(inputs: int, samples: int) -> int:
    """How many rows of one sample count, for a layer with so many inputs."""
    return -(-max(_ROWS_PER_INPUT * inputs, _ROWS) // samples)


def visit(
    model: ir.Model, samples: Sequence[Mapping[str, Array]], stops: Sequence[tuple[ir.Node, str]], threads: int
) -> Iterator[Value]:
    """Run the samples up to each stop, a node (in order of execution) and the name of a value made before it; yields a function
    (sample's number) -> array. Weights behind a node may change before the next step."""
    numbers = {node: number for number, node in enumerate(model.graph)}
    plan = segments(model.graph, [numbers[node] for node, _ in stops], [[name] for _, name in stops])
    stream = Stream(model, samples, threads)
    try:
        for (_, name), segment in zip(stops, plan, strict=True):
            stream.advance(segment)
            yield partial(stream.value, name)
    finally:
        stream.close()


def first_input(node: ir.Node) -> str:
    """The name of what a node reads first."""
    value = node.inputs[0]
    assert value is not None
    return value.name or ""


def input_spreads(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    samples: Sequence[Mapping[str, Array]],
    *,
    mask: str,
    threads: int,
) -> dict[ir.Node, Spread]:
    """Mean and variance of the inputs of linear layers (constant weights).

    Args:
        mask: the input that is 0 where another is padding.
    """
    place = {node: number for number, node in enumerate(model.graph)}
    found: dict[ir.Node, Spread] = {}
    ordered = sorted(set(nodes), key=lambda node: place[node])
    values = visit(model, samples, [(node, first_input(node)) for node in ordered], threads)
    for node, value in zip(ordered, values, strict=True):
        use = linear_use(node)
        assert use is not None
        count, total, square = 0, np.zeros(()), np.zeros(())
        for number, sample in enumerate(samples):
            limit = row_limit(_inputs_of(use), len(samples))
            rows = np.stack(layer_rows(use, value(number), limit, number, sample.get(mask)))
            count += rows.shape[1]
            total = total + rows.sum(1, dtype=np.float64)
            square = square + np.square(rows, dtype=np.float64).sum(1)
        mean = total / max(count, 1)
        found[node] = Spread(mean, np.maximum(square / max(count, 1) - np.square(mean), 0))
    return found


def second_moments(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    samples: Sequence[Mapping[str, Array]],
    *,
    centred: bool,
    mask: str,
    threads: int,
) -> list[NDArray[np.float64]]:
    """E[n n^T], float64 [D, D], of what norms make of their inputs: rows (less their mean, if `centred`) over their root mean square,
    without scale and bias."""
    found = []
    for node, value in zip(nodes, visit(model, samples, [(n, first_input(n)) for n in nodes], threads), strict=True):
        count, total = 0, np.zeros(())
        for number, sample in enumerate(samples):
            x = value(number)
            limit = row_limit(x.shape[-1], len(samples))
            (rows,) = layer_rows(Use(node, 0, node.op_type, False), x, limit, number, sample.get(mask))
            shifted = rows - rows.mean(1, keepdims=True) if centred else rows
            size = np.sqrt(np.square(shifted).mean(1, keepdims=True))
            normed = shifted / np.where(size > 0, size, 1)
            count += len(normed)
            total = total + normed.T @ normed
        found.append(np.asarray(total / max(count, 1), np.float64))
    return found


def _inputs_of(use: Use) -> int:
    weight = use.node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    shape = weight.const_value.shape.numpy()
    return int(shape[0] if use.flipped else np.prod(shape[1:]))
