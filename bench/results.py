"""Judging times: ours against the fastest of the rivals that a bar names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.contests import Bar, Candidate
from bench.interleave import Series, speedup


def judge(
    bar: Bar, ours: Candidate, series: Mapping[Candidate, Series], memory_share: float | None = None
) -> dict[str, Any]:
    """Our time, the fastest timed rival's, their ratio, and whether the bar is met (None: no bar, or a figure is missing).

    memory_share: of main memory's bandwidth, where it is known.
    """
    mine = series[ours]
    timed = [r for r in bar.rivals if r in series and r != ours]
    best = min(timed, key=lambda r: series[r].median, default=None)
    times = speedup(series, ours, best) if best else None
    return {
        "us": mine.median,
        "spread": mine.spread,
        "rounds_us": list(mine.rounds),
        "memory_share": memory_share,
        "rival": str(best) if best else None,
        "rival_us": series[best].median if best else None,
        "rival_spread": series[best].spread if best else None,
        "speedup": times,
        "bar": bar.factor or None,
        "bar_memory_share": bar.memory_share or None,
        "met": met(bar, times, memory_share),
        "others_us": {str(c): s.median for c, s in series.items() if c in bar.rivals},
        "not_timed": [str(r) for r in bar.rivals if r not in series],
    }


def met(bar: Bar, times: float | None, memory_share: float | None) -> bool | None:
    """Whether a bar is passed."""
    if not bar.factor or times is None:
        return None
    if times < bar.factor:
        return False
    if bar.memory_share:
        return None if memory_share is None else memory_share >= bar.memory_share
    return True


def bar_text(r: Mapping[str, Any]) -> str:
    """The cell for a result's bar."""
    text = "-" if r["bar"] is None else f"{r['bar']:.1f}"
    return f"{text}, {100 * r['bar_memory_share']:.0f} % roof" if r["bar_memory_share"] else text


def met_text(r: Mapping[str, Any]) -> str:
    """The cell for whether it is met; "?" where a figure is missing."""
    if r["met"] is None:
        return "-" if r["bar"] is None else "?"
    return "yes" if r["met"] else "no"


def number(value: float | None, digits: int, scale: float = 1.0) -> str:
    """A figure, or "-" where there is none."""
    return "-" if value is None else f"{value * scale:.{digits}f}"


def absent_text(absent: Mapping[str, str]) -> str:
    """Who was not timed and why: a paragraph for every reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in sorted(absent.items()):
        reasons.setdefault(reason, []).append(name)
    return "".join(f"\n{'; '.join(names)}: {reason}\n" for reason, names in reasons.items())
