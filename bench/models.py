"""`python -m bench models`: whole models, sparsec and onnxruntime fp32 in turns, one thread and all."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.interleave import Runner, Series, interleave, ratio
from bench.operators import RELAX_SHARE, measure, slow_relax
from bench.output import markdown, write_json

BASE = Runner("ort")
HEADERS = ("model", "runner", "threads", "ms median", "spread %", "ort ms", "x ort", "speed-up over 1 thread")
RELAX_HEADERS = ("model", "recipe", "largest", "share %", "all Relax steps %", "steps")


def run(
    names: Sequence[str], recipes: Sequence[str], threads: Sequence[int], rounds: int, json_path: Path | None
) -> int:
    """Print the tables; 1 if a model could not be timed or a step from Relax takes more than its share."""
    runners = [BASE, Runner("sparsec"), *(Runner("sparsec", recipe) for recipe in recipes)]
    results: list[dict[str, Any]] = []
    failures: list[str] = []
    for name in names:
        single: dict[Runner, float] = {}
        for count in threads:
            print(f"{name}, {count} thread(s) ...", file=sys.stderr, flush=True)
            series, errors = interleave(name, runners, count, rounds=rounds)
            failures += [f"{name}, {runner}: {text.splitlines()[0]}" for runner, text in errors.items()]
            for runner, times in series.items():
                if count == 1:
                    single[runner] = times.median
                results.append(_result(name, runner, count, times, series, single))
    print(markdown(HEADERS, [_row(r) for r in results if r["runner"] != str(BASE)], left=2))
    for failure in failures:
        print(f"\nnot timed: {failure}")
    relax = [
        _relax(name, runner.recipe, max(4, rounds // 2))
        for name in names
        for runner in runners[1:]
        if any(r["model"] == name and r["runner"] == str(runner) for r in results)
    ]
    print(f"\nlargest step that came through Relax (limit {100 * RELAX_SHARE:.0f} % of the steps' time, 1 thread)\n")
    print(markdown(RELAX_HEADERS, [_relax_row(r) for r in relax], left=3))
    write_json(json_path, {"results": results, "relax": relax, "failures": failures})
    return 1 if failures or any(r["flagged"] for r in relax) else 0


def _relax(name: str, recipe: str | None, rounds: int) -> dict[str, Any]:
    steps = measure(name, recipe, 1, rounds)
    relaxed = [r for r in steps if r["family"] == "relax"]
    return {
        "model": name,
        "recipe": recipe,
        "steps": len(relaxed),
        "share": sum(r["share"] for r in relaxed),
        "largest": relaxed[0] if relaxed else None,
        "flagged": bool(slow_relax(steps)),
    }


def _relax_row(r: dict[str, Any]) -> list[str]:
    largest = r["largest"]
    return [
        r["model"],
        r["recipe"] or "dense",
        "none" if largest is None else f"{largest['op']} '{largest['node']}'"[:60],
        "-" if largest is None else f"{100 * largest['share']:.1f}",
        f"{100 * r['share']:.1f}",
        str(r["steps"]),
    ]


def _result(
    name: str, runner: Runner, threads: int, times: Series, series: dict[Runner, Series], single: dict[Runner, float]
) -> dict[str, Any]:
    return {
        "model": name,
        "runner": str(runner),
        "threads": threads,
        "ms": times.median,
        "spread": times.spread,
        "rounds_ms": list(times.rounds),
        "setup_s": times.setup_s,
        "ort_ms": series[BASE].median if BASE in series else None,
        "ratio": ratio(series, runner, BASE) if BASE in series else None,
        "scaling": single[runner] / times.median if runner in single else None,
    }


def _row(r: dict[str, Any]) -> list[str]:
    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    return [
        r["model"],
        r["runner"],
        str(r["threads"]),
        number(r["ms"], 3),
        number(100 * r["spread"], 0),
        number(r["ort_ms"], 3),
        number(r["ratio"], 2),
        number(r["scaling"] if r["threads"] > 1 else None, 2),
    ]
