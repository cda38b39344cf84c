"""What recovery makes small: differences to the teacher, or to labels. Every loss is a mean over samples side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from sparsec.errors import CalibrationError
from sparsec.passes.recover.batches import Batch

__all__ = ["Loss", "classes", "custom", "divergence", "squared", "without_padding"]

Tensor = torch.Tensor
Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Loss:
    """`of(student, teacher, batch)` of the values `reads` (names in the student) and `teacher` (in the teacher, in the same order;
    none: it does not run); all have samples along their first axis. whole: only of a whole batch, not the mean over its parts."""

    reads: Sequence[str]
    teacher: Sequence[str]
    of: Callable[[Values, Values, Batch], Tensor]
    whole: bool = False


def without_padding(value: Tensor, mask: Tensor | None) -> Tensor:
    """The rows [.., features] of a value [samples, ..] that are no padding; all of it where the mask does not have one position for
    each row of a sample."""
    if mask is None or value.dim() < 2 or value[0].numel() != mask.shape[1] * value.shape[-1]:
        return value
    return value.reshape(*mask.shape, -1)[mask]


def squared(groups: Sequence[Sequence[tuple[str, str]]], powers: Mapping[str, float]) -> Loss:
    """The sum over groups of values of the mean squared difference to the teacher's, each over `powers` (by the teacher's name: the
    variance there). Padding does not count."""

    def of(student: Values, teacher: Values, batch: Batch) -> Tensor:
        def difference(a: str, b: str) -> Tensor:
            return without_padding((student[a] - teacher[b]).square(), batch.mask).mean() / powers[b]

        return torch.stack([torch.stack([difference(a, b) for a, b in pairs]).mean() for pairs in groups]).sum()

    pairs = [pair for group in groups for pair in group]
    return Loss([a for a, _ in pairs], [b for _, b in pairs], of)


def divergence(output: str, teacher: str) -> Loss:
    """KL divergence, in nats a decision, of softmax over the last axis (Hinton, Vinyals, Dean, "Distilling the knowledge in a neural
    network", 2015)."""

    def of(student: Values, wanted: Values, batch: Batch) -> Tensor:
        del batch
        ours, theirs = (torch.log_softmax(v[n].flatten(0, -2), -1) for v, n in ((student, output), (wanted, teacher)))
        return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)

    return Loss([output], [teacher], of)


def classes(output: str, shape: Sequence[int], labels: NDArray[Any]) -> Loss:
    """Cross-entropy of classes, whole numbers [samples, decisions], against scores over the last axis of `output`, [.., classes] a
    sample.

    Raises CalibrationError unless there is a label for every decision of every sample, each one of the classes.
    """
    decisions, count = math.prod(shape[:-1]), shape[-1] if shape else 0
    if labels.dtype.kind not in "iu" or labels.shape[1] != decisions or count < 2:
        raise CalibrationError(
            f"recover: {labels.shape[1]} labels a sample ({labels.dtype}); output '{output}' {list(shape)} takes {decisions} "
            "whole numbers, of at least 2 classes"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= count:
        raise CalibrationError(
            f"recover: labels go from {int(labels.min())} to {int(labels.max())}; output '{output}' {list(shape)} has the classes 0 to "
            f"{count - 1}"
        )

    def of(student: Values, teacher: Values, batch: Batch) -> Tensor:
        del teacher
        assert batch.labels is not None
        return F.cross_entropy(student[output].reshape(-1, count), batch.labels.reshape(-1).long())

    return Loss([output], [], of)


def custom(
    function: Callable[[Values, Values, Tensor | None], Tensor], outputs: Sequence[str], teacher: Sequence[str]
) -> Loss:
    """The user's function of outputs, the teacher's outputs (both by the names of the student's) and labels or None."""

    def of(student: Values, wanted: Values, batch: Batch) -> Tensor:
        named = {name: wanted[other] for name, other in zip(outputs, teacher, strict=True)}
        return function({name: student[name] for name in outputs}, named, batch.labels)

    return Loss(outputs, teacher, of, whole=True)
