"""`python -m bench roof`: what this machine can do at best, to hold measured kernels against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import isa
from bench.output import markdown, write_json
from sparsec.codegen.machine import Machine, this_machine

HEADERS = ("rate", "working set", "1 thread", "all threads", "unit")


def run(json_path: Path | None) -> int:
    """Measure anew (compilers that go by the cached rates see the new ones), print the table."""
    found = this_machine(again=True)
    print(f"{isa.title()}{found.cpu}, {found.threads} threads, {found.vector_bits}-bit vectors\n")
    print(markdown(HEADERS, rows(found), left=2))
    write_json(json_path, results(found))
    return 0


def rows(found: Machine) -> list[list[str]]:
    """The table: read bandwidth of each level, then peaks of multiply-adds."""
    table = []
    for level in found.levels:
        size = f"within {level.size // 1024} KB" if level.size else "beyond the caches"
        table.append([f"read {level.name}", size, *_pair(level.read.one, level.read.all, 1e9), "GB/s"])
    table.append(["multiply-add fp32", "registers", *_pair(found.fma.one, found.fma.all, 1e9), "GFLOP/s"])
    table.append(["multiply-add int8", "registers", *_pair(found.int8.one, found.int8.all, 1e9), "GOP/s"])
    return table


def _pair(one: float, together: float, unit: float) -> tuple[str, str]:
    return f"{one / unit:.1f}", f"{together / unit:.1f}"


def results(found: Machine) -> dict[str, Any]:
    """JSON-able: rates in units a second."""
    return {"roof": found.to_json()}
