"""How much processor time other programs take while we measure (Linux; elsewhere the load counts as none)."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

LIMIT = 0.5
"""Processors that others may take in a round before it counts as disturbed."""

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
