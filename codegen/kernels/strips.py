"""Strips of planes in scratch: the input rows of some rows of results, with their padding, columns sorted by the phase of a strided window.

Padding becomes ordinary elements there, and the taps of neighbouring results are neighbours in memory: what reads a strip has no
branches and no strided loads.
"""

from __future__ import annotations

from math import ceil
from typing import Any

from sparsec.codegen.kernels.window import Window


def pitch(w: Window, results: int) -> int:
    """Elements of a phase of a line, for rows of so many results (as many as vectors of them reach)."""
    phases = w.strides[1]
    reach = results + ((w.kernel[1] - 1) * w.dilations[1]) // phases
    found = max(reach, (w.size[1] - 1 + w.pads[1]) // phases + 1)
    return found + 16 if found * phases % 1024 == 0 else found  # lines must not share their cache sets


def lines(w: Window, rows: int) -> int:
    """Input rows that so many rows of results reach."""
    return (rows - 1) * w.strides[0] + (w.kernel[0] - 1) * w.dilations[0] + 1


def copy_run(k: Any, src: Any, s: Any, dst: Any, d: Any, count: int) -> None:
    """Copy `count` neighbouring elements; the last vector overlaps the one before."""
    lanes = k.lanes
    while lanes > count:
        lanes //= 2
    whole = count // lanes
    if whole <= 8:
        for i in range(whole):
            k.store(dst, d + i * lanes, k.load(src, s + i * lanes, lanes), lanes)
    else:
        with k.T.serial(0, whole) as i:
            k.store(dst, d + i * lanes, k.load(src, s + i * lanes, lanes), lanes)
    if count % lanes:
        at = count - lanes
        k.store(dst, d + at, k.load(src, s + at, lanes), lanes)


def fill_run(k: Any, dst: Any, d: Any, count: int, value: float) -> None:
    """Set `count` neighbouring elements; the last vector overlaps the one before."""
    lanes = k.lanes
    while lanes > count:
        lanes //= 2
    with k.T.serial(0, count // lanes) as i:
        k.store(dst, d + i * lanes, k.f32(value, lanes), lanes)
    if count % lanes:
        k.store(dst, d + (count - lanes), k.f32(value, lanes), lanes)


class Filler:
    """Brings rows of argument `x` into strips of `lines` lines in argument `scratch`, where a line is a run of `pitch` elements a phase.

    whole: a strip is a whole plane, so that its lines outside of the image hold the padding since the kernel began.
    """

    def __init__(self, k: Any, w: Window, *, pitch: int, lines: int, whole: bool, pad: float) -> None:
        self.k, self.T, self.w, self.scratch = k, k.T, w, k.arg("scratch")
        self.phases, self.pitch, self.lines, self.whole, self.pad = w.strides[1], pitch, lines, whole, pad
        self.line = self.phases * pitch

    def fill(self, source: Any, first: Any, place: Any) -> None:
        """Bring the input rows of a strip that starts at output row `first` into the scratch image at `place`."""
        T, k, w = self.T, self.k, self.w
        height, width = w.size
        if self.whole:  # rows outside the image hold the padding since the kernel began
            lo, hi = w.pads[0], min(self.lines, w.pads[0] + height)
            if lo < hi:
                with T.serial(lo, hi) as line:
                    self._copy_line(T.bind(source + (line - w.pads[0]) * width), T.bind(place + line * self.line))
            return
        with T.serial(0, self.lines) as line:
            y = T.bind(first * w.strides[0] - w.pads[0] + line)
            with T.If(T.And(y >= 0, y < height)):
                with T.Then():
                    self._copy_line(T.bind(source + y * width), T.bind(place + line * self.line))
                with T.Else():
                    fill_run(k, self.scratch, place + line * self.line, self.line, self.pad)

    def _copy_line(self, s: Any, d: Any) -> None:
        """One row of the image to its line of scratch: column i goes to padded column i + pad, that to (phase, index)."""
        T, k, w = self.T, self.k, self.w
        x, width, pad = k.arg("x"), w.size[1], w.pads[1]

        def place(i: Any, column: int) -> Any:  # `i` and `column` have the same phase
            return d + (column + pad) % self.phases * self.pitch + (i + pad) // self.phases

        if self.phases == 1:
            copy_run(k, x, s, self.scratch, d + pad, width)
            return
        lanes = k.lanes
        while lanes > 1 and 2 * lanes > width:
            lanes //= 2
        if self.phases != 2 or lanes < 2:
            for phase in range(min(self.phases, width)):
                with T.serial(0, ceil((width - phase) / self.phases)) as i:
                    k.store(self.scratch, place(phase, phase) + i, k.load(x, s + (i * self.phases + phase)))
            return
        # All places of a phase differ by the same amount: the vectors of even and of odd columns.
        even, odd = place(0, 0), place(1, 1)
        blocks = width // (2 * lanes)

        def sort(i: Any) -> None:  # i is even
            a = T.bind(k.load(x, s + i, lanes))
            b = T.bind(k.load(x, s + i + lanes, lanes))
            k.store(self.scratch, even + i // 2, T.Shuffle([a, b], list(range(0, 2 * lanes, 2))), lanes)
            k.store(self.scratch, odd + i // 2, T.Shuffle([a, b], list(range(1, 2 * lanes, 2))), lanes)

        for block in range(blocks):
            sort(block * 2 * lanes)
        if width % (2 * lanes) > 1:
            sort((width - 2 * lanes) // 2 * 2)
        if width % 2:
            k.store(self.scratch, place(width - 1, width - 1), k.load(x, s + (width - 1)))
