"""`python -m bench size`: code size of the runtime, resident memory of loaded bundles, compile and import time."""

from __future__ import annotations

import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.environments import ROOT
from bench.output import markdown, write_json

RUNTIME_LIMIT = 64 * 1024
RESIDENT_LIMIT = 1.2
IMPORT_LIMIT_S = 0.3

# Resident memory is counted as private and file pages of this process that loading and running a bundle adds.
_RESIDENT = """
import sys, numpy as np
from sparsec.runtime import Session
def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096
feed = dict(np.load(sys.argv[2]))
before = resident()
session = Session(sys.argv[1], threads=1)
for _ in range(2):
    session.run(feed)
print(resident() - before)
"""

_COMPILE = """
import sys, time, json
from bench.zoo import get
import sparsec
model = get(sys.argv[1])
path = model.onnx_file()
recipe = sys.argv[2] or None
start = time.perf_counter()
compiled = model.compile(recipe)
compiled.run(model.random_inputs())
print(time.perf_counter() - start)
"""

_IMPORT = "import time; t = time.perf_counter(); import sparsec; print(time.perf_counter() - t)"


def run(names: Sequence[str], recipes: Sequence[str], json_path: Path | None) -> int:
    """Print the tables; 1 if a limit is broken."""
    results: dict[str, Any] = {"runtime_text": _runtime_text(), "import_s": _import_s(), "bundles": []}
    print(f"runtime code without kernels on aarch64: {results['runtime_text']} bytes (limit {RUNTIME_LIMIT})")
    print(f"import sparsec: {results['import_s']:.3f} s (limit {IMPORT_LIMIT_S})\n")
    for name in names:
        for recipe in (None, *recipes):
            print(f"{name}, {recipe or 'dense'} ...", file=sys.stderr, flush=True)
            results["bundles"].append(_bundle(name, recipe))
    headers = ("model", "recipe", "weights KB", "arena KB", "resident KB", "x weights+arena", "cold s", "warm s")
    print(markdown(headers, [_row(b) for b in results["bundles"]], left=2))
    write_json(json_path, results)
    broken = results["runtime_text"] > RUNTIME_LIMIT or results["import_s"] > IMPORT_LIMIT_S
    return 1 if broken or any(b["ratio"] > RESIDENT_LIMIT for b in results["bundles"]) else 0


def code_bytes(path: Path) -> int:
    """Bytes of the executable sections of a 64-bit little-endian ELF file."""
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{path} is not a 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", data, 40)
    entry, count = struct.unpack_from("<HH", data, 58)
    total = 0
    for index in range(count):
        _, kind, flags, _, _, size = struct.unpack_from("<IIQQQQ", data, table + index * entry)
        if kind == 1 and flags & 4:  # SHT_PROGBITS, SHF_EXECINSTR
            total += size
    return total


def _runtime_text() -> int:
    from sparsec.codegen.toolchain import Toolchain
    from sparsec.target import resolve_target

    return sum(code_bytes(path) for path in Toolchain(resolve_target("arm")).runtime_objects())


def _child(code: str, *arguments: str, cache: str | None = None) -> float:
    """The number a child process prints last."""
    environment = {**os.environ, **({"SPARSEC_CACHE": cache} if cache else {})}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(done.stdout.split()[-1])


def _import_s() -> float:
    _child(_IMPORT)  # bytecode and file cache
    return statistics.median(_child(_IMPORT) for _ in range(5))


def _bundle(name: str, recipe: str | None) -> dict[str, Any]:
    import numpy as np

    from bench.zoo import get

    model = get(name)
    model.onnx_file()  # exported once, outside of the timing
    with tempfile.TemporaryDirectory(prefix="sparsec-bench-") as scratch:
        cold = _child(_COMPILE, name, recipe or "", cache=f"{scratch}/cache")
        warm = _child(_COMPILE, name, recipe or "", cache=f"{scratch}/cache")
        compiled = model.compile(recipe)
        folder = compiled.save(Path(scratch) / "bundle")
        weights = (folder / json.loads((folder / "manifest.json").read_text())["weights"]).stat().st_size
        np.savez(f"{scratch}/inputs.npz", allow_pickle=False, **model.random_inputs())
        resident = _child(_RESIDENT, str(folder), f"{scratch}/inputs.npz")
    planned = weights + compiled.ram_bytes - compiled.weights_bytes
    return {
        "model": name,
        "recipe": recipe,
        "weights": weights,
        "arena": planned - weights,
        "resident": resident,
        "ratio": resident / planned,
        "cold_s": cold,
        "warm_s": warm,
    }


def _row(b: dict[str, Any]) -> list[str]:
    return [
        b["model"],
        b["recipe"] or "dense",
        *(f"{b[key] / 1024:.0f}" for key in ("weights", "arena", "resident")),
        f"{b['ratio']:.2f}",
        f"{b['cold_s']:.1f}",
        f"{b['warm_s']:.2f}",
    ]
