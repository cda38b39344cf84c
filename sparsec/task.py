"""What a budget on the task is decided by: labelled examples, and how they are scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.budget import Budget
from sparsec.calibration import LABELS, calibration_samples, split_labels
from sparsec.errors import BudgetError, InputError
from sparsec.labelled import Score
from sparsec.recipe import Recipe
from sparsec.validation import validate
from sparsec.validation_report import Validation

__all__ = ["Task", "with_task"]

Array = np.ndarray[Any, Any]

_LEAST = 32
"""Where halves of the calibration samples are smaller, all of them calibrate and decide."""


@dataclass(frozen=True)
class Task:
    """Examples and their score, as `sparsec.validation.validate` takes them; words: what to call the examples; seen: calibration saw
    them too."""

    samples: Sequence[Mapping[str, Array]]
    labels: Any
    metric: Callable[[dict[str, Array], Any], Any] | None
    aggregate: Callable[[Array], float] | None
    words: str
    seen: bool = False

    def validated(self, source: ir.Model, made: bytes | ir.Model, threads: int) -> Validation:
        """A compressed model against the original. Raises InputError: labels do not fit."""
        return validate(
            source, made, self.samples, self.labels, metric=self.metric, aggregate=self.aggregate, threads=threads
        )

    def loss(self, score: Score) -> float:
        """How much worse a score has become. Labels: by how much it fell; whether more of a metric is better is not known, so that it
        should not move."""
        return -score.difference if self.metric is None else abs(score.difference)


def with_task(
    budget: Budget | None,
    recipe: Recipe,
    model: ir.Model,
    calibration: Any,
    labels: Any,
    validation: Any,
    metric: Callable[[dict[str, Array], Any], Any] | None,
    aggregate: Callable[[Array], float] | None,
) -> tuple[Task | None, Any, Any, Recipe]:
    """(the task that the budget limits, what is left of calibration, its labels, the recipe that says how many samples that is).

    Without `validation` the samples beyond `calibrate.samples` decide, at least half of them all: the recipe then asks for fewer, so that
    it gives the same bytes without the search. Raises BudgetError: there is nothing to measure the task by, or nothing to measure it for;
    InputError and CalibrationError: examples or labels do not fit the model.
    """
    if budget is None or not budget.on_task:
        given = {"validation": validation, "metric": metric, "aggregate": aggregate}
        if lone := [name for name, value in given.items() if value is not None]:
            raise BudgetError(
                f"{', '.join(lone)}: that is for a budget on the task, such as '1 point' or '1% task'; "
                + (f"the budget is {budget}" if budget else "there is no budget")
            )
        return None, calibration, labels, recipe
    own = validation is not None
    samples, labels, where = _labelled(
        validation if own else calibration, labels, model, "validation" if own else "calibration"
    )
    if samples is None or (labels is None and metric is None):
        lacks = "no examples" if samples is None else f"no labels for the {where} samples"
        raise BudgetError(
            f"budget '{budget}' limits what the task loses, and there are {lacks} to measure that: give labels of classes "
            f"(labels=, or an array '{LABELS}' in calibration or validation; --labels set.npz), or metric= in Python"
        )
    feeds = calibration_samples(samples, model, what=where)
    if own:
        return Task(feeds, labels, metric, aggregate, f"{len(feeds)} validation samples"), calibration, None, recipe
    fitted = min(recipe.calibrate.samples, len(feeds) // 2)
    if fitted < _LEAST:
        words = f"the {len(feeds)} calibration samples"
        return Task(feeds, labels, metric, aggregate, words, seen=True), feeds, _classes(labels, metric), recipe
    recipe = recipe.model_copy(update={"calibrate": recipe.calibrate.model_copy(update={"samples": fitted})})
    first, others = (None, None) if labels is None else _cut(labels, fitted, len(feeds), where)
    words = f"{len(feeds) - fitted} samples that calibration has not seen"
    return Task(feeds[fitted:], others, metric, aggregate, words), feeds[:fitted], _classes(first, metric), recipe


def _labelled(source: Any, labels: Any, model: ir.Model, where: str) -> tuple[Any, Any, str]:
    """As `split_labels`; without `labels` the array of that name, if there is one."""
    if source is None:
        return None, None, where
    if isinstance(source, str | PathLike):
        source, _, where = split_labels(source, None, where)
    inputs = {value.name for value in model.graph.inputs}
    if labels is None and isinstance(source, Mapping) and LABELS in source and LABELS not in inputs:
        labels = LABELS
    samples, labels, _ = split_labels(source, labels, where)
    return samples, labels, where


def _classes(labels: Any, metric: Any) -> Any:
    """Labels as calibration knows them: what a metric takes is its own."""
    return labels if metric is None else None


def _cut(labels: Any, fitted: int, total: int, where: str) -> tuple[Array, Array]:
    """Labels of the first `fitted` of `total` samples, and of the others."""
    found = np.asarray(labels)
    if found.ndim == 0 or not len(found) or len(found) % total:
        raise InputError(f"{where}: {found.size} labels for {total} samples; every sample needs as many")
    each = len(found) // total
    return found[: fitted * each], found[fitted * each :]
