"""JSON lines between the benchmark and the process that runs one candidate.

    {"prepare": {...}}  ->  {"ready": true, "setup_s": s, "layers": n, "bytes": b, "note": text}
                            {"cannot": reason}    this candidate has no such kernel or format: no fault
                            {"error": text}       it should have worked
    {"run": n}          ->  {"ns": [...]}         wall time of each of n runs, nanoseconds

A second "prepare" replaces the first; the process ends with its standard input. What libraries print goes to standard error.
Imports the standard library only and runs on Python 3.10: it is loaded in every rival's own environment.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Job = Mapping[str, Any]


class CannotError(Exception):
    """This candidate does not offer what the job asks for; the message says what is missing."""


@dataclass
class Prepared:
    """A job that is ready to run.

    run does all `layers` layers once (give it, or `times`); times(n) returns the nanoseconds of n runs, for candidates that
    keep the clock themselves. stored is the bytes of weights that one layer reads (0: unknown).
    """

    run: Callable[[], object] | None = None
    times: Callable[[int], list[int]] | None = None
    layers: int = 1
    stored: int = 0
    note: str = ""

    def measure(self, count: int) -> list[int]:
        """Nanoseconds of each of `count` runs."""
        if self.times is not None:
            return self.times(count)
        assert self.run is not None
        run, taken = self.run, []
        for _ in range(count):
            begin = time.perf_counter_ns()
            run()
            taken.append(time.perf_counter_ns() - begin)
        return taken


def serve(prepare: Callable[[Job], Prepared]) -> None:
    """Answer requests until standard input ends."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(message: Mapping[str, Any]) -> None:
        print(json.dumps(message), file=channel, flush=True)

    prepared: Prepared | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "prepare" in request:
                prepared = None
                gc.collect()
                begin = time.perf_counter()
                prepared = prepare(request["prepare"])
                prepared.measure(1)
                seconds = time.perf_counter() - begin
                answer(
                    {
                        "ready": True,
                        "setup_s": seconds,
                        "layers": prepared.layers,
                        "bytes": prepared.stored,
                        "note": prepared.note,
                    }
                )
            elif prepared is None:
                answer({"error": "run before prepare"})
            else:
                answer({"ns": prepared.measure(request["run"])})
        except CannotError as reason:
            answer({"cannot": str(reason)})
        except Exception as error:  # the table shows it
            answer({"error": f"{type(error).__name__}: {error}"})


def random_bytes(seed: int, count: int) -> bytearray:
    """Reproducible bytes for packed weights: what they hold does not change the time of a dense kernel."""
    import random

    return bytearray(random.Random(seed).randbytes(count))
