"""`python -m bench methods`: what each algorithm of a recipe makes of the same scheme, on a small transformer and a convolutional network.

As in bench/accuracy.py: at most 256 inputs to calibrate on, no labels, scores over others.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.accuracy import compressed, runner
from bench.output import markdown, write_json
from bench.scores import dense_score, score
from bench.zoo import get
from sparsec.errors import RecipeError

SCORES = {"stories_prefill": ("perplexity", "MatMul"), "resnet20": ("top-1 %", "*")}
"""By model: the score, and the operators whose weights are compressed."""

Rule = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """`rows`: a label and what it adds to a column's rule, None for no calibration; `schemes` by model."""

    name: str
    schemes: dict[str, tuple[str, ...]]
    rows: dict[str, Rule | None]


def _each(part: str, key: str, *names: str) -> dict[str, Rule | None]:
    return {name: {part: {key: name}} for name in names}


TABLES = (
    Table(
        "zeros",
        dict.fromkeys(SCORES, ("s50", "s2:4", "s16x1@50-cb4-g32")),
        {
            "data-free": None,
            **_each("sparsify", "algorithm", "magnitude", "wanda", "gblm", "dsnot", "sparsegpt", "obs"),
        },
    ),
    Table(
        "codes",
        {"stories_prefill": ("int3-g32", "cb3-g32", "vq2d4-c"), "resnet20": ("int3", "cb3", "int2-g32")},
        {
            "data-free": None,
            **_each("quantize", "algorithm", "flexround", "gpfq", "gptq", "joint", "descent"),
            **_each("quantize", "scaling", "awq", "equalize"),
        },
    ),
    Table(
        "scope",
        dict.fromkeys(SCORES, ("s50", "s80")),
        _each("sparsify", "scope", "layer", "global", "output", "lamp", "erk"),
    ),
)


def run(names: Sequence[str], json_path: Path | None) -> int:
    """Print the tables of these names (none: all)."""
    if unknown := sorted(set(names) - {table.name for table in TABLES}):
        raise SystemExit(f"no table {', '.join(unknown)}; there are: {', '.join(table.name for table in TABLES)}")
    results = []
    for table in TABLES:
        if names and table.name not in names:
            continue
        columns = [(model, scheme) for model, schemes in table.schemes.items() for scheme in schemes]
        lines = []
        for label, more in table.rows.items():
            print(f"{table.name}, {label} ...", file=sys.stderr, flush=True)
            found = [scored(model, scheme, more) for model, scheme in columns]
            lines.append([label, *("-" if value is None else f"{value:.2f}" for value in found)])
            results += [
                {"table": table.name, "row": label, "model": model, "scheme": scheme, "score": value}
                for (model, scheme), value in zip(columns, found, strict=True)
            ]
        print(markdown([table.name, *(f"{model} {scheme}" for model, scheme in columns)], lines), end="\n\n")
    dense = {model: dense_score(model, what) for model, (what, _) in SCORES.items()}
    print(", ".join(f"{model}: {SCORES[model][0]}, dense {value:.2f}" for model, value in dense.items()))
    write_json(json_path, {"dense": dense, "results": results})
    return 0


def scored(model: str, scheme: str, more: Rule | None) -> float | None:
    """The score of a model in a scheme; None where the recipe says that the two do not go together."""
    what, targets = SCORES[model]
    try:
        made = compressed(model, targets, {"scheme": scheme, **(more or {})}, turn=None if more is None else 0)
    except RecipeError:
        return None
    return score(model, what, runner(made.to_bytes(), get(model)))
