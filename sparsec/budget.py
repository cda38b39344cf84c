"""Budgets: what a compressed model may cost, as the user writes it and as numbers."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sparsec.errors import BudgetError, RecipeError, SchemeError
from sparsec.formats import Scheme

__all__ = [
    "DEFAULT_CANDIDATES",
    "FAST_CANDIDATES",
    "SMALL_FAST_CANDIDATES",
    "Budget",
    "checked_candidates",
    "parse_budget",
]

_UNITS = {
    "B": ("nbytes", 1.0), "KB": ("nbytes", 1e3), "MB": ("nbytes", 1e6), "GB": ("nbytes", 1e9),
    "KiB": ("nbytes", 2.0**10), "MiB": ("nbytes", 2.0**20), "GiB": ("nbytes", 2.0**30),
    "us": ("seconds", 1e-6), "ms": ("seconds", 1e-3), "s": ("seconds", 1.0),
    "%": ("error", 1e-2), "point": ("points", 1e-2), "points": ("points", 1e-2), "% task": ("task", 1e-2),
}  # fmt: skip
_WORDS = {"nbytes": "size", "seconds": "time", "error": "error", "points": "the task", "task": "the task"}

DEFAULT_CANDIDATES = (
    "fp16", "int8", "int7", "int6", "int5", "int4", "int4-g32", "cb4", "cb4-c", "cb4-g32", "vq4d2-c", "cb3", "cb3-c", "cb3-g32", "vq3d2-c",
    "cb2-c", "cb2-g32", "vq2d4-c",
)  # fmt: skip
"""Schemes that a budget for size or error chooses from; fp32 is always among them."""

FAST_CANDIDATES = (*DEFAULT_CANDIDATES, "s50", "s70", "s90", "s4x1@50", "s4x1@75")
"""With a budget for time: those that skip zeros too."""

SMALL_FAST_CANDIDATES = (*FAST_CANDIDATES, "s70-cb4", "s90-cb4")
"""With a budget for time and something else, so that bytes count too: those that skip zeros and code what stays."""


@dataclass(frozen=True)
class Budget:
    """Limits of a model as a whole; None: none. nbytes of the file (bundle: of weights.bin), predicted seconds of a run, and error:
    root of the relative squared error of the outputs (mean over outputs) on the calibration inputs. What the task may lose on
    labelled examples: points of its score (0.01: a hundredth, a percentage point of top-1), or as `task` a share of the dense
    model's score."""

    nbytes: float | None = None
    seconds: float | None = None
    error: float | None = None
    points: float | None = None
    task: float | None = None

    @property
    def on_task(self) -> bool:
        return self.points is not None or self.task is not None

    def loss(self, dense: float) -> float:
        """By how much the score of the task may be worse than `dense`; infinite: no limit."""
        shares = [self.points, None if self.task is None else self.task * abs(dense)]
        return min([share for share in shares if share is not None], default=math.inf)

    def __str__(self) -> str:
        parts = [
            "" if self.nbytes is None else f"{self.nbytes / 1e6:.6g} MB",
            "" if self.seconds is None else f"{1e3 * self.seconds:.6g} ms",
            "" if self.error is None else f"{100 * self.error:.6g} %",
            "" if self.points is None else f"{100 * self.points:.6g} point{'' if self.points == 0.01 else 's'}",
            "" if self.task is None else f"{100 * self.task:.6g} % task",
        ]
        return ", ".join(part for part in parts if part)


def parse_budget(text: str | Budget) -> Budget:
    """`1.2MB`, `25ms`, `0.5%`, `1 point`, `1% task`, or several of different kinds with commas between them.

    Raises BudgetError.
    """
    if isinstance(text, Budget):
        return text
    found: dict[str, float] = {}
    for part in str(text).split(","):
        match = re.fullmatch(r"\s*(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)\s*([A-Za-z% ]*?)\s*", part)
        unit = re.sub(r"%\s*(?=\w)", "% ", match[2]) if match else ""
        if match is None or unit not in _UNITS:
            near = difflib.get_close_matches(unit.upper(), [u.upper() for u in _UNITS], n=1) if unit else []
            hint = f"; did you mean '{next(u for u in _UNITS if u.upper() == near[0])}'?" if near else ""
            raise BudgetError(
                f"budget '{text}': '{part.strip()}' is no number with a unit{hint}. Size: {', '.join(list(_UNITS)[:7])}; "
                f"time: us, ms, s; error of the outputs: %; loss of the task: points, % task. Examples: 1.2MB, 25ms, 0.5%, "
                "'1 point', '1% task', '1.2MB,25ms'"
            )
        kind, factor = _UNITS[unit]
        if _WORDS[kind] in (_WORDS[other] for other in found):
            raise BudgetError(f"budget '{text}': there are two limits for {_WORDS[kind]}; give one of each kind")
        found[kind] = float(match[1]) * factor
        if found[kind] <= 0:
            raise BudgetError(f"budget '{text}': '{part.strip()}' is nothing; a budget is above 0")
    return Budget(**found)


def checked_candidates(given: str | Iterable[str] | None, budget: Budget) -> list[str]:
    """Canonical schemes to choose from, without fp32, which is always there; None: the default for this kind of budget.

    given: schemes, or one text with commas. Raises RecipeError.
    """
    words: Sequence[str] = DEFAULT_CANDIDATES
    if budget.seconds is not None:
        words = FAST_CANDIDATES if budget == Budget(seconds=budget.seconds) else SMALL_FAST_CANDIDATES
    if given is not None:
        words = [word.strip() for word in given.split(",")] if isinstance(given, str) else list(given)
    schemes = []
    for word in words:
        try:
            scheme = Scheme.parse(word)
        except SchemeError as error:
            raise RecipeError(f"candidate {word!r} is no scheme: {error}") from None
        if not scheme.is_plain:
            schemes.append(str(scheme))
    if not schemes:
        raise RecipeError("candidates: there is none but fp32; name schemes such as int8, cb4-g32, cb3-g32")
    return list(dict.fromkeys(schemes))
