"""The front of a budget: what error, bytes and milliseconds go together, as a table, JSON and a picture."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from sparsec.errors import OutputError
from sparsec.files import dumps, replacing_file
from sparsec.sensitivity import Trial, sensitivity_table
from sparsec.tables import Table
from sparsec.validation_report import Validation
from sparsec.verify import rounded

__all__ = ["Front", "Point"]


@dataclass(frozen=True)
class Point:
    """One choice of schemes. error: predicted, root of the relative squared error of the outputs; seconds: None where not asked;
    bits: stored bits per weight of what the budget chose for; schemes: how many weights have each."""

    nbytes: float
    seconds: float | None
    error: float
    bits: float
    schemes: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        return {
            "bytes": round(self.nbytes),
            **({} if self.seconds is None else {"ms": rounded(1e3 * self.seconds)}),
            "error": rounded(self.error),
            "bits_per_weight": round(self.bits, 4),
            "schemes": dict(sorted(self.schemes.items())),
        }


@dataclass
class Front:
    """What a budget found. points: choices that no other beats, by size; chosen: what was taken; nbytes, seconds and error: what it
    really is (error on the calibration inputs, or random ones); task: what labelled `examples` say about it, where the budget limits the
    task; notes: what the user should know; sensitivity: every weight in every scheme, which the choices are made of."""

    budget: str
    points: Sequence[Point]
    chosen: Point
    nbytes: int
    seconds: float | None
    error: float
    inputs: str
    notes: list[str] = field(default_factory=list)
    task: Validation | None = None
    examples: str = ""
    sensitivity: Sequence[Trial] = ()

    def table(self) -> Table:
        """One row a point, the chosen one marked."""
        rows = []
        for point in sorted((*self.points, self.chosen), key=lambda p: (p.nbytes, -p.error)):
            if point is not self.chosen and point == self.chosen:
                continue
            schemes = ", ".join(f"{count} {scheme}" for scheme, count in Counter(point.schemes).most_common())
            ms = "-" if point.seconds is None else f"{1e3 * point.seconds:.3f}"
            mark = "chosen" if point is self.chosen else ""
            rows.append(
                (mark, f"{point.nbytes / 1e6:.4f}", ms, f"{100 * point.error:.3g}", f"{point.bits:.2f}", schemes)
            )
        headers = ("", "MB", "ms predicted", "error % predicted", "bits/weight", "weights")
        return Table(f"budget {self.budget}", headers, tuple(rows), frozenset({0, 5}))

    def summary(self) -> str:
        """One line: what the chosen point really is."""
        ms = "" if self.seconds is None else f", {1e3 * self.seconds:.3f} ms"
        text = f"budget {self.budget}: {self.nbytes / 1e6:.4f} MB{ms}, error {100 * self.error:.3g} % on {self.inputs}"
        if self.task is None or (score := self.task.score) is None:
            return text
        ends = "" if score.interval is None else f", 95 % interval {score.interval[0]:+.4f} .. {score.interval[1]:+.4f}"
        change = f"{score.compressed:.4f} instead of {score.dense:.4f} ({score.difference:+.4f}{ends})"
        return f"{text}; {score.name} {change} on {self.examples}"

    def show(self, stream: IO[str] | None = None) -> None:
        """Print table, summary and notes."""
        self.table().show(stream)
        for line in (self.summary(), *(f"note: {note}" for note in self.notes)):
            print(line, file=stream)

    def to_json(self) -> dict[str, Any]:
        return {
            "budget": self.budget,
            "points": [point.to_json() for point in self.points],
            "chosen": self.chosen.to_json(),
            "bytes": self.nbytes,
            **({} if self.seconds is None else {"ms": rounded(1e3 * self.seconds)}),
            "error": rounded(self.error),
            "inputs": self.inputs,
            **({} if self.task is None else {"task": self.task.to_json(), "examples": self.examples}),
            "notes": list(self.notes),
            "sensitivity": [row.to_json() for row in self.sensitivity],
        }

    def save(self, path: str | Path, force: bool = False) -> Path:
        """Draw error against size, and against time where there is one, as PNG (or what the suffix says); `.json` and `.txt` are
        written with everything, `sensitivity` too.

        Raises OutputError if matplotlib is missing or `path` exists, unless `force`.
        """
        written = {".json": self._json, ".txt": self._text}.get(Path(path).suffix)
        if written is not None:
            with replacing_file(path, force) as scratch:
                scratch.write_text(written(), encoding="utf-8")
            return Path(path)
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise OutputError(
                f"{path}: drawing needs matplotlib, which is not installed: pip install 'sparsec[plot]'"
            ) from None
        timed = self.chosen.seconds is not None
        figure = Figure(figsize=(10 if timed else 6, 4.2), layout="constrained")
        axes = figure.subplots(1, 2 if timed else 1, squeeze=False)[0]
        self._draw(axes[0], [p.nbytes / 1e6 for p in (*self.points, self.chosen)], "MB")
        if timed:
            self._draw(axes[1], [1e3 * (p.seconds or 0.0) for p in (*self.points, self.chosen)], "ms predicted")
        figure.suptitle(self.summary(), fontsize=9)
        with replacing_file(path, force) as scratch:
            figure.savefig(scratch, format=Path(path).suffix.lstrip(".") or "png", metadata={"Software": None})
        return Path(path)

    def _json(self) -> str:
        return dumps(self.to_json())

    def _text(self) -> str:
        stream = io.StringIO()
        self.show(stream)
        return f"{stream.getvalue()}\n{sensitivity_table(self.sensitivity).text()}\n"

    def _draw(self, axes: Any, x: Sequence[float], label: str) -> None:
        errors = [100 * point.error for point in (*self.points, self.chosen)]
        shown = sorted((a, e) for a, e in zip(x[:-1], errors[:-1], strict=True) if e > 0)
        axes.plot([a for a, _ in shown], [e for _, e in shown], "o-", color="tab:blue", markersize=4)
        axes.plot(x[-1:], errors[-1:], "*", color="tab:red", markersize=14, label="chosen")
        if any(error > 0 for error in errors):
            axes.set_yscale("log")
        axes.set_xlabel(label)
        axes.set_ylabel("error of the outputs, % predicted")
        axes.grid(True, which="both", alpha=0.3)
        axes.legend()
