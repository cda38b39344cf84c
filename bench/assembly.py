"""The assembly a kernel compiles to: for counts of instructions, and for tests that look at inner loops."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsec.target import Target

_MULTIPLY = ("vfmadd", "fmla")


def assembly(family: str, params: Mapping[str, Any], target: Target, folder: Path) -> str:
    """Compile one kernel in a process of its own (TVM stays out of this one) and return its assembly text."""
    job = {
        "family": family, "params": dict(params), "target": target.describe(), "symbol": "kernel",
        "object": str(folder / "k.o"), "assembly": str(folder / "k.s"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "sparsec.codegen.worker"], input=json.dumps(job) + "\n", capture_output=True, text=True
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["ok"], answer
    return (folder / "k.s").read_text()


def innermost_loops(text: str) -> list[list[str]]:
    """Instructions of every loop without a label inside, in the order of the text."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [s for s in lines if s and not s.startswith((".Ltmp", ".p2align", "#", "//", ".cfi", ".loc"))]
    labels = {line.removesuffix(":"): at for at, line in enumerate(lines) if re.fullmatch(r"\.LBB\w+:", line)}
    found = []
    for at, line in enumerate(lines):
        jump = re.match(r"(?:j\w+|b\.\w+|cbn?z|tbn?z)\s.*?(\.LBB\w+)$", line)
        if jump and labels.get(jump[1], at) < at:
            body = lines[labels[jump[1]] + 1 : at + 1]
            if not any(b.startswith(".LBB") for b in body):
                found.append(body)
    return found


def multiplies(body: list[str]) -> int:
    """Fused multiply-adds in a loop."""
    return sum(line.startswith(_MULTIPLY) for line in body)


def byte_multiplies(body: list[str]) -> int:
    """Multiplications of bytes in a loop (aarch64)."""
    return sum({"sdot": 16, "smmla": 32}.get(line.split()[0], 0) for line in body)


def uses_stack(body: list[str]) -> bool:
    """Whether a loop touches the stack, as spilled accumulators would."""
    return any("%rsp" in line or "[sp" in line for line in body)
