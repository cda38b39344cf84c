"""The search for schemes whose compressed model keeps a budget: the ledger proposes, the result is measured, the bound moves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsec.budget import Budget
from sparsec.errors import BudgetError
from sparsec.ledger import BYTES, ERROR, SECONDS, Ledger
from sparsec.passes import Calibration, Compressed
from sparsec.passes import compress as compress_graph
from sparsec.passes.calibrate.candidates import relative_error
from sparsec.progress import Progress
from sparsec.reference import Reference, onnx_bytes
from sparsec.task import Task
from sparsec.validation_report import Validation

__all__ = ["Found", "Search"]

Array = np.ndarray[Any, Any]

_ATTEMPTS = 6
_TASK_ATTEMPTS = 8
"""Scores of examples are rougher than errors."""
_START = 0.05**2
"""The squared error that the search for a task begins with."""
_NEAR = 0.85
"""An error that uses so much of what is allowed is near enough."""
_STEP = 1.02
"""Bounds that are no further apart are the same."""
_CAP = 16.0
"""A bound does not move further at a time."""


@dataclass
class Found:
    """A compressed model. cost: as the ledger's sums; error: squared, relative; room: how much larger the squared error might be until
    it or the task reaches its limit, as far as one result tells: 1 or more where both are kept."""

    choice: list[int]
    compressed: Compressed
    cost: np.ndarray[Any, np.dtype[np.float64]]
    error: float
    validation: Validation | None
    room: float


class Search:
    """One search for the choice whose compressed model keeps the budget."""

    def __init__(
        self,
        ledger: Ledger,
        budget: Budget,
        samples: Sequence[Mapping[str, Array]],
        calibration: Calibration | None,
        task: Task | None,
        debug_dump: str | Path | None,
        progress: Progress | None,
    ) -> None:
        self.ledger, self.budget, self.samples, self.calibration, self.task = ledger, budget, samples, calibration, task
        self.debug_dump, self.progress = debug_dump, progress
        limits = {BYTES: budget.nbytes, SECONDS: budget.seconds}
        self.limits = {column: float(limit) for column, limit in limits.items() if limit is not None}
        self.allowed = None if budget.error is None else budget.error**2
        searched = (budget.error is not None or task is not None) and budget.nbytes is None
        self.objective = BYTES if searched else ERROR
        self.threads = calibration.threads if calibration else 1
        dense = Reference(ledger.source, threads=self.threads)
        self.wanted = [dense.run(sample) for sample in samples]
        self.attempts = self.left = _ATTEMPTS if task is None else _TASK_ATTEMPTS
        self.margin = dict.fromkeys(self.limits, 0.0)
        self.known: dict[tuple[int, ...], Found] = {}

    def run(self) -> Found:
        """The model with the least bytes (with a limit for them: the least error) that keeps all limits.

        Raises BudgetError: none of those that were made does.
        """
        # Predicted errors are those of quick trials, larger than what comes out: where the least is wanted they bound nothing.
        start = None if self.objective == ERROR else self.allowed
        bound = _START if start is None and self.objective == BYTES else start
        low, high = 0.0, math.inf  # squared errors, predicted: enough was left, too much was lost
        most = float(sum(layer[:, ERROR].max() for layer in self.ledger.table))
        best = nearest = None
        while True:
            try:
                made = self._made(bound)
            except BudgetError:
                if best is not None:
                    break
                if bound is None:
                    if nearest is None:
                        raise
                    break
                low = max(low, bound)  # too small; the first time see what is possible without
                if high <= _STEP * low:
                    break
                bound = None if high == math.inf else math.sqrt(low * high)
                continue
            if made is None:
                break
            if nearest is None or made.room > nearest.room:
                nearest = made
            predicted = float(self.ledger.predicted(made.choice)[ERROR])
            if made.room >= 1:
                if best is None or made.cost[BYTES] <= best.cost[BYTES]:
                    best = made
                low = max(low, bound or predicted)
                if bound is None or made.room <= _NEAR**-2 or low >= most:
                    break
            else:
                high = min(high, predicted)
            if self.objective == ERROR or high <= _STEP * low:
                break
            bound = _moved(0.95 * predicted * min(max(made.room, 1 / _CAP), _CAP), low, high)
        if best is None:
            raise BudgetError(self._why_not(nearest))
        return best

    def _made(self, bound: float | None) -> Found | None:
        """The best choice with a predicted error up to `bound` whose compressed model keeps size and time; None: attempts are used up.

        Raises BudgetError: there is no choice.
        """
        limits = self.limits if bound is None else {**self.limits, ERROR: bound}
        while True:
            choice = self.ledger.fitted(self.objective, limits, self.margin)
            if tuple(choice) in self.known:
                return self.known[tuple(choice)]
            if not self.left:
                return None
            self.left -= 1
            compressed = compress_graph(
                self.ledger.source, self.ledger.recipe_of(choice), calibration=self.calibration,
                debug_dump=self.debug_dump, progress=self.progress,
            )  # fmt: skip
            cost = self.ledger.measured(compressed)
            over = {column: float(cost[column] - limit) for column, limit in self.limits.items()}
            if any(excess > 0 for excess in over.values()):
                # Masks of the final run may keep other numbers of values, biases may have come.
                self.margin = {c: self.margin[c] + max(0.0, 1.05 * excess) for c, excess in over.items()}
                continue
            self.known[tuple(choice)] = found = self._measured(choice, compressed, cost)
            return found

    def _measured(
        self, choice: list[int], compressed: Compressed, cost: np.ndarray[Any, np.dtype[np.float64]]
    ) -> Found:
        data = onnx_bytes(compressed.model)
        runner = Reference(data, threads=self.threads)
        error = relative_error([runner.run(sample) for sample in self.samples], self.wanted)
        room = math.inf if self.allowed is None or error == 0 else self.allowed / error
        validation = None
        if self.task is not None:
            validation = self.task.validated(self.ledger.source, data, self.threads)
            assert validation.score is not None
            lost, limit = self.task.loss(validation.score), self.budget.loss(validation.score.dense)
            if lost > 0:  # small losses grow about as the root of the squared error
                room = min(room, ((1 + 1e-9) * limit / lost) ** 2)
        return Found(choice, compressed, cost, error, validation, room)

    def _why_not(self, nearest: Found | None) -> str:
        start = f"the budget ({self.budget}) cannot be met: after {self.attempts - self.left} attempts no choice of the candidates keeps "
        if nearest is None:
            return f"{start}all limits in the compressed model; allow a little more, or give other candidates"
        words = [f"{nearest.cost[BYTES] / 1e6:.4f} MB", f"error {100 * nearest.error**0.5:.3g} %"]
        if SECONDS in self.limits:
            words.insert(1, f"{1e3 * nearest.cost[SECONDS]:.4g} ms")
        if nearest.validation is not None and (score := nearest.validation.score) is not None:
            words.append(f"{score.name} {score.compressed:.4f} instead of {score.dense:.4f}")
        return f"{start}all limits; the nearest has {', '.join(words)}. Allow a little more, or give other candidates"


def _moved(aimed: float, low: float, high: float) -> float:
    """The next bound: what was aimed at, if it lies between those that are known; else one that does."""
    if low < aimed < high:
        return aimed
    if high == math.inf:
        return low * _CAP
    return math.sqrt(low * high) if low else high / _CAP
