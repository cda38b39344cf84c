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
from sparsec.codegen.kernels import byte_weights, vector_weights
from sparsec.formats import Scheme, encode, unpack
from sparsec.target import NAMED, Target

SCHEMES = ("int8", "int4-g32", "cb4", "cb4-g32", "cb3-g32", "cb2-g32", "ternary", "s16x1@50-cb4-g32", "vq2d4")
ROWS = (1, 2, 4, 8, 128)
TARGETS = ("arm", "arm-i8mm")
HEADERS = ("scheme", "rows", "sdot", "smmla", "sdot / smmla")


def kernel(scheme: str, m: int, target: Target, n: int = 256, k: int = 1024) -> tuple[str, dict[str, Any]]:
    """Family and parameters of the kernel for m rows of activations and an [n, k] weight."""
    parsed, rng = Scheme.parse(scheme), np.random.default_rng(0)
    mask = None if parsed.is_dense else np.repeat(rng.random((n // 16, k)) < 0.5, 16, axis=0)
    weight = unpack(encode(rng.normal(size=(n, k)).astype(np.float32), parsed, mask=mask))
    rest = {"x_group": 0, "bias": False, "residual": False, "act": "", "act_params": []}
    if m == 1 and not vector_weights.refused(weight, target, 0, whole=True):
        return "vector_gemv", {**vector_weights.pack(weight, target, 0, whole=True)[0], **rest}
    return "gemv", {"m": m, "w": byte_weights.pack(weight, target, 0, "w", m).params, **rest}


def multiplications(body: list[str]) -> int:
    """Of bytes; where products are looked up instead, four for every entry of two bytes."""
    return byte_multiplies(body) or 32 * sum(line.startswith("tbl") for line in body)


def product_loop(scheme: str, m: int, name: str) -> list[str]:
    """Instructions of the innermost loop with the most multiplications."""
    target = NAMED[name]
    with tempfile.TemporaryDirectory(prefix="sparsec-bench-") as folder:
        text = assembly(*kernel(scheme, m, target), target, Path(folder))
    return max(innermost_loops(text), key=lambda body: (byte_multiplies(body), multiplications(body), -len(body)))


def run(json_path: Path | None) -> int:
    """Print the table; * marks loops that touch the stack."""
    table, results = [], []
    for scheme in SCHEMES:
        for m in ROWS:
            loops = {name: product_loop(scheme, m, name) for name in TARGETS}
            each = {name: len(body) / multiplications(body) for name, body in loops.items()}
            spills = {name: uses_stack(body) for name, body in loops.items()}
            results.append({"scheme": scheme, "rows": m, "instructions": each, "spills": spills})
            cells = [f"{each[name]:.3f}{'*' if spills[name] else ''}" for name in TARGETS]
            table.append([scheme, str(m), *cells, f"{each['arm'] / each['arm-i8mm']:.2f}"])
    print(markdown(HEADERS, table))
    write_json(json_path, {"instructions": results})
    return 0
