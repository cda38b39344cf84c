"""Sliding windows over planes that already have zeros around them: what planes.py brings into scratch first is read where it lies.

A plane is `top` rows of zeros, the rows of its image, `bottom` rows of zeros; a row is `left` zeros and its columns, and the zeros on
its right are those on the left of the next one. Every tap of a tile is then a vector in memory; a step of two columns takes two
vectors and the even or the odd ones of their elements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from sparsec.codegen.isa.vecmath import bind, hold
from sparsec.codegen.kernels.plane_tiles import MAX_UNROLL, Hooks, Tiles
from sparsec.codegen.kernels.window import Window
from sparsec.target import Target

# Even elements of two vectors of 8, in the order one instruction on halves of 128 bits leaves them in, and what mends that order.
_EVEN_IN_HALVES, _MEND = (0, 2, 8, 10, 4, 6, 12, 14), (0, 1, 4, 5, 2, 3, 6, 7)


@dataclass(frozen=True)
class Frame:
    """Planes of `height` x `width` with zeros around them; `left` is a multiple of the lanes, so that rows are aligned."""

    height: int
    width: int
    top: int
    bottom: int
    left: int

    @property
    def pitch(self) -> int:
        """Elements from row to row."""
        return self.left + self.width

    @property
    def plane(self) -> int:
        """Elements from plane to plane."""
        return (self.top + self.height + self.bottom) * self.pitch

    @property
    def origin(self) -> int:
        """Where in a plane its image begins."""
        return self.top * self.pitch + self.left

    def size(self, planes: int) -> int:
        """Elements of so many planes, and of what vectors may reach behind them."""
        return planes * self.plane + 4 * self.left

    def params(self) -> dict[str, int]:
        """JSON-able form, the arguments of the class."""
        return asdict(self)


def frame(w: Window, target: Target) -> Frame | None:
    """What window `w` reads; None where it is not for `emit_framed`."""
    lanes = target.lanes
    if w.crops or w.kernel[0] * w.kernel[1] > MAX_UNROLL or w.strides[1] > 2:
        return None
    (top, left), (height, width) = w.pads, w.size
    reach = (w.out[0] - 1) * w.strides[0] + (w.kernel[0] - 1) * w.dilations[0] - top - height + 1
    right = (w.out[1] - 1) * w.strides[1] + (w.kernel[1] - 1) * w.dilations[1] - left - width + 1
    return Frame(height, width, top, max(0, reach), max(1, ceil(max(left, right) / lanes)) * lanes)


def clear(k: Any, buffer: Any, f: Frame, planes: int) -> None:
    """Write the zeros around `planes` planes."""
    T, lanes = k.T, k.lanes

    def zeros(at: Any, count: int) -> None:
        for i in range(0, count, lanes):
            k.store(buffer, at + i, k.f32(0.0, lanes), lanes)

    rows = f.top + f.height + f.bottom
    with T.serial(0, planes) as plane:
        base = bind(k, plane * f.plane)
        with T.serial(0, rows) as row:
            zeros(bind(k, base + row * f.pitch), f.left)
        for first, count in ((0, f.top), (f.top + f.height, f.bottom)):
            with T.serial(0, count * (f.width // lanes)) as i:
                row = T.truncdiv(i, f.width // lanes)
                column = T.truncmod(i, f.width // lanes) * lanes
                zeros(bind(k, base + (first + row) * f.pitch + f.left + column), lanes)
    zeros(bind(k, T.int32(planes * f.plane)), 4 * f.left)


def emit_framed(k: Any, w: Window, channels: int, hooks: Hooks, f: Frame) -> None:
    """The whole loop nest over the units [k.lo, k.hi), which are planes; reads argument `x`, framed, writes argument `out`."""
    _Framed(k, w, channels, hooks, f).write()


class _Framed(Tiles):
    """Planes that are read where they lie."""

    def __init__(self, k: Any, w: Window, channels: int, hooks: Hooks, f: Frame) -> None:
        (out_h, out_w), lanes = w.out, k.lanes
        while lanes > 1 and out_w <= lanes // 2:
            lanes //= 2
        most = 8 if k.target.vector_registers > 16 else 4
        rows = ceil(out_h / ceil(out_h / most))
        super().__init__(k, w, channels, hooks, lanes=lanes, rows=rows, vectors=1, units=1)
        self.f = f
        self.in_halves = w.strides[1] == 2 and lanes == 8 and k.target.arch == "x86_64"

    def span(self, begin: Any, end: Any) -> None:
        w, f = self.w, self.f
        with self.T.serial(begin, end) as plane:
            channel = bind(self.k, self.T.truncmod(plane, self.channels))
            first = bind(self.k, plane * f.plane + (f.origin - w.pads[0] * f.pitch - w.pads[1]))
            target = bind(self.k, plane * (w.out[0] * w.out[1]))

            def origin(row: Any, x: Any) -> Any:
                return first + row * (w.strides[0] * f.pitch) + x * w.strides[1]

            self.plane(channel, origin, 0, w.out[0], target)

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
