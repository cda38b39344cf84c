"""Spending a budget: try every scheme on every layer, choose, compress as the recipe of the choice says, and see that it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from sparsec.budget import Budget, checked_candidates
from sparsec.costs import Costs
from sparsec.errors import BudgetError
from sparsec.executors import open_workers
from sparsec.formats import Scheme
from sparsec.front import Front, Point
from sparsec.ledger import BYTES, ERROR, SECONDS, Ledger
from sparsec.passes import Calibration, Compressed
from sparsec.passes.budget.choose import pareto
from sparsec.passes.budget.knee import knee
from sparsec.passes.trials import trials
from sparsec.progress import Progress
from sparsec.recipe import Recipe
from sparsec.samples import random_inputs
from sparsec.search import Found, Search
from sparsec.sensitivity import sensitivities
from sparsec.task import Task

__all__ = ["spend"]

MIN_ELEMENTS = 128
"""Smaller weights stay dense, if the recipe has no rules."""
_RANDOM = 8
"""Random inputs where there are no others."""
_POINTS = 20
"""Of a front."""
_NONE_OF = 3.0
"""Rule of three: what happened to none of N examples happens to at most 3 / N of all, with 95 % confidence."""
_FINE = 0.01
"""Relative errors below do not make a knee."""


def spend(
    source: ir.Model,
    budget: Budget,
    recipe: Recipe,
    candidates: str | Iterable[str] | None,
    costs: Costs,
    *,
    calibration: Calibration | None,
    task: Task | None = None,
    jobs: int | None = None,
    debug_dump: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[Compressed, Front]:
    """Compress `source` within `budget`.

    Args:
        recipe: its rules hold for the weights they reach, the budget for all others; without rules small weights are free too.
        candidates: schemes, besides fp32; None: the default.
        costs: what size and time are.
        calibration: inputs to calibrate on; None: data-free, errors on random inputs.
        task: what a limit for the task is measured by (`sparsec.task.with_task`).

    Raises BudgetError if no choice of schemes meets the budget, and what `sparsec.passes.compress` raises.
    """
    if recipe.structure is not None:
        raise BudgetError(
            "the recipe removes channels or heads (structure), which a budget cannot try schemes on; remove them first "
            "(compress with the recipe's structure alone and save), then give the budget with the smaller model"
        )
    if recipe.recover is not None:
        raise BudgetError(
            "the recipe trains on (recover), which a budget would do at every attempt; spend the budget without it, then compress with "
            "the recipe that was chosen and recover"
        )
    schemes = checked_candidates(candidates, budget)
    threads = 1 if calibration is None else calibration.threads
    if task is not None:
        task.validated(source, source, threads)  # labels that do not fit are told before anything is tried
    small = {"min_elements": min(recipe.min_elements, MIN_ELEMENTS)}
    base = recipe if recipe.rules else recipe.model_copy(update=small)
    samples = [random_inputs(source, seed) for seed in range(_RANDOM)] if calibration is None else calibration.samples
    with open_workers(None if calibration is None else calibration.executor, jobs) as workers:
        tried = trials(
            source, base, schemes, samples, workers.executor, calibrated=calibration is not None, threads=threads,
            progress=progress,
        )  # fmt: skip
    if not tried:
        raise BudgetError(
            "there is no weight to spend the budget on: rules of the recipe or its min_elements leave none free"
        )
    ledger = Ledger(source, base, tried, costs, progress)
    found = Search(ledger, budget, samples, calibration, task, debug_dump, progress).run()
    for record in found.compressed.layers:
        if ledger.schemes(found.choice).get(record.name) == "fp32":
            record.reason = "the budget leaves it at fp32"
    against = SECONDS if budget.seconds is not None and budget.nbytes is None else BYTES
    front = Front(
        str(budget),
        [_point(ledger, other) for other in pareto(ledger.table, against, ERROR, _POINTS)],
        _point(ledger, found.choice),
        int(found.cost[BYTES]),
        float(found.cost[SECONDS]) if ledger.timed else None,
        found.error**0.5,
        "random inputs" if calibration is None else f"{len(samples)} calibration samples",
        task=found.validation,
        examples="" if task is None else task.words,
        sensitivity=sensitivities(ledger, found.choice),
    )  # fmt: skip
    front.notes = [*_beyond_the_knee(front), *_too_sparse(ledger, found.choice), *_uncertain(budget, task, found)]
    return found.compressed, front


def _point(ledger: Ledger, choice: Sequence[int]) -> Point:
    sums = ledger.predicted(choice)
    return Point(
        float(sums[BYTES]),
        float(sums[SECONDS]) if ledger.timed else None,
        float(sums[ERROR] ** 0.5),
        ledger.bits(choice),
        Counter(ledger.schemes(choice).values()),
    )


def _beyond_the_knee(front: Front) -> list[str]:
    """A word of warning where a little more would gain much."""
    points = sorted(front.points, key=lambda point: point.nbytes)
    at = knee([p.nbytes for p in points], [max(p.error, _FINE) for p in points])
    if at is None or front.chosen.nbytes >= points[at].nbytes or front.chosen.error < 2 * points[at].error:
        return []
    return [
        f"the budget lies below the knee of the front: with {points[at].nbytes / 1e6:.4f} MB the error is predicted to fall from "
        f"{100 * front.chosen.error:.3g} % to {100 * points[at].error:.3g} %"
    ]


def _too_sparse(ledger: Ledger, choice: Sequence[int]) -> list[str]:
    """Weights that keep fewer values than their PQ-index says they need."""
    notes = []
    for entry, (name, text) in zip(ledger.found, ledger.schemes(choice).items(), strict=True):
        if Scheme.parse(text).is_dense:
            continue
        kept = 1 - entry.solved[ledger.options[ledger.found.index(entry)].index(text) - 1].zeros
        if kept < entry.least_kept:
            notes.append(
                f"{name}: {text} keeps {100 * kept:.0f} % of its values; its PQ-index says that pruning should leave "
                f"{100 * entry.least_kept:.0f} %"
            )
    return notes


def _uncertain(budget: Budget, task: Task | None, found: Found) -> list[str]:
    """What the labelled examples do not tell."""
    if task is None or found.validation is None or found.validation.score is None:
        return []
    score = found.validation.score
    notes = []
    if task.seen:
        notes.append(f"{task.words} decided on the task too: there are too few to keep some for that")
    limit = budget.loss(score.dense)
    ends = () if score.interval is None else score.interval
    reach = max([task.loss(replace(score, compressed=score.dense + end)) for end in ends], default=0.0)
    if task.metric is None:
        reach = max(reach, _NONE_OF / score.examples)
    if reach > limit:
        notes.append(
            f"{score.name} keeps the limit on {task.words}, which are too few to be sure: with 95 % confidence it loses at most {reach:.4f}"
        )
    return notes
