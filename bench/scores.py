"""Scores of the zoo's models on what calibration has not seen, for any function that runs the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from bench.zoo import Run, get
from bench.zoo.base import Feed, in_order
from bench.zoo.metrics import Accuracy
from bench.zoo.models import story_windows
from sparsec.codegen.machine import cpu_count

SAMPLES = 256
"""The most inputs that anyone calibrates on; no labels."""

Item = TypeVar("Item")


@cache
def inputs(name: str) -> list[Feed]:
    """The real inputs of a model in order."""
    model = get(name)
    assert model.real is not None
    return list(model.real())


def has_turns(name: str) -> bool:
    """Whether a model can be calibrated on other inputs, too: its examples are its inputs, each with one label."""
    return isinstance(get(name).metric, Accuracy)


def turned(items: Sequence[Item], turn: int) -> list[Item]:
    """All of them in a circle: in each turn the last `SAMPLES` are those before the last ones of the turn before."""
    start = -turn * SAMPLES % len(items)
    return [*items[start:], *items[:start]]


def calibration(name: str, turn: int = 0) -> list[Feed]:
    """The last inputs of a model, turned: no labels, and no example that is scored in the same turn."""
    return story_windows(SAMPLES) if name == "stories_prefill" else turned(inputs(name), turn)[-SAMPLES:]


def examples(name: str) -> int:
    """How many examples are scored: those that calibration has not seen."""
    return 60 if name == "stories_prefill" else len(inputs(name)) - SAMPLES


def score(name: str, what: str, runner: Run, turn: int = 0) -> float:
    """A score of `runner` for model `name`: "cosine" to the dense model's first output, or else its metric.

    turn: which inputs calibration had; others than 0 for models with turns and their metric only.
    """
    if what == "cosine":
        assert turn == 0
        return _cosine(name, runner)
    metric = get(name).metric
    assert metric is not None
    if turn:
        assert isinstance(metric, Accuracy)
        metric = Accuracy(partial(turned, list(metric.examples()), turn), metric.reference)
    return float(metric(runner, examples(name)))


@cache
def dense_score(name: str, what: str, turn: int = 0) -> float:
    """The uncompressed model's."""
    return score(name, what, get(name).reference_run(cpu_count()), turn)


def _cosine(name: str, runner: Run) -> float:
    """Mean cosine of the first output to the dense model's."""
    reference = _reference_outputs(name)
    values = []
    for feed, wanted in zip(islice(inputs(name), len(reference)), reference, strict=True):
        found = in_order(runner(feed))[0].ravel()
        values.append(found @ wanted / (np.linalg.norm(found) * np.linalg.norm(wanted)))
    return float(np.mean(values))


@cache
def _reference_outputs(name: str) -> list[Any]:
    runner: Callable[[Mapping[str, Any]], Any] = get(name).reference_run(cpu_count())
    return [in_order(runner(feed))[0].ravel() for feed in islice(inputs(name), examples(name))]
