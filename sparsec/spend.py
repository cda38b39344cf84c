"""Spending a budget: try every scheme on every layer, choose, compress as the recipe of the choice says, and see that it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.budget import Budget, checked_candidates
from sparsec.costs import Costs
from sparsec.errors import BudgetError
from sparsec.executors import open_workers
from sparsec.formats import Scheme
from sparsec.front import Front, Point
from sparsec.ledger import BYTES, ERROR, SECONDS, Ledger
from sparsec.passes import Calibration, Compressed
from sparsec.passes import compress as compress_graph
from sparsec.passes.budget.choose import pareto
from sparsec.passes.budget.knee import knee
from sparsec.passes.calibrate.candidates import relative_error
from sparsec.passes.trials import trials
from sparsec.recipe import Recipe
from sparsec.reference import Reference, onnx_bytes
from sparsec.samples import random_inputs

__all__ = ["spend"]

Array = np.ndarray[Any, Any]

MIN_ELEMENTS = 128
"""Smaller weights stay dense, if the recipe has no rules."""
_RANDOM = 8
"""Random inputs where there are no others."""
_ATTEMPTS = 6
_POINTS = 20
"""Of a front."""
_FINE = 0.01
"""Relative errors below do not make a knee."""
_NEAR = 0.85
"""An error that uses so much of what is allowed is near enough."""


def spend(
    source: ir.Model,
    budget: Budget,
    recipe: Recipe,
    candidates: str | Iterable[str] | None,
    costs: Costs,
    *,
    calibration: Calibration | None,
    jobs: int | None = None,
    debug_dump: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[Compressed, Front]:
    """Compress `source` within `budget`.

    Args:
        recipe: its rules hold for the weights they reach, the budget for all others; without rules small weights are free too.
        candidates: schemes, besides fp32; None: the default.
        costs: what size and time are.
        calibration: inputs to calibrate on; None: data-free, errors on random inputs.

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
    small = {"min_elements": min(recipe.min_elements, MIN_ELEMENTS)}
    base = recipe if recipe.rules else recipe.model_copy(update=small)
    samples = [random_inputs(source, seed) for seed in range(_RANDOM)] if calibration is None else calibration.samples
    threads = 1 if calibration is None else calibration.threads
    with open_workers(None if calibration is None else calibration.executor, jobs) as workers:
        found = trials(
            source, base, schemes, samples, workers.executor, calibrated=calibration is not None, threads=threads,
            progress=progress,
        )  # fmt: skip
    if not found:
        raise BudgetError(
            "there is no weight to spend the budget on: rules of the recipe or its min_elements leave none free"
        )
    ledger = Ledger(source, base, found, costs, progress)
    run = _Run(ledger, budget, samples, calibration, debug_dump, progress)
    choice, compressed, reached, error = run.search()
    for record in compressed.layers:
        if ledger.schemes(choice).get(record.name) == "fp32":
            record.reason = "the budget leaves it at fp32"
    against = SECONDS if budget.seconds is not None and budget.nbytes is None else BYTES
    front = Front(
        str(budget),
        [_point(ledger, other) for other in pareto(ledger.table, against, ERROR, _POINTS)],
        _point(ledger, choice),
        int(reached[BYTES]),
        float(reached[SECONDS]) if ledger.timed else None,
        error,
        "random inputs" if calibration is None else f"{len(samples)} calibration samples",
    )  # fmt: skip
    front.notes = [*_beyond_the_knee(front), *_too_sparse(ledger, choice)]
    return compressed, front


class _Run:
    """One search for the choice whose compressed model keeps the budget."""

    def __init__(
        self,
        ledger: Ledger,
        budget: Budget,
        samples: Sequence[Mapping[str, Array]],
        calibration: Calibration | None,
        debug_dump: str | Path | None,
        progress: Callable[[str], None] | None,
    ) -> None:
        self.ledger, self.budget, self.samples, self.calibration = ledger, budget, samples, calibration
        self.debug_dump, self.progress = debug_dump, progress
        limits = {BYTES: budget.nbytes, SECONDS: budget.seconds}
        self.limits = {column: float(limit) for column, limit in limits.items() if limit is not None}
        self.objective = BYTES if budget.error is not None and budget.nbytes is None else ERROR
        dense = Reference(ledger.source, threads=calibration.threads if calibration else 1)
        self.wanted = [dense.run(sample) for sample in samples]
        self.threads = calibration.threads if calibration else 1

    def search(self) -> tuple[list[int], Compressed, np.ndarray[Any, np.dtype[np.float64]], float]:
        """(choice, its compressed model, what that costs, root of its relative squared error)."""
        best = None
        allowed = None if self.budget.error is None else self.budget.error**2
        bound, low, high = allowed, 0.0, np.inf
        margin = dict.fromkeys(self.limits, 0.0)
        for _ in range(_ATTEMPTS):
            limits = self.limits if bound is None else {**self.limits, ERROR: bound}
            try:
                choice = self.ledger.fitted(self.objective, limits, margin)
            except BudgetError:
                if best is not None or (high == np.inf and low == 0.0 and bound == allowed):
                    if best is None:
                        raise
                    break
                bound = None
                break
            compressed, cost, error = self._made(choice)
            over = {column: float(cost[column] - limit) for column, limit in self.limits.items()}
            if any(excess > 0 for excess in over.values()):
                # Masks of the final run may keep other numbers of values, biases may have come.
                margin = {column: margin[column] + max(0.0, 1.05 * excess) for column, excess in over.items()}
                continue
            if allowed is None or bound is None:
                return choice, compressed, cost, error**0.5
            predicted = float(self.ledger.predicted(choice)[ERROR])
            if error <= allowed:
                low = max(low, predicted)
                if best is None or cost[BYTES] <= best[2][BYTES]:
                    best = (choice, compressed, cost, error**0.5)
                if error >= _NEAR**2 * allowed or self.objective == ERROR:
                    break
            else:
                high = min(high, predicted)
            aimed = 0.95 * predicted * allowed / error if error else 4 * allowed
            bound = aimed if low < aimed < high else (low * high) ** 0.5 if low else high / 4
            if low and high / low < 1.02:
                break
        if best is not None:
            return best
        raise BudgetError(
            f"the budget ({self.budget}) cannot be met: after {_ATTEMPTS} attempts no choice of the candidates keeps all limits "
            "in the compressed model; allow a little more, or give other candidates"
        )

    def _made(self, choice: Sequence[int]) -> tuple[Compressed, np.ndarray[Any, np.dtype[np.float64]], float]:
        compressed = compress_graph(
            self.ledger.source, self.ledger.recipe_of(choice), calibration=self.calibration, debug_dump=self.debug_dump,
            progress=self.progress,
        )  # fmt: skip
        cost = self.ledger.measured(compressed)
        runner = Reference(onnx_bytes(compressed.model), threads=self.threads)
        return compressed, cost, relative_error([runner.run(sample) for sample in self.samples], self.wanted)


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
