"""What a budget tried: every free weight in every candidate scheme, what that does to the outputs and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparsec.ledger import BYTES, ERROR, SECONDS, Ledger
from sparsec.tables import Table
from sparsec.verify import rounded

__all__ = ["Trial", "sensitivities", "sensitivity_table"]


@dataclass(frozen=True)
class Trial:
    """One weight in one scheme, all others as they were. error: root of the relative squared error of the model's outputs (of some
    schemes measured, of the others interpolated), layer_error: of the layer's own (without calibration inputs: of the weight).
    nbytes: in the file or program, with the weight's part of what a scheme costs there; seconds: predicted, None where not asked.
    chosen: what the budget took. refused: why this weight cannot have the scheme; then there are no figures."""

    weight: str
    scheme: str
    error: float | None = None
    layer_error: float | None = None
    nbytes: float | None = None
    bits: float | None = None
    seconds: float | None = None
    chosen: bool = False
    refused: str = ""

    def to_json(self) -> dict[str, Any]:
        if self.nbytes is None:
            return {"weight": self.weight, "scheme": self.scheme, "refused": self.refused}
        return {
            "weight": self.weight,
            "scheme": self.scheme,
            "error": None if self.error is None else rounded(self.error),
            "layer_error": None if self.layer_error is None else rounded(self.layer_error),
            "bytes": round(self.nbytes),
            "bits_per_weight": None if self.bits is None else round(self.bits, 4),
            **({} if self.seconds is None else {"ms": rounded(1e3 * self.seconds)}),
            "chosen": self.chosen,
        }


def sensitivities(ledger: Ledger, choice: Sequence[int]) -> list[Trial]:
    """Rows of a ledger, weights in order of execution, each in fp32 and the candidates in their order; `choice`: what was taken."""
    rows = []
    for entry, options, costs, taken in zip(ledger.found, ledger.options, ledger.table, choice, strict=True):
        own = [0.0, *entry.layer_errors]
        stored = [4 * entry.elements, *(solved.encoded.nbytes for solved in entry.solved)]
        for number, scheme in enumerate(options):
            rows.append(
                Trial(
                    entry.name,
                    scheme,
                    float(costs[number, ERROR] ** 0.5),
                    float(own[number] ** 0.5),
                    float(costs[number, BYTES]),
                    8 * stored[number] / entry.elements,
                    float(costs[number, SECONDS]) if ledger.timed else None,
                    number == taken,
                )
            )
        rows += [Trial(entry.name, scheme, refused=reason) for scheme, reason in entry.refused.items()]
    return rows


def sensitivity_table(rows: Sequence[Trial]) -> Table:
    """One line a trial; the last column marks what was chosen, or says why a weight cannot have a scheme."""
    headers = ("weight", "scheme", "error %", "layer error %", "bytes", "bits/weight", "ms predicted", "")
    lines = tuple(
        (
            row.weight, row.scheme, _percent(row.error), _percent(row.layer_error), _number(row.nbytes, ".0f"),
            _number(row.bits, ".2f"), _number(None if row.seconds is None else 1e3 * row.seconds, ".4f"),
            "chosen" if row.chosen else row.refused,
        )
        for row in rows
    )  # fmt: skip
    return Table("every weight in every scheme, the others as they were", headers, lines, frozenset({0, 1, 7}))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.3g}"


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
