"""Compiled models in an archive: put there where the compiler is, opened where Python, numpy and NVIDIA's driver are."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

import sparsec
from bench.blobs import BlobReader, BlobWriter

if TYPE_CHECKING:
    from sparsec.codegen.bundle import Compiled
    from sparsec.codegen.program import Program
    from sparsec.runtime import Session

Array = np.ndarray[Any, Any]
Entry = Mapping[str, Any]

_RUNS = 200

sparsec.__path__.append(str(Path(__file__).parents[1]))  # finds the runtime of a checkout that is not installed


def put_model(
    name: str, program: Program, feed: Mapping[str, Array], wanted: Mapping[str, Array], bound: float, blobs: BlobWriter
) -> tuple[dict[str, Any], Compiled]:
    """An entry of the archive, and the program compiled. bound: of the largest error over the largest output."""
    from sparsec.codegen.bundle import build_loadable, compile_program

    compiled = compile_program(program)
    built = build_loadable(compiled)
    entry = {
        "name": name,
        "model": program.name,
        "library": blobs.put(built.library.read_bytes(), "libraries"),
        "weights": blobs.put(built.weights.tobytes(), "weights"),
        "inputs": {info.name: blobs.put_array(feed[info.name]) for info in program.inputs},
        "outputs": {info.name: blobs.put_array(wanted[info.name]) for info in program.outputs},
        "bound": bound,
    }
    return entry, compiled


@contextmanager
def opened(archive: BlobReader, entry: Entry) -> Iterator[Session]:
    """The model in the C runtime. Raises SparsecError."""
    from sparsec.runtime import Session

    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / f"{entry['model']}.so", Path(folder) / "weights.bin"
        for path, key in zip(files, ("library", "weights"), strict=True):
            path.write_bytes(archive.get(entry[key]))
        with Session(*files) as session:
            yield session


def feed_of(archive: BlobReader, entry: Entry) -> dict[str, Array]:
    """The recorded inputs."""
    return {name: archive.array(kept) for name, kept in entry["inputs"].items()}


def error_of(archive: BlobReader, entry: Entry, found: Mapping[str, Array]) -> float:
    """The largest error over the largest wanted output, of the worst output; infinite where one is not a number."""
    errors = [0.0]
    for name, kept in entry["outputs"].items():
        wanted = archive.array(kept).astype(np.float64)
        gap = np.abs(found[name].astype(np.float64) - wanted).max(initial=0.0)
        errors.append(float(gap / (np.abs(wanted).max(initial=0.0) or 1.0)))
    return max(errors) if np.isfinite(errors).all() else float("inf")


def wall_seconds(run: Callable[[], Any], runs: int = _RUNS) -> float:
    """Median time of a call that waits for its end."""
    times = []
    for index in range(runs + runs // 10):
        begin = time.perf_counter()
        run()
        if index >= runs // 10:
            times.append(time.perf_counter() - begin)
    return median(times)
