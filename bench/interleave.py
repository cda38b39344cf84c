"""Times candidates in turns: round by round, one process after the other, so that a slow spell of the machine hits all alike.

Absolute times mean little on a shared machine; the ratio of two candidates within a round does. Rounds in which other programs or the
host took more than half a processor are repeated (quiet.py), so far as patience goes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Hashable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from bench import quiet
from bench.contests import Candidate
from bench.environments import ROOT, Command, NotSetUpError, worker_command

Key = TypeVar("Key", bound=Hashable)

PREPARE_LIMIT_S = 900.0
"""A worker that is not ready by then is ended."""
PATIENCE = 3
"""At most this many times the rounds that were asked for."""


@dataclass(frozen=True)
class Series:
    """Per round, the lower quartile of the microseconds of one layer (of one run, for a whole model)."""

    rounds: tuple[float, ...]
    stored: int = 0
    """Bytes of weights a layer reads, 0: unknown."""
    note: str = ""
    cores: float = 1.0
    """Cores' worth of multiply-adds that the machine gave to as many threads as were asked for, median of the rounds."""

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        low, _, high = statistics.quantiles(self.rounds, n=4)
        return (high - low) / self.median


class WorkerError(Exception):
    """A worker could not load or run its job."""


class CannotError(WorkerError):
    """A worker has nothing for the job: the candidate does not offer that kernel or format."""


class Worker:
    """A child process that speaks the protocol of rivals/protocol.py."""

    def __init__(self, command: Command) -> None:
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  read when the worker dies
        self._process = subprocess.Popen(
            command.arguments, cwd=ROOT, env=command.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log, text=True, start_new_session=True,
        )  # fmt: skip
        self.layers = 1
        self.stored = 0
        self.note = ""

    @property
    def group(self) -> int:
        """Process group of the worker and of what it starts."""
        return self._process.pid

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self._process.wait()
            self._log.seek(0)
            raise WorkerError(f"ended with status {status}: {self._log.read()[-500:].strip()}")
        answer: dict[str, Any] = json.loads(line)
        if "cannot" in answer:
            raise CannotError(answer["cannot"])
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def prepare(self, job: Mapping[str, Any]) -> float:
        """Load a job and run it once; returns the seconds that took. Raises WorkerError, CannotError."""
        watch = threading.Timer(PREPARE_LIMIT_S, self._process.kill)
        watch.start()
        try:
            answer = self._ask({"prepare": job})
        finally:
            watch.cancel()
        self.layers, self.stored, self.note = answer["layers"], answer["bytes"], answer["note"]
        return float(answer["setup_s"])

    def time(self, runs: int) -> list[float]:
        """Microseconds a layer of each of `runs` runs. Raises WorkerError."""
        return [ns / 1e3 / self.layers for ns in self._ask({"run": runs})["ns"]]

    def move_to(self, core: int) -> None:
        """Keep all threads of the process on one core, whatever they chose themselves (Linux)."""
        for thread in Path("/proc").glob(f"{self._process.pid}/task/*"):
            with suppress(OSError):  # it ended meanwhile
                os.sched_setaffinity(int(thread.name), {core})

    def close(self) -> None:
        """End the process and wait for it."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def interleave(
    workers: Mapping[Key, Worker], *, rounds: int = 9, round_s: float = 0.1, threads: int = 1
) -> tuple[dict[Key, Series], dict[Key, str]]:
    """(times, errors) of workers that are prepared.

    Each round lasts about `round_s` seconds a worker; their order is reversed every other round. `threads`: the most that a worker has.
    Where that is one, each turn is on the core that is the fastest just before it.
    """
    errors: dict[Key, str] = {}
    runs: dict[Key, int] = {}
    for key, worker in workers.items():
        try:
            once = min(worker.time(3)) * worker.layers
            runs[key] = max(1, min(2000, round(1e6 * round_s / once)))
        except WorkerError as error:
            errors[key] = str(error)
    taken: dict[Key, list[float]] = {key: [] for key in runs}
    missing: list[float] = []
    cores: list[float] = []
    machine = quiet.Cores(threads)
    wanted = max(4, rounds)
    for index in range(wanted * PATIENCE):
        given: list[float] = []
        others = 0.0
        for key in list(runs)[:: -1 if index % 2 else 1]:
            watch = quiet.Watch([os.getpgrp(), *(workers[other].group for other in runs)])
            time.sleep(0.01)  # the other's threads stop spinning
            if threads == 1:
                core, share = machine.best()
                if core is not None:
                    workers[key].move_to(core)
                given.append(share)
            else:
                given.append(machine.at_once())  # just before: the host places cores that have been idle anew
            try:
                taken[key].append(_typical(workers[key].time(runs[key])))
            except WorkerError as error:
                errors[key] = str(error)
                del runs[key], taken[key]
            others += watch.other_load()
        if not runs:
            break
        cores.append(statistics.fmean(given))
        missing.append(others / len(given) + threads - cores[-1])
        if sum(lost < quiet.LIMIT for lost in missing) >= wanted:
            break
    kept = _quietest(missing, wanted)
    return {
        key: Series(
            tuple(times[i] for i in kept),
            workers[key].stored,
            workers[key].note,
            statistics.median(cores[i] for i in kept),
        )
        for key, times in taken.items()
    }, errors


def _typical(times: Sequence[float]) -> float:
    """Lower quartile: of runs so short, up to half lose a time slice to other programs on a busy machine."""
    return sorted(times)[len(times) // 4]


def _quietest(missing: Sequence[float], count: int) -> list[int]:
    """Indices, in order, of the `count` rounds in which the fewest processors were missing."""
    return sorted(sorted(range(len(missing)), key=lambda i: missing[i])[:count])


def speedup(series: Mapping[Key, Series], ours: Key, rival: Key) -> float:
    """Median over rounds of the rival's time / ours in the same round: above 1 we are faster."""
    return statistics.median(b / a for a, b in zip(series[ours].rounds, series[rival].rounds, strict=True))


def start(
    candidate: Candidate,
    job: Mapping[str, Any],
    workers: dict[Candidate, Worker],
    stack: ExitStack,
    problems: list[str],
    absent: dict[str, str],
    where: str = "",
) -> None:
    """Add a prepared worker that lives as long as `stack`, or note in `problems` or `absent` why there is none."""
    worker: Worker | None = None
    try:
        worker = Worker(worker_command(candidate.family, job["threads"]))
        worker.prepare(job)
    except NotSetUpError as reason:
        absent[candidate.family] = str(reason)
    except CannotError as reason:
        absent[f"{where}{candidate}"] = str(reason)
    except WorkerError as error:
        problems.append(f"{where}{candidate}: {error}")
    else:
        workers[candidate] = stack.enter_context(worker)
        return
    if worker is not None:
        worker.close()
