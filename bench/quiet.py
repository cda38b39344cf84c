"""What the machine gives while we measure: how much other programs take, and how many cores there are for several threads.

The cores of a virtual machine are threads of the host's cores: when the host has put two of them on one core of its own, as it may for
seconds or minutes, two threads do the work of 1.15, though this system sees no other load (Linux; elsewhere nothing is seen).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from sparsec.codegen.machine import core_rates

LIMIT = 0.5
"""Processors that may be missing in a round, taken by other programs or by the host, before it counts as disturbed."""
_PROBE_S = 0.01

_PROC = Path("/proc")


def _busy(proc: Path) -> int:
    """Clock ticks all processors were busy since the machine started."""
    user, nice, system, _idle, _wait, irq, soft, steal, *_ = map(
        int, (proc / "stat").read_text().splitlines()[0].split()[1:]
    )
    return user + nice + system + irq + soft + steal


def _of_groups(proc: Path, groups: Sequence[int]) -> int:
    """Clock ticks spent by the processes of these process groups."""
    total = 0
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[2]) in groups:
            total += int(fields[11]) + int(fields[12])
    return total


class Watch:
    """Counts from its making what the machine does besides the process groups given."""

    def __init__(self, groups: Sequence[int], proc: Path = _PROC) -> None:
        self._groups, self._proc = tuple(groups), proc
        self._usable = (proc / "stat").is_file()
        self._start = self._others()
        self._clock = time.perf_counter()

    def _others(self) -> int:
        return _busy(self._proc) - _of_groups(self._proc, self._groups) if self._usable else 0

    def other_load(self) -> float:
        """Mean number of processors that others kept busy since."""
        seconds = (self._others() - self._start) / os.sysconf("SC_CLK_TCK")
        return max(0.0, seconds / (time.perf_counter() - self._clock))


class Cores:
    """Tells, again and again, how many cores' worth of multiply-adds the first `count` cores give when all are busy, and which core is the
    fastest: another machine's work may share one of them for seconds."""

    def __init__(self, count: int) -> None:
        self._all = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._cores = self._all[:count]
        self._count = count
        self._fastest = max((core_rates([core], _PROBE_S)[0] for core in self._cores for _ in range(2)), default=0.0)

    def best(self) -> tuple[int | None, float]:
        """(the core that is fastest now, its rate over the highest that any core has shown); (None, 1) where none can be chosen."""
        if not self._all:
            return None, 1.0
        rates = {core: core_rates([core], _PROBE_S / 2)[0] for core in self._all}
        self._fastest = max(self._fastest, *rates.values())
        core = max(rates, key=lambda core: rates[core])
        return core, rates[core] / self._fastest

    def at_once(self) -> float:
        """Cores' worth now: the rates of all at once over the highest rate that any core has shown."""
        if len(self._cores) < 2:
            return float(self._count)
        rates = core_rates(self._cores, _PROBE_S)
        self._fastest = max(self._fastest, *rates)
        return self._count * sum(rates) / (len(rates) * self._fastest)
