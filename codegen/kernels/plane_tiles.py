"""Register tiles of windows over images in row order: `rows` rows of `vectors` vectors of neighbouring results of one plane.

planes.py and frames.py say where the inputs lie; both walk planes (one channel of one image each), whose code depends on the channel
only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from sparsec.codegen.kernels.window import Window

# More taps than this are looped over at run time.
MAX_UNROLL = 64


@dataclass(frozen=True)
class Hooks:
    """What the nest computes, on float32 vectors of neighbouring columns of one row of one plane.

    pad: what the padding holds. start(channel): the accumulator's first value, a scalar. weight(channel, tap): a scalar (None: no
    weights). step(accumulator, x, weight): the accumulator after one tap. finish(accumulator, read, lanes): the result, where
    read(argument) is the vector at the result's place in an argument shaped like `out` and read(argument, True) in one that
    is shaped like a single plane.
    prepare(block): code before the planes of each block of `block` channels (None: nothing to do).
    """

    pad: float
    start: Callable[[Any], Any]
    step: Callable[[Any, Any, Any], Any]
    finish: Callable[[Any, Callable[..., Any], int], Any]
    weight: Callable[[Any, Any], Any] | None = None
    prepare: Callable[[Any], None] | None = None
    block: int = 1


def store_first(k: Any, buffer: Any, at: Any, value: Any, count: int, lanes: int) -> None:
    """Store the first `count` of `lanes` elements of a vector and nothing else; lanes / 2 < count <= lanes."""
    if count == lanes:
        k.store(buffer, at, value, lanes)
        return
    half, value = lanes // 2, k.T.bind(value)
    k.store(buffer, at, k.T.Shuffle([value], list(range(half))) if half > 1 else _lane(k, value, 0), half)
    if count > half:
        last = list(range(count - half, count))
        k.store(buffer, at + (count - half), k.T.Shuffle([value], last) if half > 1 else _lane(k, value, last[0]), half)


def load_first(k: Any, buffer: Any, at: Any, count: int, lanes: int) -> Any:
    """A vector whose first `count` lanes are read from memory, nothing behind them is; lanes / 2 < count <= lanes."""
    if count == lanes:
        return k.load(buffer, at, lanes)
    half = lanes // 2
    parts = [k.T.bind(k.load(buffer, at, half)), k.T.bind(k.load(buffer, at + (count - half), half))]
    if half == 1:
        parts = [k.splat(p, 2) for p in parts]
    index = [i if i < half else min(i - (count - half), half - 1) + half for i in range(lanes)]
    return k.T.Shuffle(parts, index if half > 1 else [0, 2])


def _lane(k: Any, value: Any, lane: int) -> Any:
    return k.T.Shuffle([value], [lane])


class Tiles(ABC):
    """The units of a kernel (`units` a plane) and the tiles in them, `lanes` columns a vector."""

    def __init__(
        self, k: Any, w: Window, channels: int, hooks: Hooks, *, lanes: int, rows: int, vectors: int, units: int
    ) -> None:
        self.k, self.T, self.w, self.channels, self.hooks = k, k.T, w, channels, hooks
        self.lanes, self.rows, self.vectors, self.units = lanes, rows, vectors, units
        self.acc = k.local(rows * vectors * lanes)
        self.unrolled = prod(w.kernel) <= MAX_UNROLL

    @abstractmethod
    def span(self, begin: Any, end: Any) -> None:
        """The units [begin, end)."""

    @abstractmethod
    def values(self, origin: Any) -> Callable[[int, int, int], Any]:
        """(input row, tap of the row, vector) -> inputs of a tile whose first tap lies at `origin`, each asked for once, row by row."""

    def write(self) -> None:
        """All units of the call."""
        T, k = self.T, self.k
        if self.hooks.prepare is None:
            self.span(k.lo, k.hi)
            return
        size, image = self.hooks.block, self.channels * self.units  # units of an image
        blocks = ceil(self.channels / size)
        first_image, last_image = T.truncdiv(k.lo, image), T.truncdiv(k.hi + (image - 1), image)
        with T.serial(first_image, last_image) as n, T.serial(0, blocks) as block:
            begin = T.bind(T.max(k.lo, n * image + block * (size * self.units)))
            end = T.bind(T.min(k.hi, n * image + T.min((block + 1) * (size * self.units), image)))
            with T.If(begin < end), T.Then():
                self.hooks.prepare(block)
                self.span(begin, end)

    def weights(self, channel: Any) -> list[Any] | None:
        """All weights of a channel in vectors: LLVM keeps as many of them in registers as fit."""
        weight = self.hooks.weight
        if weight is None or not self.unrolled:
            return None
        k = self.k
        return [k.T.bind(k.splat(weight(channel, i), self.lanes)) for i in range(prod(self.w.kernel))]

    def plane(self, channel: Any, origin: Callable[[Any, Any], Any], first: Any, rows: Any, target: Any) -> None:
        """Output rows [first, first + rows) of the plane that begins at `target`; origin(row, column): of the first tap of a result,
        counted from `first`."""
        T, out_w = self.T, self.w.out[1]
        start, weights = T.bind(self.hooks.start(channel)), self.weights(channel)
        tiles = ceil(rows / self.rows) if isinstance(rows, int) else T.truncdiv(rows + (self.rows - 1), self.rows)
        wide = self.lanes * self.vectors
        with T.serial(0, tiles) as tile:
            row = T.bind(T.min(tile * self.rows, rows - self.rows))
            with T.serial(0, ceil(out_w / wide)) as i:
                x = T.bind(T.min(i * wide, out_w - wide)) if out_w >= wide else 0
                at = T.bind((first + row) * out_w + x)
                self._tile(channel, start, weights, T.bind(origin(row, x)), target, at)

    def _tile(self, channel: Any, start: Any, weights: list[Any] | None, origin: Any, target: Any, at: Any) -> None:
        """One tile, its first tap at `origin`, its results at `at` in the plane that starts at `target`."""
        T, k, w, n, acc = self.T, self.k, self.w, self.lanes, self.acc
        for i in range(self.rows * self.vectors):
            k.store(acc, i * n, k.splat(start, n), n)
        self.products(channel, weights, origin)
        count = min(n, w.out[1])
        for i in range(self.rows):
            exact = count if i == self.rows - 1 else n
            for v in range(self.vectors):
                to = T.bind(at + (i * w.out[1] + v * n))

                def read(argument: str, plane: bool = False, to: Any = to, exact: int = exact) -> Any:
                    return load_first(k, k.arg(argument), to if plane else target + to, exact, n)

                value = self.hooks.finish(self.ordered(k.load(acc, (i * self.vectors + v) * n, n)), read, n)
                store_first(k, k.arg("out"), target + to, value, exact, n)

    def ordered(self, value: Any) -> Any:
        """A vector of sums in the order of the columns."""
        return value

    def products(self, channel: Any, weights: list[Any] | None, origin: Any) -> None:
        """Add all taps of the tile at `origin`; every vector is made once and used by all rows it reaches."""
        w, values = self.w, self.values(origin)
        users: dict[int, list[tuple[int, int]]] = {}
        for i in range(self.rows):
            for kh in range(w.kernel[0]):
                users.setdefault(i * w.strides[0] + kh * w.dilations[0], []).append((i, kh))
        for line in sorted(users):
            for kw in range(w.kernel[1]):
                for v in range(self.vectors):
                    value = self.T.bind(values(line, kw, v))
                    for i, kh in users[line]:
                        self.step(i, v, value, weights[kh * w.kernel[1] + kw] if weights else None)

    def step(self, i: int, v: int, value: Any, weight: Any) -> None:
        """One tap of vector `v` of row `i`."""
        k, n = self.k, self.lanes
        slot = (i * self.vectors + v) * n
        k.store(self.acc, slot, self.hooks.step(k.load(self.acc, slot, n), value, weight), n)
