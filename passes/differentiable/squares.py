"""Squared gradients of a loss by weights, averaged over samples: what each weight does to the outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from sparsec.errors import CalibrationError
from sparsec.passes.differentiable.network import Network
from sparsec.passes.differentiable.settings import deterministic
from sparsec.progress import Progress

__all__ = ["gradient_squares"]

Array = NDArray[Any]
Tensor = torch.Tensor


def gradient_squares(
    model: ir.Model,
    names: Sequence[str],
    samples: Sequence[Mapping[str, Array]],
    labels: Array | None = None,
    *,
    seed: int = 0,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Means over samples of squared gradients by the initializers `names`, each with its tensor's shape.

    labels: [samples, decisions], classes over the last axis of the first output: the loss is their cross-entropy. None: a random
    direction of all outputs, another for each sample; the mean of squares is then what the outputs change by. threads: so many
    samples at once; any number gives the same bytes.
    Raises UnsupportedOpError before any work, CalibrationError for labels that do not fit.
    """
    network = Network(model)
    sums = {name: torch.zeros(network.constants[name].shape, dtype=torch.float64) for name in names}

    def gradients(index: int) -> tuple[Tensor | None, ...]:
        values = {name: network.constants[name].clone().requires_grad_(True) for name in names}
        feed = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in samples[index].items()}
        outputs = network(feed, values, network.outputs)
        if labels is None:
            rng = np.random.default_rng([seed, index])
            loss = _direction([outputs[name] for name in network.outputs], rng)
        else:
            loss = _entropy(network.outputs[0], outputs[network.outputs[0]], labels[index])
        return torch.autograd.grad(loss, list(values.values()), allow_unused=True)

    with deterministic(threads) as pool:
        for start in range(0, len(samples), threads):  # no more in memory than are worked on
            if progress is not None:
                progress("gradients", start, len(samples), "")
            for found in pool.map(gradients, range(start, min(start + threads, len(samples)))):
                for name, gradient in zip(names, found, strict=True):
                    if gradient is not None:
                        sums[name] += gradient.double().square()
    return {name: total.numpy() / len(samples) for name, total in sums.items()}


def _direction(outputs: Sequence[Tensor], rng: np.random.Generator) -> Tensor:
    total = torch.zeros(())
    for output in outputs:
        if output.is_floating_point():
            along = rng.standard_normal(tuple(output.shape)).astype(np.float32)
            total = total + (output * torch.from_numpy(along)).sum()
    return total


def _entropy(name: str, output: Tensor, labels: Array) -> Tensor:
    scores = output.reshape(-1, output.shape[-1])
    if (
        labels.dtype.kind not in "iu"
        or len(labels) != len(scores)
        or labels.min() < 0
        or labels.max() >= scores.shape[1]
    ):
        raise CalibrationError(
            f"gblm: labels {labels.dtype}{list(labels.shape)} of a sample; output '{name}' takes {len(scores)} whole numbers "
            f"below {scores.shape[1]}"
        )
    return F.cross_entropy(scores, torch.from_numpy(labels.astype(np.int64)))
