"""Weights that several nodes read (tied embeddings, layers that repeat): one weight that serves all its readers.

Each product that reads W would have its error as tr((W' - W) H (W' - W)^T) with the second moment H of its own inputs; the sum
over the readers, each divided by the power of its outputs tr(W H W^T), has the same form, so one second moment stands for all of
them. A lookup of rows is a reader whose inputs are unit vectors. The inputs are the uncompressed model's: when the first reader
runs, the later ones have not been reached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsec.passes.calibrate.gather import statistics_of
from sparsec.passes.calibrate.segments import segments
from sparsec.passes.calibrate.stream import Stream
from sparsec.passes.statistics import Statistics
from sparsec.passes.weights import Use, Weight

__all__ = ["joint_moment", "shared_statistics", "why_not_shared"]

Array = np.ndarray[Any, Any]


def why_not_shared(weight: Weight) -> str:
    """Why a weight with several readers cannot be calibrated, or ''."""
    if any(use.node.op_type == "Conv" and use.node.attributes.get_int("group", 1) > 1 for use in weight.uses):
        return f"read by {len(weight.uses)} nodes, a grouped convolution among them"
    return ""


def shared_statistics(
    model: ir.Model,
    weights: Sequence[Weight],
    samples: Sequence[Mapping[str, Array]],
    masks: Sequence[Array | None],
    threads: int,
) -> list[Statistics]:
    """One `Statistics` (not centred) for each weight, from one pass of the samples through the uncompressed model."""
    numbers = {node: number for number, node in enumerate(model.graph)}
    readers = [(numbers[use.node], i, use) for i, w in enumerate(weights) for use in w.uses if use.operator != "Gather"]
    readers.sort(key=lambda reader: reader[:2])
    plan = segments(model.graph, [number for number, _, _ in readers], [[_input(use)] for _, _, use in readers])
    moments: list[list[NDArray[np.float32]]] = [
        [np.eye(w.cols, dtype=np.float32) for use in w.uses if use.operator == "Gather"] for w in weights
    ]
    seen = [0] * len(weights)
    stream = Stream(model.clone(), samples, threads)
    try:
        for (_, index, use), segment in zip(readers, plan, strict=True):
            stream.advance(segment)
            found = statistics_of(use, weights[index].cols, stream, None, masks, centred=False)[0]
            moments[index].append(found.second_moment)
            seen[index] += found.samples
    finally:
        stream.close()
    return [
        _without_mean(joint_moment(w.matrix(), parts), count)
        for w, parts, count in zip(weights, moments, seen, strict=True)
    ]


def joint_moment(weight: NDArray[np.float32], moments: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """float32 [K, K] of W[N, K] and the second moments of its readers: the sum of H / tr(W H W^T), scaled to the largest
    reader's power. Readers that see only zeros do not count."""
    powers = [float(np.sum((weight @ h).astype(np.float64) * weight)) for h in moments]
    most = max(powers)
    total = np.zeros(moments[0].shape)
    for h, power in zip(moments, powers, strict=True):
        if power > 0:
            total += h * (most / power)
    return total.astype(np.float32)


def _without_mean(second_moment: NDArray[np.float32], samples: int) -> Statistics:
    mean = np.zeros(len(second_moment), np.float32)
    return Statistics(samples, second_moment, mean, mean, None, False)


def _input(use: Use) -> str:
    x = use.node.inputs[0]
    assert x is not None
    return x.name or ""
