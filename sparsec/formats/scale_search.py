"""Scales that minimise the squared error of rounding, instead of reaching the largest value.

Clipping a few large values buys a finer grid for all others. Candidates are the ratios 1.0, 0.975 .. 0.5 of the scale that reaches
the largest value; the best of each group is refined by least squares: with the levels l fixed, sum (w - s l)^2 is smallest at
s = <w, l> / <l, l>. A candidate is judged as it is stored (rounded to fp16 for groups), and replaced only by a smaller error, so
the result is never worse than the plain scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from sparsec.formats.row_stream import RowStream

__all__ = ["RATIOS", "Fit", "best_fit", "search_scales"]

RATIOS = tuple(1 - step / 40 for step in range(21))
_REFINEMENTS = 3
# Values handled at a time: what stays in a core's cache.
_CHUNK = 1 << 16

Levels = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""values / scale [a, g, n] and the fit's zero points [a, g, 1] -> the levels they are rounded to, float32."""

Candidates = Callable[[float], Sequence[tuple[np.ndarray, np.ndarray | None]]]
"""Clipping ratio -> scales and zero points (None: all 0) [A, G] to try."""


class Fit:
    """The best scales [A, G] (as stored) and zero points (float32 [A, G]) found so far for values [A, G, n]."""

    def __init__(self, stream: RowStream, values: np.ndarray, levels: Levels) -> None:
        self.stream, self.levels = stream, levels
        a, g, n = values.shape
        # Small groups lie side by side, so that numpy's inner loops run over many of them and not over the few values of one.
        self.outer = n <= 1024
        self.values = np.ascontiguousarray(values.transpose(2, 0, 1)) if self.outer else values
        self.counts: np.ndarray | None = None
        if stream.importance is not None:
            counts = stream.shared(stream.importance)
            self.counts = np.ascontiguousarray(counts.transpose(2, 0, 1)) if self.outer else counts
        self.scales = stream.stored_scales(np.zeros((a, g), np.float32))
        self.zeros = np.zeros((a, g), np.float32)
        self.error = np.full((a, g), np.inf)
        self.started = False

    def offer(self, scales: np.ndarray, zeros: np.ndarray | None = None) -> None:
        """Take a candidate where its error is smaller."""
        stored = self.stream.stored_scales(scales)
        zeros = np.zeros(stored.shape, np.float32) if zeros is None else zeros
        with np.errstate(over="ignore", invalid="ignore"):
            error = self._sums(stored, zeros)[0]
        # The first is taken in any case: the squares of extreme weights do not fit fp32.
        better = error < self.error if self.started else np.ones(stored.shape, bool)
        self.started = True
        self.scales = np.where(better, stored, self.scales)
        self.zeros = np.where(better, zeros, self.zeros)
        self.error = np.where(better, error, self.error)

    def refine(self) -> None:
        """Least squares for the levels of the best candidate, then rounding again, a few times."""
        for _ in range(_REFINEMENTS):
            with np.errstate(over="ignore", invalid="ignore"):
                _, dots, norms = self._sums(self.scales, self.zeros)
            before = self.error
            known = (norms > 0) & np.isfinite(dots)
            self.offer(np.where(known, dots / np.where(known, norms, 1), self.scales), self.zeros)
            if not (self.error < before).any():
                return

    def _sums(self, scales: np.ndarray, zeros: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Squared error, <w, l> and <l, l> of each group, weighted by importance, float64 [A, G]."""
        sums = np.zeros((3, *scales.shape))
        wide = scales.astype(np.float32)
        # A scale so small that its inverse is infinite would make NaN of 0; such a group counts as having no scale.
        usable = np.abs(wide) > np.float32(1e-37)
        inverse = np.where(usable, np.float32(1) / np.where(usable, wide, np.float32(1)), np.float32(0))
        dot = "nag,nag->ag" if self.outer else "agn,agn->ag"

        def spread(array: np.ndarray) -> np.ndarray:
            return array[None] if self.outer else array[..., None]

        for rows, part in self._chunks():
            w = self.values[:, rows] if self.outer else self.values[rows, :, part]
            level = self.levels(w * spread(inverse[rows]), spread(zeros[rows]))
            counted = level
            if self.counts is not None:
                counts = self.counts[:, rows] if self.outer else self.counts[rows, :, part]
                counted = level * counts
            sums[1, rows] += np.einsum(dot, w, counted)
            sums[2, rows] += np.einsum(dot, level, counted)
            level *= spread(wide[rows])
            level -= w
            sums[0, rows] += np.einsum(dot, level, level if self.counts is None else level * counts)
        return sums[0], sums[1], sums[2]

    def _chunks(self) -> Iterator[tuple[slice, slice]]:
        a, g = self.scales.shape
        n = self.values.size // (a * g)
        rows = max(1, _CHUNK // (g * n))
        width = n if self.outer or rows > 1 else max(1, _CHUNK // g)
        for row in range(0, a, rows):
            for start in range(0, n, width):
                yield slice(row, row + rows), slice(start, start + width)


def best_fit(stream: RowStream, values: np.ndarray, levels: Levels, candidates: Candidates) -> Fit:
    """The best scales of values [A, G, n] among the candidates of every ratio, refined."""
    fit = Fit(stream, values, levels)
    for ratio in RATIOS:
        for candidate in candidates(ratio):
            fit.offer(*candidate)
    fit.refine()
    return fit


def search_scales(
    stream: RowStream,
    values: np.ndarray,
    low: float,
    high: float,
    nearest: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Scales [A, G], as stored, of values [A, G, n] float32 for levels from low < 0 to high > 0 with 0 among them.

    nearest: values / scale to levels, float32; may work in place. When the levels reach further down than up (integers do), a
    negative scale puts the largest value at the lower end: both are tried.
    """
    bottom, top = values.min(2), values.max(2)
    plain = np.maximum(np.abs(bottom), np.abs(top)) / np.float32(high)
    signed = np.where(top > -bottom, top, bottom) / np.float32(low) if low < -high else None

    def candidates(ratio: float) -> list[tuple[np.ndarray, None]]:
        found: list[tuple[np.ndarray, None]] = [(plain * np.float32(ratio), None)]
        return found if signed is None else [*found, (signed * np.float32(ratio), None)]

    return best_fit(stream, values, lambda x, _: nearest(x), candidates).scales
