"""`python -m bench exactness`: task metrics of compiled programs against the original model in onnxruntime."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.output import markdown, write_json
from bench.zoo import get

HEADERS = ("model", "recipe", "metric", "examples", "original", "sparsec", "difference", "documented")
# A dense program computes the same function; a few near ties may fall the other way.
DENSE_TOLERANCE = {"top-1 %": 0.25, "Spearman": 1e-3, "perplexity": 1e-2, "speech %": 0.5}


def run(names: Sequence[str], recipes: Sequence[str], examples: int | None, json_path: Path | None) -> int:
    """Print the table; 1 if a dense program scores differently from the original, or a model does not compile."""
    import sparsec

    results: list[dict[str, Any]] = []
    problems: list[str] = []
    for name in names:
        model = get(name)
        if model.metric is None:
            continue
        original = model.metric(model.reference_run(), examples)
        for recipe in (None, *recipes):
            print(f"{name}, {recipe or 'dense'} ...", file=sys.stderr, flush=True)
            try:
                compiled = model.compile(recipe)
            except sparsec.SparsecError as error:
                problems.append(f"{name}, {recipe or 'dense'}: {str(error).splitlines()[0]}")
                continue
            score = model.metric(compiled.run, examples)
            metric = model.metric.name
            if recipe is None and abs(score - original) > DENSE_TOLERANCE[metric]:
                problems.append(f"{name}: dense {metric} is {score:.4f}, the original's {original:.4f}")
            results.append(
                {
                    "model": name,
                    "recipe": recipe,
                    "metric": metric,
                    "examples": examples,
                    "original": original,
                    "sparsec": score,
                    "documented": model.metric.reference,
                }
            )
    print(markdown(HEADERS, [_row(r) for r in results], left=3))
    for problem in problems:
        print(f"\n{problem}")
    write_json(json_path, {"results": results, "problems": problems})
    return 1 if problems else 0


def _row(r: dict[str, Any]) -> list[str]:
    difference = r["sparsec"] - r["original"]
    return [
        r["model"],
        r["recipe"] or "dense",
        r["metric"],
        "all" if r["examples"] is None else str(r["examples"]),
        f"{r['original']:.4f}",
        f"{r['sparsec']:.4f}",
        f"{difference:+.4f}",
        f"{r['documented']:.4f}",
    ]
