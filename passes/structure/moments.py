"""Means and variances of what linear layers read, from one pass of the calibration samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsec.passes.calibrate.inputs import layer_rows
from sparsec.passes.calibrate.segments import segments
from sparsec.passes.calibrate.stream import Stream
from sparsec.passes.weights import Use, use_of

__all__ = ["Spread", "input_spreads", "linear_use", "row_limit", "visit"]

Array = np.ndarray[Any, Any]
Value = Callable[[str, int], Array]

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
    model: ir.Model, samples: Sequence[Mapping[str, Array]], nodes: Sequence[ir.Node], threads: int
) -> Iterator[tuple[ir.Node, Value]]:
    """Run the samples up to each of `nodes` (in order of execution); yields the node and a function (value's name, sample) -> array
    that gives its first input. Weights behind a node may change before the next step."""
    numbers = {node: number for number, node in enumerate(model.graph)}
    cuts = [numbers[node] for node in nodes]
    plan = segments(model.graph, cuts, [[node.inputs[0].name or ""] for node in nodes if node.inputs[0] is not None])
    stream = Stream(model, samples, threads)
    try:
        for node, segment in zip(nodes, plan, strict=True):
            stream.advance(segment)
            yield node, stream.value
    finally:
        stream.close()


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
    for node, value in visit(model, samples, ordered, threads):
        use, x = linear_use(node), node.inputs[0]
        assert use is not None
        assert x is not None
        count, total, square = 0, np.zeros(()), np.zeros(())
        for number, sample in enumerate(samples):
            limit = row_limit(_inputs_of(use), len(samples))
            rows = np.stack(layer_rows(use, value(x.name or "", number), limit, number, sample.get(mask)))
            count += rows.shape[1]
            total = total + rows.sum(1, dtype=np.float64)
            square = square + np.square(rows, dtype=np.float64).sum(1)
        mean = total / max(count, 1)
        found[node] = Spread(mean, np.maximum(square / max(count, 1) - np.square(mean), 0))
    return found


def _inputs_of(use: Use) -> int:
    weight = use.node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    shape = weight.const_value.shape.numpy()
    return int(shape[0] if use.flipped else np.prod(shape[1:]))
