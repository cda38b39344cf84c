"""`python -m bench instructions`: instructions a multiplication on aarch64, read from the assembly of int8 products.

Counted is the innermost loop that multiplies, with what it decodes, loads and scales. Where more rows of activations share a
tile than fit the registers, its weights are decoded once in a loop of their own, which is not counted.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.assembly import assembly, byte_multiplies, innermost_loops, uses_stack
from bench.output import markdown, write_json
from sparsec.codegen.kernels import byte_weights
from sparsec.formats import Scheme, encode, unpack
from sparsec.target import NAMED, Target

SCHEMES = ("int8", "int4-g32", "cb4", "cb4-g32", "cb3-g32", "cb2-g32", "ternary", "s16x1@50-cb4-g32", "vq2d4")
ROWS = (1, 2, 4, 8, 128)
TARGETS = ("arm", "arm-i8mm")
HEADERS = ("scheme", "rows", "sdot", "smmla", "sdot / smmla")


def parameters(scheme: str, m: int, target: Target, n: int = 64, k: int = 512) -> dict[str, Any]:
    """Parameters of gemv.py for m rows of activations and an [n, k] weight."""
    parsed, rng = Scheme.parse(scheme), np.random.default_rng(0)
    mask = None if parsed.is_dense else np.repeat(rng.random((n // 16, k)) < 0.5, 16, axis=0)
    weight = unpack(encode(rng.normal(size=(n, k)).astype(np.float32), parsed, mask=mask))
    packed = byte_weights.pack(weight, target, 0, "w", m)
    return {"m": m, "w": packed.params, "x_group": 0, "bias": False, "residual": False, "act": "", "act_params": []}


def product_loop(scheme: str, m: int, name: str) -> list[str]:
    """Instructions of the innermost loop with the most multiplications."""
    target = NAMED[name]
    with tempfile.TemporaryDirectory(prefix="sparsec-bench-") as folder:
        text = assembly("gemv", parameters(scheme, m, target), target, Path(folder))
    return max(innermost_loops(text), key=lambda body: (byte_multiplies(body), -len(body)))


def run(json_path: Path | None) -> int:
    """Print the table; * marks loops that touch the stack."""
    table, results = [], []
    for scheme in SCHEMES:
        for m in ROWS:
            loops = {name: product_loop(scheme, m, name) for name in TARGETS}
            each = {name: len(body) / byte_multiplies(body) for name, body in loops.items()}
            spills = {name: uses_stack(body) for name, body in loops.items()}
            results.append({"scheme": scheme, "rows": m, "instructions": each, "spills": spills})
            cells = [f"{each[name]:.3f}{'*' if spills[name] else ''}" for name in TARGETS]
            table.append([scheme, str(m), *cells, f"{each['arm'] / each['arm-i8mm']:.2f}"])
    print(markdown(HEADERS, table))
    write_json(json_path, {"instructions": results})
    return 0
