"""What a validation found, as JSON and as tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sparsec.labelled import Changed, ClassChange, Score
from sparsec.similarity import OutputSimilarity
from sparsec.tables import Table
from sparsec.verify import rounded

__all__ = ["Validation"]


@dataclass(frozen=True)
class Validation:
    """What `validate` found. Scores are shares of 1 for labels; whatever the metric gives otherwise."""

    subject: str
    reference: str
    samples: int
    outputs: tuple[OutputSimilarity, ...]
    score: Score | None = None
    classes: list[ClassChange] = field(default_factory=list)
    changed: list[Changed] = field(default_factory=list)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON-able and complete: every class, every changed example; figures to three significant digits, scores to six places."""
        return {
            "subject": self.subject,
            "reference": self.reference,
            "samples": self.samples,
            **self.settings,
            "outputs": [
                {
                    "name": row.name,
                    "dtype": row.dtype,
                    "shape": list(row.shape),
                    **{
                        key: None if value is None else (round(value, 6) if key in _SHARES else rounded(value))
                        for key, value in _figures(row).items()
                    },
                }
                for row in self.outputs
            ],
            "score": None if self.score is None else _score_json(self.score),
            "classes": [
                {"label": c.label, "decisions": c.decisions, "dense": round(c.dense, 6), "compressed": round(c.compressed, 6),
                 "difference": round(c.difference, 6), "p_value": rounded(c.p_value)}
                for c in self.classes
            ],
            "changed": [
                {"example": c.example, "decision": c.decision, "kind": c.kind, "label": c.label, "dense": c.dense,
                 "compressed": c.compressed}
                for c in self.changed
            ],
        }  # fmt: skip

    def tables(self, worst: int = 10) -> list[Table]:
        """What people read: scores, the `worst` classes that lost most, as many changed examples, similarity of outputs."""
        found = [] if self.score is None else [_score_table(self.score)]
        lost = [c for c in self.classes if c.difference < 0]
        if lost:
            found.append(_class_table(lost[:worst], f"{len(lost)} of {len(self.classes)} lost something"))
        if self.changed:
            found.append(_changed_table(self.changed, worst))
        return [*found, _output_table(self.outputs)]

    def summary(self) -> str:
        """One line: who was compared with whom, on how many samples."""
        return f"{self.subject} against {self.reference} ({self.samples} samples)"


_SHARES = ("cosine", "least_cosine", "agreement")


def _figures(row: OutputSimilarity) -> dict[str, float | None]:
    return {
        "error": row.error,
        "largest": row.largest,
        "cosine": row.cosine,
        "least_cosine": row.least_cosine,
        "kl": row.kl,
        "agreement": row.agreement,
    }


def _cells(row: OutputSimilarity) -> list[str]:
    return [
        "-" if value is None else f"{value:.4f}" if key in _SHARES else f"{value:.3g}"
        for key, value in _figures(row).items()
    ]


def _score_json(score: Score) -> dict[str, Any]:
    return {
        "name": score.name,
        "examples": score.examples,
        "dense": round(score.dense, 6),
        "compressed": round(score.compressed, 6),
        "difference": round(score.difference, 6),
        "interval": None if score.interval is None else [round(end, 6) for end in score.interval],
        "p_value": None if score.p_value is None else rounded(score.p_value),
    }


def _score_table(score: Score) -> Table:
    interval = "-" if score.interval is None else f"{score.interval[0]:+.4f} .. {score.interval[1]:+.4f}"
    p = "-" if score.p_value is None else f"{score.p_value:.2g}"
    row = (score.name, str(score.examples), f"{score.dense:.4f}", f"{score.compressed:.4f}", f"{score.difference:+.4f}")
    headers = ("score", "examples", "dense", "compressed", "difference", "interval", "p")
    return Table("", headers, ((*row, interval, p),))


def _class_table(lost: list[ClassChange], words: str) -> Table:
    headers = ("class", "examples", "dense", "compressed", "difference", "p")
    rows = tuple(
        (str(c.label), str(c.decisions), f"{c.dense:.3f}", f"{c.compressed:.3f}", f"{c.difference:+.3f}", f"{c.p_value:.2g}")
        for c in lost
    )  # fmt: skip
    return Table(f"worst classes ({words})", headers, rows)


def _changed_table(changed: list[Changed], most: int) -> Table:
    counts = ", ".join(f"{sum(c.kind == kind for c in changed)} {kind}" for kind in ("lost", "gained", "other"))
    several = any(c.decision for c in changed)
    rows = tuple(
        (f"{c.example}:{c.decision}" if several else str(c.example), c.kind, *map(str, (c.label, c.dense, c.compressed)))
        for c in changed[:most]
    )  # fmt: skip
    headers = ("example", "change", "label", "dense", "compressed")
    return Table(f"examples that changed ({counts})", headers, rows, frozenset({0, 1}))


def _output_table(outputs: tuple[OutputSimilarity, ...]) -> Table:
    headers = ("output", "shape", "error", "largest", "cosine", "least", "KL", "agreement")
    rows = tuple((row.name, "x".join(map(str, row.shape)) or "scalar", *_cells(row)) for row in outputs)
    return Table("outputs, compressed against dense", headers, rows, frozenset({0, 1}))
