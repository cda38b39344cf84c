"""`python -m bench operators MODEL`: time of every step of a compiled model, the slowest first."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import isa
from bench.output import markdown, write_json
from bench.zoo import get

RELAX_SHARE = 0.10  # no single step that came through Relax may take more of a model's time
HEADERS = ("step", "op", "kernel family", "us", "share %", "GFLOP/s", "what")


def measure(name: str, recipe: Any, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Each step of the compiled model with its time in microseconds and its share of all steps' time, the slowest first."""
    from sparsec.codegen.bundle import build_loadable, compile_program
    from sparsec.runtime import Session

    model = get(name)
    compiled = model.compile(recipe)
    program = compiled.program
    loadable = build_loadable(compile_program(program))
    feed = model.random_inputs()
    with Session(loadable.library, loadable.weights, threads=threads) as session:
        session.profile(feed, 2)
        samples = [session.profile(feed, 5) for _ in range(rounds)]
    times = [statistics.median(s[i].ns for s in samples) for i in range(len(program.steps))]
    total = sum(times)
    results = [
        {
            "step": index,
            "node": step.node,
            "op": step.op,
            "family": step.spec.family,
            "us": ns / 1e3,
            "share": ns / total,
            "gflops": step.signature.cost / ns if ns else 0.0,
            "note": step.note,
        }
        for index, (step, ns) in enumerate(zip(program.steps, times, strict=True))
    ]
    return sorted(results, key=lambda r: -r["us"])


def slow_relax(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps from Relax that take more than their share."""
    return [r for r in steps if r["family"] == "relax" and r["share"] > RELAX_SHARE]


def run(name: str, recipe: str | None, threads: int, top: int, rounds: int, json_path: Path | None) -> int:
    """Print the table; 1 if a step from Relax takes more than its share."""
    results = measure(name, recipe, threads, rounds)
    total = sum(r["us"] for r in results)
    flagged = slow_relax(results)
    title = f"{name}{' ' + recipe if recipe else ''}: {len(results)} steps, {total / 1e3:.3f} ms, {threads} thread(s)"
    print(f"{isa.title()}{title}\n\n{markdown(HEADERS, [_row(r) for r in results[:top]], left=3)}")
    print(f"\nby kernel family\n\n{markdown(('family', 'steps', 'us', 'share %'), _families(results))}")
    for r in flagged:
        print(f"\nRelax: step {r['step']} ({r['op']} '{r['node']}') takes {100 * r['share']:.0f} % of the time")
    write_json(json_path, {"model": name, "recipe": recipe, "threads": threads, "steps": results})
    return 1 if flagged else 0


def _row(r: dict[str, Any]) -> list[str]:
    what = r["note"] or r["node"]
    return [
        str(r["step"]),
        r["op"],
        r["family"],
        f"{r['us']:.1f}",
        f"{100 * r['share']:.1f}",
        f"{r['gflops']:.1f}",
        what[:60],
    ]


def _families(results: list[dict[str, Any]]) -> list[list[str]]:
    names = sorted({r["family"] for r in results})
    sums = {n: [r for r in results if r["family"] == n] for n in names}
    ordered = sorted(names, key=lambda n: -sum(r["us"] for r in sums[n]))
    return [
        [
            n,
            str(len(sums[n])),
            f"{sum(r['us'] for r in sums[n]):.1f}",
            f"{100 * sum(r['share'] for r in sums[n]):.1f}",
        ]
        for n in ordered
    ]
