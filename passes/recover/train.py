"""The training itself: Adam on relative parameters, the learning rate a cosine, the best epoch on held-out samples kept.

Parts of a batch, and weights, are worked on side by side; parts are of one size and added in their order, so that the bits do not
depend on how many there are at once.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import torch

from sparsec.errors import CalibrationError
from sparsec.passes.differentiable.network import Network, as_weight
from sparsec.passes.recover.batches import Batch, Batches
from sparsec.passes.recover.losses import Loss, without_padding
from sparsec.passes.recover.weights import LearntWeight
from sparsec.progress import Progress
from sparsec.recovery import Recover

__all__ = ["LearntConstant", "Student", "Training", "train", "variances"]

Tensor = torch.Tensor
_WARM = 0.05  # share of the steps in which the learning rate rises
_PART, _MOST = 8, 8
"""Samples that go through the networks on one thread, unless a batch then has more parts than `_MOST`: each has gradients of its own."""


@dataclass(frozen=True)
class LearntConstant:
    """A constant that learns: its first value and the size of a step of 1; `change` is the parameter."""

    start: Tensor
    unit: float
    change: Tensor

    def value(self) -> Tensor:
        """Its present value."""
        return self.start + self.unit * self.change


@dataclass(frozen=True)
class Student:
    """The compressed network, with what learns in it by the names of values: weights (results of Decode nodes) and constants."""

    network: Network
    weights: dict[str, LearntWeight]
    constants: dict[str, LearntConstant]

    def values(self, pool: Executor) -> dict[str, Tensor]:
        """What the network runs with at present."""
        found = {name: constant.value() for name, constant in self.constants.items()}
        weights = pool.map(lambda weight: weight.value(), self.weights.values())
        for name, value in zip(self.weights, weights, strict=True):
            found[name] = as_weight(value, self.network.weights[name])
        return found

    def parameters(self) -> list[Tensor]:
        """All that learns."""
        weights = [p for weight in self.weights.values() for p in weight.parameters]
        return [*weights, *(constant.change for constant in self.constants.values())]


@dataclass(frozen=True)
class Training:
    """What it came to: the loss on held-out samples before and after each epoch, and the epoch that was kept (0: the start)."""

    losses: list[float]
    best: int


def train(
    student: Student,
    teacher: Network,
    loss: Loss,
    batches: Batches,
    held_out: Batches,
    settings: Recover,
    pool: Executor,
    progress: Progress | None = None,
) -> Training:
    """Train in place on the threads of `pool`; the student is left as it was in the epoch with the lowest loss on `held_out`.

    Raises CalibrationError where the loss is no number any more.
    """
    parameters = student.parameters()
    total = settings.epochs * batches.count
    optimiser = torch.optim.Adam(parameters, lr=settings.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, total))
    losses = [_mean(student, teacher, loss, held_out, pool)]
    best, kept = 0, [parameter.detach().clone() for parameter in parameters]
    began = time.monotonic()
    for epoch in range(1, settings.epochs + 1):
        rng = np.random.default_rng([settings.seed, epoch])
        for batch in batches.shuffled(rng, settings.augment):
            optimiser.zero_grad()
            _add_gradients(student, teacher, loss, batch, pool)
            optimiser.step()
            schedule.step()
        losses.append(_mean(student, teacher, loss, held_out, pool))
        if not math.isfinite(losses[-1]):
            raise CalibrationError(
                f"recover: the loss is {losses[-1]} after epoch {epoch}; it was {losses[0]:.3g} at first. Lower recover.lr "
                f"({settings.lr})"
            )
        if losses[-1] < losses[best]:
            best, kept = epoch, [parameter.detach().clone() for parameter in parameters]
        if progress is not None:
            left = (time.monotonic() - began) / epoch * (settings.epochs - epoch)
            progress("recover", epoch, settings.epochs, f"loss {losses[-1]:.4g} ({losses[0]:.4g}), {left:.0f} s left")
    with torch.no_grad():
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
    return Training(losses, best)


def _rate(step: int, total: int) -> float:
    warm = max(1, round(_WARM * total))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(total - warm, 1)))


def _add_gradients(student: Student, teacher: Network, loss: Loss, batch: Batch, pool: Executor) -> None:
    """Of the loss by all parameters."""
    values = student.values(pool)

    def by_values(part: Batch) -> tuple[Tensor | None, ...]:
        leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
        found = _loss(student, teacher, loss, part, leaves) * (part.size / batch.size)
        return torch.autograd.grad(found, list(leaves.values()), allow_unused=True)

    def back(value: Tensor, gradients: Sequence[Tensor | None]) -> None:
        used = [gradient for gradient in gradients if gradient is not None]
        if used:
            value.backward(functools.reduce(torch.add, used))  # type: ignore[no-untyped-call]

    list(pool.map(back, values.values(), zip(*pool.map(by_values, _parts(batch, loss)), strict=True)))


def _parts(batch: Batch, loss: Loss) -> list[Batch]:
    return [batch] if loss.whole else batch.parts(max(_PART, -(-batch.size // _MOST)))


def _loss(student: Student, teacher: Network, loss: Loss, batch: Batch, values: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        wanted = teacher.batch(batch.feeds, {}, loss.teacher) if loss.teacher else {}
    found = student.network.batch(batch.feeds, values, loss.reads)
    return loss.of(found, wanted, batch)


def _mean(student: Student, teacher: Network, loss: Loss, batches: Batches, pool: Executor) -> float:
    values = {name: value.detach() for name, value in student.values(pool).items()}

    def of(part: Batch) -> float:
        with torch.no_grad():  # which every thread has for itself
            return float(_loss(student, teacher, loss, part, values)) * part.size

    total = sum(sum(pool.map(of, _parts(batch, loss))) for batch in batches.plain())
    return total / len(batches.members)


def variances(teacher: Network, batch: Batch, names: Sequence[str]) -> dict[str, float]:
    """Of values in the teacher over a batch, padding left out; 1 where they are constant."""
    with torch.no_grad():
        found = teacher.batch(batch.feeds, {}, list(dict.fromkeys(names)))
    spread = {
        name: float(without_padding(value, batch.mask).double().var(correction=0)) for name, value in found.items()
    }
    return {name: variance if variance > 0 else 1.0 for name, variance in spread.items()}
