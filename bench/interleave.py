"""Times several runners of one model in turns: round by round, one process after the other, on an otherwise idle machine.

Absolute times mean little on a shared machine; the ratio of two runners within a round does.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Runner:
    """What to time: `name` is one of worker.RUNNERS, `recipe` the compression (None: dense)."""

    name: str
    recipe: str | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.recipe}" if self.recipe else self.name


@dataclass(frozen=True)
class Series:
    """Per round, the median milliseconds of a run; `setup_s` is loading or compiling plus the first run."""

    rounds: tuple[float, ...]
    setup_s: float

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        low, _, high = statistics.quantiles(self.rounds, n=4)
        return (high - low) / self.median


class WorkerError(Exception):
    """A worker could not load or run its model."""


class Worker:
    """One child process of worker.py."""

    def __init__(self, runner: Runner, model: str, threads: int) -> None:
        job = {"runner": runner.name, "recipe": runner.recipe, "model": model, "threads": threads}
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  read when the worker dies
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", json.dumps(job)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        try:
            self.setup_s: float = self._read()["setup_s"]
        except WorkerError:
            self.close()
            raise

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._log.seek(0)
            raise WorkerError(f"ended with status {status}: {self._log.read()[-500:].strip()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def time(self, runs: int) -> list[float]:
        """Milliseconds of each of `runs` runs."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"runs": runs}) + "\n")
        self._process.stdin.flush()
        return [ns / 1e6 for ns in self._read()["ns"]]

    def close(self) -> None:
        """End the process and wait for it."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()
        self._log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def interleave(
    model: str, runners: Sequence[Runner], threads: int, *, rounds: int = 9, round_s: float = 0.15
) -> tuple[dict[Runner, Series], dict[Runner, str]]:
    """(times, errors) of the runners that work and of those that do not.

    Each round lasts about `round_s` seconds a runner; the order of the runners is reversed every other round.
    """
    workers: dict[Runner, Worker] = {}
    errors: dict[Runner, str] = {}
    try:
        for runner in runners:
            try:
                workers[runner] = Worker(runner, model, threads)
            except WorkerError as error:
                errors[runner] = str(error)
        runs = {}
        for runner, worker in workers.items():
            once = min(worker.time(3))
            runs[runner] = max(1, min(500, round(1e3 * round_s / once)))
        taken: dict[Runner, list[float]] = {runner: [] for runner in workers}
        for index in range(max(4, rounds)):
            for runner in sorted(workers, key=list(workers).index, reverse=bool(index % 2)):
                time.sleep(0.01)  # the other's threads stop spinning
                taken[runner].append(statistics.median(workers[runner].time(runs[runner])))
        return {r: Series(tuple(t), workers[r].setup_s) for r, t in taken.items()}, errors
    finally:
        for worker in workers.values():
            worker.close()


def ratio(series: Mapping[Runner, Series], runner: Runner, base: Runner) -> float:
    """Median over rounds of time / base's time in the same round: below 1 is faster than `base`."""
    return statistics.median(a / b for a, b in zip(series[runner].rounds, series[base].rounds, strict=True))
