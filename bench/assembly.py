"""The assembly a kernel compiles to: for counts of instructions, and for tests that look at inner loops."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsec.target import Target

_MULTIPLY = ("vfmadd", "fmla")


def assembly(family: str, params: Mapping[str, Any], target: Target, folder: Path) -> str:
    """Compile one kernel in a process of its own (TVM stays out of this one) and return its assembly text."""
    return assemblies([(family, params)], target, folder)[0]


def assemblies(kernels: Sequence[tuple[str, Mapping[str, Any]]], target: Target, folder: Path) -> list[str]:
    """The same of several kernels (family, parameters), by one process."""
    jobs = [
        {
            "family": family, "params": dict(params), "target": target.describe(), "symbol": "kernel",
            "object": str(folder / f"k{i}.o"), "assembly": str(folder / f"k{i}.s"),
        }
        for i, (family, params) in enumerate(kernels)
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "sparsec.codegen.worker"],
        input="".join(json.dumps(job) + "\n" for job in jobs), capture_output=True, text=True,
    )  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(jobs), done.stderr
    assert all(answer["ok"] for answer in answers), answers
    return [Path(job["assembly"]).read_text() for job in jobs]


def innermost_loops(text: str, *, branches: bool = False) -> list[list[str]]:
    """Instructions of every loop that has no loop inside, in the order of the text; `branches`: also of those with jumps inside."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [s for s in lines if s and not s.startswith((".Ltmp", ".p2align", "#", "//", ".cfi", ".loc"))]
    labels = {line.removesuffix(":"): at for at, line in enumerate(lines) if re.fullmatch(r"\.LBB\w+:", line)}
    spans = []
    for at, line in enumerate(lines):
        jump = re.match(r"(?:j\w+|b|b\.\w+|cbn?z|tbn?z)\s.*?(\.LBB\w+)$", line)
        if jump and labels.get(jump[1], at) < at:
            spans.append((labels[jump[1]], at))
    inner = [(a, b) for a, b in spans if not any((c, d) != (a, b) and a <= c and d <= b for c, d in spans)]
    bodies = [lines[a + 1 : b + 1] for a, b in inner]
    found = [[line for line in body if not line.startswith(".LBB")] for body in bodies]
    return [body for body, all_of in zip(found, bodies, strict=True) if branches or len(body) == len(all_of)]


def multiplies(body: list[str]) -> int:
    """Fused multiply-adds in a loop."""
    return sum(line.startswith(_MULTIPLY) for line in body)


def byte_multiplies(body: list[str]) -> int:
    """Multiplications of bytes in a loop (aarch64)."""
    return sum({"sdot": 16, "smmla": 32}.get(line.split()[0], 0) for line in body)


def uses_stack(body: list[str]) -> bool:
    """Whether a loop touches the stack, as spilled accumulators would."""
    return any("%rsp" in line or "[sp" in line for line in body)


def spills_vectors(body: list[str]) -> bool:
    """Whether a loop stores vectors on the stack. What it only reads from there, constants and addresses, does not change in the loop."""
    return any(re.match(r"vmov\w+\s+%[xyz]mm\d+, .*%rsp|st[rp]\s+[qdvs]\d+.*\[sp", line) for line in body)
