"""Timing: several runners of the same work, interleaved, medians; and the memory a model takes in onnxruntime."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sparsec.tables import Table


@dataclass(frozen=True)
class Timing:
    """Median wall times in milliseconds by runner, from `rounds` rounds in which the runners took turns."""

    medians: dict[str, float]
    rounds: int
    threads: int

    def ratio(self, name: str, base: str) -> float:
        """Time of `name` over time of `base`: below 1 means faster."""
        return self.medians[name] / self.medians[base]

    def table(self) -> Table:
        """Medians, and the time of each over that of the last runner."""
        base = list(self.medians)[-1]
        rows = tuple((name, f"{ms:.3f}", f"{self.ratio(name, base):.2f}") for name, ms in self.medians.items())
        title = f"{self.rounds} rounds in turns, {self.threads} thread{'s' if self.threads > 1 else ''}"
        return Table(title, ("", "ms median", f"x {base}"), rows)

    def to_json(self) -> dict[str, Any]:
        return {"median_ms": dict(self.medians), "rounds": self.rounds, "threads": self.threads}


def interleaved(
    runners: Mapping[str, Callable[[], object]],
    *,
    threads: int,
    seconds: float = 2.0,
    least: int = 5,
    most: int = 1000,
) -> Timing:
    """Time the runners in turns, so that a noisy machine disturbs all of them alike.

    Runs each once to warm up, then rounds until `seconds` have passed, but at least `least` and at most `most`.
    """
    for run in runners.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runners}
    rounds, start = 0, time.perf_counter()
    while rounds < least or (rounds < most and time.perf_counter() - start < seconds):
        for name, run in runners.items():
            begin = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - begin))
        rounds += 1
    return Timing({name: statistics.median(values) for name, values in times.items()}, rounds, threads)


_CHILD = """
import sys
import numpy as np
import onnxruntime as ort

def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096

options = ort.SessionOptions()
options.intra_op_num_threads = int(sys.argv[3])
options.log_severity_level = 4
with np.load(sys.argv[2]) as archive:
    feed = {name: archive[name] for name in archive.files}
before = resident()
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {i.name: feed[i.name] for i in session.get_inputs()})
print(resident() - before)
"""


def onnxruntime_resident_bytes(model_path: str, inputs_path: str, threads: int) -> int | None:
    """Growth of a fresh process's resident memory through loading and running an ONNX file in onnxruntime.

    `inputs_path` is an .npz by input name. None where the system does not tell (no /proc).
    """
    if not sys.platform.startswith("linux"):
        return None
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, model_path, inputs_path, str(threads)],
        capture_output=True,
        text=True,
        check=False,
    )
    return int(done.stdout) if done.returncode == 0 else None
