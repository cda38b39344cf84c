"""`python -m bench compile`: wall and processor time of the `sparsec compile` command, Python's start and the default
verification included, from an empty cache and with a warm one."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.environments import ROOT
from bench.output import markdown, write_json
from bench.zoo import ZooModel, get

WARM_LIMIT_S = {"minilm": 3.0}
"""Issue 2's bar, for each scheme."""

HEADERS = ("model", "recipe", "cold s", "warm s, median", "least", "most", "processor s", "limit")


def run(names: Sequence[str], recipes: Sequence[str], repeats: int, json_path: Path | None) -> int:
    """Print the table; 1 if a warm compile breaks its limit."""
    results = []
    for name in names:
        for recipe in (None, *recipes):
            print(f"{name}, {recipe or 'dense'} ...", file=sys.stderr, flush=True)
            results.append(_measure(name, recipe, repeats))
    print(markdown(HEADERS, [_row(r) for r in results], left=2))
    write_json(json_path, {"results": results})
    return 1 if any(r["limit_s"] is not None and r["warm_s"] > r["limit_s"] for r in results) else 0


def _measure(name: str, recipe: str | None, repeats: int) -> dict[str, Any]:
    model = get(name)
    model.onnx_file()  # exported once, outside of the timing
    with tempfile.TemporaryDirectory(prefix="sparsec-bench-") as scratch:
        runs = [_compile(model, recipe, Path(scratch)) for _ in range(1 + repeats)]
    warm = [wall for wall, _ in runs[1:]]
    return {
        "model": name,
        "recipe": recipe,
        "cold_s": runs[0][0],
        "warm_s": statistics.median(warm),
        "warm_all_s": warm,
        "warm_processor_s": statistics.median(processor for _, processor in runs[1:]),
        "limit_s": WARM_LIMIT_S.get(name),
    }


def _compile(model: ZooModel, recipe: str | None, scratch: Path) -> tuple[float, float]:
    """(wall, processor) seconds of one command; processor time counts child processes that ended."""
    command = [sys.executable, "-m", "sparsec.cli", "compile", str(model.onnx_file()), "-o", str(scratch / "out")]
    command += ["--force", "--json", *(["--recipe", recipe] if recipe else [])]
    if model.input_shapes:
        shapes = (f"{name}={'x'.join(map(str, shape))}" for name, shape in model.input_shapes.items())
        command += ["--input-shapes", ",".join(shapes)]
    if model.input_values:
        command += ["--input-values", ",".join(f"{name}={value}" for name, value in model.input_values.items())]
    # Bytecode is kept between runs, as Python does by default, but apart from the source tree.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"SPARSEC_CACHE": str(scratch / "cache"), "PYTHONPYCACHEPREFIX": str(scratch / "bytecode")}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _row(r: dict[str, Any]) -> list[str]:
    numbers = (r["warm_s"], min(r["warm_all_s"]), max(r["warm_all_s"]), r["warm_processor_s"])
    limit = "-" if r["limit_s"] is None else f"{r['limit_s']:.0f}"
    return [r["model"], r["recipe"] or "dense", f"{r['cold_s']:.1f}", *(f"{n:.2f}" for n in numbers), limit]
