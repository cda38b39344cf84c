"""Two classifiers on one labelled set: scores with confidence, the classes that lost most, the examples that changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsec.errors import InputError
from sparsec.paired import bootstrap, holm, mcnemar
from sparsec.similarity import decisions

__all__ = ["Changed", "ClassChange", "Decisions", "Score", "checked_labels"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Score:
    """A score of both models; `interval`: of the difference (compressed minus dense), `p_value` that there is none. None: the
    metric gives one number for the whole set (interval), or examples are no independent decisions (p_value)."""

    name: str
    examples: int
    dense: float
    compressed: float
    interval: tuple[float, float] | None
    p_value: float | None = None

    @property
    def difference(self) -> float:
        return self.compressed - self.dense


@dataclass(frozen=True)
class ClassChange:
    """One class: its decisions, the share that each model gets right, and McNemar's p-value after Holm's correction for the number
    of classes."""

    label: int
    decisions: int
    dense: float
    compressed: float
    p_value: float

    @property
    def difference(self) -> float:
        return self.compressed - self.dense


@dataclass(frozen=True)
class Changed:
    """A decision that compression changed. example: index of the sample, decision: of the decision in it; `label`, `dense` and
    `compressed` are classes."""

    example: int
    decision: int
    label: int
    dense: int
    compressed: int

    @property
    def kind(self) -> str:
        if self.dense == self.label:
            return "lost"
        return "gained" if self.compressed == self.label else "other"


_KINDS = ("lost", "gained", "other")


def checked_labels(labels: Any, where: str) -> NDArray[np.int64]:
    """Labels as whole numbers in one row. Raises InputError: other dtypes, NaN, no labels at all."""
    found = np.asarray(labels)
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise InputError(f"{where}: labels hold NaN or Inf; they are classes, counted from 0")
    if found.dtype.kind not in "iu":
        raise InputError(
            f"{where}: labels are {found.dtype}; classes are whole numbers. Other tasks: metric= in Python"
        )
    if not found.size:
        raise InputError(f"{where}: there are no labels")
    return found.astype(np.int64).ravel()


@dataclass
class Decisions:
    """Collects what both models decide, sample by sample. labels: of all decisions, in order; where: for errors."""

    labels: NDArray[np.int64]
    where: str
    samples: int
    _dense: list[Array] = field(default_factory=list)
    _found: list[Array] = field(default_factory=list)

    def add(self, name: str, dense: Array, found: Array) -> None:
        """Output `name` of one sample. Raises InputError where labels do not fit it."""
        rows, others = decisions(dense), decisions(found)
        if not self._dense:
            self._check(name, rows, dense.shape)
        self._dense.append(rows.argmax(axis=1))
        self._found.append(others.argmax(axis=1))

    def _check(self, name: str, rows: Array, shape: Sequence[int]) -> None:
        count, classes = rows.shape
        if classes < 2:
            raise InputError(
                f"{self.where}: output '{name}' {list(shape)} has one value a decision, labels need one for each class; "
                f"choose another output (verify --output), or metric= in Python"
            )
        if len(self.labels) != self.samples * count:
            each = "" if count == 1 else f" of {count} decisions each"
            raise InputError(
                f"{self.where}: {len(self.labels)} labels for {self.samples} samples{each} (output '{name}' {list(shape)}); "
                f"{self.samples * count} are needed"
            )
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= classes))
        if wrong.size:
            raise InputError(
                f"{self.where}: label {wrong[0]} is {self.labels[wrong[0]]}; output '{name}' {list(shape)} has the classes "
                f"0 to {classes - 1}"
            )

    def score(self, resamples: int, confidence: float, seed: int) -> Score:
        """Share of right decisions. Samples are drawn whole: decisions of one sample depend on each other."""
        right, kept = self._right()
        gaps = (kept.astype(np.float64) - right).mean(axis=1)
        interval = bootstrap(
            lambda rows: float(gaps[rows].mean()), len(gaps), resamples=resamples, confidence=confidence, seed=seed
        )
        p = mcnemar(right[:, 0], kept[:, 0]) if right.shape[1] == 1 else None
        return Score("top-1", self.samples, float(right.mean()), float(kept.mean()), interval, p)

    def classes(self) -> list[ClassChange]:
        """Every class that has a decision, the greatest loss first, among equals the lower p-value, then the lower label."""
        right, kept = (side.ravel() for side in self._right())
        found = np.unique(self.labels)
        members = [self.labels == label for label in found]
        p = holm([mcnemar(right[m], kept[m]) for m in members])
        rows = [
            ClassChange(int(label), int(m.sum()), float(right[m].mean()), float(kept[m].mean()), float(value))
            for label, m, value in zip(found, members, p, strict=True)
        ]
        return sorted(rows, key=lambda row: (round(row.difference, 12), row.p_value, row.label))

    def changed(self) -> list[Changed]:
        """Decisions that differ between the models, pruning-identified exemplars (Hooker, Courville, Clark, Dauphin, Frome, "What do
        compressed deep neural networks forget?", 2019): those that became wrong first, then those that became right, in order."""
        dense, found = self._decided()
        labels = self.labels.reshape(dense.shape)
        rows = [
            Changed(int(i), int(j), int(labels[i, j]), int(dense[i, j]), int(found[i, j]))
            for i, j in zip(*np.nonzero(dense != found), strict=True)
        ]
        return sorted(rows, key=lambda row: _KINDS.index(row.kind))

    def _decided(self) -> tuple[Array, Array]:
        return np.stack(self._dense), np.stack(self._found)

    def _right(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        dense, found = self._decided()
        labels = self.labels.reshape(dense.shape)
        return dense == labels, found == labels
