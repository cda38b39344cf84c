"""Scores of the zoo's models on what calibration has not seen, for any function that runs the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from itertools import islice
from typing import Any

import numpy as np

from bench.zoo import Run, get
from bench.zoo.base import Feed, in_order
from bench.zoo.models import story_windows
from sparsec.codegen.machine import cpu_count

SAMPLES = 256
"""The most inputs that anyone calibrates on; no labels."""


@cache
def inputs(name: str) -> list[Feed]:
    """The real inputs of a model in order."""
    model = get(name)
    assert model.real is not None
    return list(model.real())


def calibration(name: str) -> list[Feed]:
    """The last inputs of a model: no labels, and no example that is scored."""
    return story_windows(SAMPLES) if name == "stories_prefill" else inputs(name)[-SAMPLES:]


def examples(name: str) -> int:
    """How many examples are scored: those that calibration has not seen."""
    return 60 if name == "stories_prefill" else len(inputs(name)) - SAMPLES


def score(name: str, what: str, runner: Run) -> float:
    """A score of `runner` for model `name`: "cosine" to the dense model's first output, or else its metric."""
    if what == "cosine":
        return _cosine(name, runner)
    model = get(name)
    assert model.metric is not None
    return float(model.metric(runner, examples(name)))


@cache
def dense_score(name: str, what: str) -> float:
    """The uncompressed model's."""
    return score(name, what, get(name).reference_run(cpu_count()))


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
