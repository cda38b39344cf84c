"""Where results go: a Markdown table on standard output, and JSON with the machine they come from."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench import isa


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A Markdown table, padded so that it reads as plain text too; the first `left` columns are left-aligned."""
    cells = [[str(c).replace("|", "\\|") for c in row] for row in (headers, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        parts = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        return f"| {' | '.join(parts)} |"

    rule = "|".join(":" + "-" * (w + 1) if i < left else "-" * (w + 1) + ":" for i, w in enumerate(widths))
    return "\n".join([line(cells[0]), f"|{rule}|", *(line(row) for row in cells[1:])])


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "isa": isa.chosen(),
        "python": platform.python_version(),
        "onnxruntime": _onnxruntime(),
    }


def _onnxruntime() -> str | None:
    """Its version; None where it is not installed, as on a machine that only runs what was prepared."""
    try:
        return version("onnxruntime")
    except PackageNotFoundError:
        return None


def write_json(path: Path | None, results: Mapping[str, Any]) -> None:
    """Write the results and the machine to `path`, if there is one."""
    if path is not None:
        path.write_text(json.dumps({"machine": machine(), **results}, indent=2) + "\n")
