"""Sliding windows over planes that have zeros around them: what planes.py brings into scratch first is read where it lies.

Memory holds a strip of every plane: `lines` rows, each `left` zeros and the image's columns; the zeros on a row's right are those on
the left of the next one. Strips follow one another from the top of the image, and the rows that two of them share are moved. Every
tap of a tile is a vector in memory; a step of two columns takes two vectors and the even or the odd ones of their elements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from sparsec.codegen.isa.vecmath import bind, hold
from sparsec.codegen.kernels.plane_tiles import MAX_UNROLL, Hooks, Tiles
from sparsec.codegen.kernels.strips import copy_run, fill_run
from sparsec.codegen.kernels.strips import lines as reached
from sparsec.codegen.kernels.window import Window
from sparsec.target import Target

# Even elements of two vectors of 8, in the order one instruction on halves of 128 bits leaves them in, and what mends that order.
_EVEN_IN_HALVES, _MEND = (0, 2, 8, 10, 4, 6, 12, 14), (0, 1, 4, 5, 2, 3, 6, 7)


@dataclass(frozen=True)
class Frame:
    """Strips of planes of `height` x `width`, for `rows` rows of results each. `left` is a multiple of the lanes, so that rows are
    aligned; a strip begins `top` rows above the first that its results are counted from."""

    height: int
    width: int
    top: int
    left: int
    rows: int
    strips: int
    advance: int
    lines: int

    @staticmethod
    def of(p: Mapping[str, Any]) -> Frame | None:
        """The frame that kernel parameters name, if they do."""
        return Frame(**p["frame"]) if p.get("frame") else None

    @property
    def pitch(self) -> int:
        """Elements from row to row."""
        return self.left + self.width

    @property
    def plane(self) -> int:
        """Elements from plane to plane."""
        return self.lines * self.pitch

    @property
    def origin(self) -> int:
        """Where in a plane its image begins, in the first strip."""
        return self.top * self.pitch + self.left

    def size(self, planes: int) -> int:
        """Elements of so many planes, and of what vectors may reach behind them."""
        return planes * self.plane + 4 * self.left

    def span(self, T: Any, strip: Any) -> tuple[Any, Any]:
        """Rows of the image that are in a strip and were not in the one before."""
        if self.strips == 1:
            return 0, self.height
        behind = strip * self.advance + (self.lines - self.top)
        first = T.Select(strip == 0, T.int32(0), T.max(0, T.min(behind - self.advance, self.height)))
        return first, T.max(0, T.min(behind, self.height))

    def params(self) -> dict[str, int]:
        """JSON-able form, the arguments of the class."""
        return asdict(self)


def frame(w: Window, target: Target, tile_rows: int = 1, most_lines: int | None = None) -> Frame | None:
    """What window `w` reads, whole images or strips of at most `most_lines` lines, if they can be, which begin at a multiple of
    `tile_rows` rows; None where the window is not for `emit_framed`."""
    lanes, (top, left), (height, width) = target.lanes, w.pads, w.size
    if w.crops or w.kernel[0] * w.kernel[1] > MAX_UNROLL or w.strides[1] > 2 or width % lanes or height % tile_rows:
        return None
    right = (w.out[1] - 1) * w.strides[1] + (w.kernel[1] - 1) * w.dilations[1] - left - width + 1
    margin = max(1, ceil(max(left, right) / lanes)) * lanes
    step = w.strides[0]
    shared = top + ceil((reached(w, 1) - step - top) / tile_rows) * tile_rows  # lines of two strips

    def strip(rows: int) -> Frame | None:
        if rows == w.out[0]:
            return Frame(height, width, top, margin, rows, 1, rows * step, max(top + height, reached(w, rows)))
        advance = rows * step
        if w.out[0] % rows or advance % tile_rows or shared < 0:
            return None
        return Frame(height, width, top, margin, rows, w.out[0] // rows, advance, advance + shared)

    found = [f for rows in range(1, w.out[0] + 1) if (f := strip(rows)) is not None]
    if most_lines is None:
        return found[-1]
    return max((f for f in found if f.lines <= most_lines), key=lambda f: f.lines, default=found[0])


def clear_margins(k: Any, buffer: Any, f: Frame, planes: int) -> None:
    """Zeros on the left of all rows of `planes` planes, and behind them: once for all strips."""
    with k.T.serial(0, planes * f.lines) as line:
        fill_run(k, buffer, bind(k, line * f.pitch), f.left, 0.0)
    fill_run(k, buffer, planes * f.plane, 4 * f.left, 0.0)


def clear_lines(k: Any, buffer: Any, f: Frame, planes: int, strip: Any) -> None:
    """Zeros in the lines of a strip that are above or below the image."""
    T = k.T
    above = T.max(0, T.min(f.lines, f.top - strip * f.advance))
    below = T.max(0, T.min(f.lines, f.height + f.top - strip * f.advance))
    with T.serial(0, planes) as plane:
        base = bind(k, plane * f.plane + f.left)
        for first, last in ((0, above), (below, f.lines)):
            with T.serial(first, last) as line:
                fill_run(k, buffer, bind(k, base + line * f.pitch), f.width, 0.0)


def move_on(k: Any, buffer: Any, f: Frame, planes: int) -> None:
    """Move the lines that the next strip shares with the present one to where they are in the next one."""
    with k.T.serial(0, planes) as plane:
        to = bind(k, plane * f.plane)
        copy_run(k, buffer, to + f.advance * f.pitch, buffer, to, (f.lines - f.advance) * f.pitch)


def emit_framed(k: Any, w: Window, channels: int, hooks: Hooks, f: Frame, strip: Any) -> None:
    """The loop nest over the units [k.lo, k.hi), which are planes, for the results of one strip; reads argument `x`, framed, writes
    argument `out`."""
    _Framed(k, w, channels, hooks, f, strip).write()


class _Framed(Tiles):
    """Planes that are read where they lie."""

    def __init__(self, k: Any, w: Window, channels: int, hooks: Hooks, f: Frame, strip: Any) -> None:
        out_w, lanes = w.out[1], k.lanes
        while lanes > 1 and out_w <= lanes // 2:
            lanes //= 2
        most = 8 if k.target.vector_registers > 16 else 4
        rows = ceil(f.rows / ceil(f.rows / most))
        super().__init__(k, w, channels, hooks, lanes=lanes, rows=rows, vectors=1, units=1)
        self.f, self.strip = f, strip
        self.in_halves = w.strides[1] == 2 and lanes == 8 and k.target.arch == "x86_64"

    def span(self, begin: Any, end: Any) -> None:
        w, f = self.w, self.f
        with self.T.serial(begin, end) as plane:
            channel = bind(self.k, self.T.truncmod(plane, self.channels))
            first = bind(self.k, plane * f.plane + (f.left - w.pads[1]) - self.k.first("x"))
            target = bind(self.k, plane * (w.out[0] * w.out[1]))

            def origin(row: Any, x: Any) -> Any:
                return first + row * (w.strides[0] * f.pitch) + x * w.strides[1]

            self.plane(channel, origin, bind(self.k, self.strip * f.rows), f.rows, target)

    def values(self, origin: Any) -> Callable[[int, int, int], Any]:
        k, w, n = self.k, self.w, self.lanes
        step, at = w.strides[1], hold(k, origin)
        pairs: dict[tuple[int, int, int], list[Any]] = {}

        def load(line: int, column: int) -> Any:
            return k.load(k.arg("x"), at + (line * self.f.pitch + column), n)

        def value(line: int, kw: int, v: int) -> Any:
            column = kw * w.dilations[1]
            if step == 1:
                return load(line, column + v * n)
            odd, base = column % 2, column - column % 2 + 2 * v * n
            if (line, base, v) not in pairs:
                pairs[line, base, v] = [bind(k, load(line, base)), bind(k, load(line, base + n))]
            order = _EVEN_IN_HALVES if self.in_halves else range(0, 2 * n, 2)
            return self.T.Shuffle(pairs[line, base, v], [i + odd for i in order])

        return value

    def ordered(self, value: Any) -> Any:
        return self.T.Shuffle([self.T.bind(value)], list(_MEND)) if self.in_halves else value
