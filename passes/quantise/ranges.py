"""Ranges of static int8 activations: a histogram over many samples, and the range whose rounding loses least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Histogram", "Range", "best_range"]

Floats = NDArray[np.floating[Any]]

STEPS = 255
"""A byte's numbers less one."""
_HALF = 2048
_SHARES = np.linspace(1.0, 0.4, 21)
"""Shares of the extremes that are tried as limits."""


@dataclass(frozen=True)
class Range:
    """Whole numbers from `low` to `high` of `scale`; zero is one of them, high - low at most 255."""

    scale: float
    low: int
    high: int


class Histogram:
    """Counts of values in equal bins on either side of zero; the width doubles where a value lies beyond, which merges bins in pairs."""

    def __init__(self) -> None:
        self.least = self.most = 0.0
        self.reach = 0.0
        self.counts = np.zeros(2 * _HALF, np.int64)

    def add(self, x: Floats, counted: Floats) -> None:
        """x: every value, for the extremes; counted: those that are put into bins. Both finite."""
        if not x.size:
            return
        self.least, self.most = min(self.least, float(x.min())), max(self.most, float(x.max()))
        largest = max(-self.least, self.most)
        if not largest:
            self.counts[_HALF] += counted.size
            return
        if not self.reach:
            self.reach = float(2.0 ** np.ceil(np.log2(largest)))
        while self.reach < largest:
            self.reach *= 2
            inner = self.counts.reshape(_HALF, 2).sum(axis=1)
            self.counts = np.zeros_like(self.counts)
            self.counts[_HALF // 2 : _HALF // 2 * 3] = inner
        place = np.floor(counted.ravel() * (_HALF / self.reach)).astype(np.int64) + _HALF
        self.counts += np.bincount(np.clip(place, 0, 2 * _HALF - 1), minlength=2 * _HALF)

    def points(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(centres, counts) of the bins that hold something; zeros stand for nothing but themselves."""
        held = np.flatnonzero(self.counts)
        width = self.reach / _HALF
        return np.asarray((held - _HALF + 0.5) * width, np.float64), self.counts[held]


def best_range(found: Histogram) -> Range:
    """The range with the least squared error of rounding and clipping, among shares of both extremes.

    One range a tensor, as MobileQuant has it (Tan, Lee, Dudziak et al., "MobileQuant: Mobile-friendly quantization for on-device
    language models", 2024), which trains it; what is minimised here is OCTAV's aim (Sakr, Dai, Venkatesan et al., "Optimal clipping and
    magnitude-aware differentiation for improved quantization-aware training", 2022). Values of one sign have all 256 numbers for it.
    """
    if found.least == found.most == 0:
        return Range(1.0, 0, STEPS)
    centres, counts = found.points()
    best, chosen = np.inf, Range(1.0, 0, STEPS)
    for down in _SHARES if found.least else (1.0,):
        for up in _SHARES if found.most else (1.0,):
            tried = _range(down * found.least, up * found.most)
            error = float((counts * _loss(centres, tried)).sum())
            if error < best:
                best, chosen = error, tried
    return chosen


def _range(least: float, most: float) -> Range:
    """The finest scale whose 256 numbers, zero among them, reach from `least` (at most 0) to `most` (at least 0)."""
    scale = (most - least) / STEPS
    low = round(least / scale)
    # rounding the zero point may leave one end half a step outside: that end decides then
    scale = max(-least / -low if low else 0.0, most / (low + STEPS) if low + STEPS else 0.0)
    return Range(float(np.float32(scale)), low, low + STEPS)


def _loss(x: NDArray[np.float64], tried: Range) -> NDArray[np.float64]:
    rounded = np.clip(np.rint(x / tried.scale), tried.low, tried.high) * tried.scale
    return np.asarray(np.square(rounded - x))
