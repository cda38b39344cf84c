"""Sliding windows on channels-last images: a thread computes 8 neighbouring channels of an output pixel, or one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparsec.codegen.cuda import vectors
from sparsec.codegen.cuda.launch import Launch, lines
from sparsec.codegen.kernels.window import Window

Expr = Any

_BLOCK = 128


def run_width(channels: int) -> int:
    """Channels of a thread."""
    return vectors.WIDTH if channels % vectors.WIDTH == 0 else 1


def window_launch(w: Window, channels: int, batch: int, width: int = 0) -> Launch:
    """A thread for each run of `width` channels (`run_width`) of each output pixel."""
    threads = batch * w.out[0] * w.out[1] * (channels // (width or run_width(channels)))
    return lines(-(-threads // _BLOCK), _BLOCK)


class Place:
    """The output of one thread: its image, line `y`, column `x`, first `channel`, and index `at` in the output."""

    def __init__(self, k: Any, w: Window, channels: int, batch: int, width: int = 0) -> None:
        T = k.T
        self.k, self.w, self.channels, self.width = k, w, channels, width or run_width(channels)
        runs, (height, columns) = channels // self.width, w.out
        index = k.let(k.block[0] * _BLOCK + k.thread[0])
        self.there = index < batch * height * columns * runs
        self.channel = k.let(T.truncmod(index, runs) * self.width)
        pixel = k.let(T.truncdiv(index, runs))
        self.x = k.let(T.truncmod(pixel, columns))
        self.y = k.let(T.truncmod(T.truncdiv(pixel, columns), height))
        self.image = k.let(T.truncdiv(pixel, height * columns))
        self.at = k.let(pixel * channels + self.channel)

    def taps(self, body: Callable[[Expr, Expr, Expr, Expr, Expr], None]) -> None:
        """body(tap, line, column, whether they are in the image, index of the first channel there) for every tap."""
        T, k, w = self.k.T, self.k, self.w
        with T.serial(0, w.kernel[0]) as i, T.serial(0, w.kernel[1]) as j:
            line = k.let(self.y * w.strides[0] + i * w.dilations[0] - w.pads[0])
            column = k.let(self.x * w.strides[1] + j * w.dilations[1] - w.pads[1])
            rows, columns = w.size
            inside = T.And(T.And(line >= 0, line < rows), T.And(column >= 0, column < columns))
            place = ((self.image * rows + line) * columns + column) * self.channels + self.channel
            body(i * w.kernel[1] + j, line, column, inside, place)

    def read(self, name: str, at: Expr) -> Any:
        """Registers with the thread's channels of an argument from index `at` on; a run is moved as a whole where it is aligned."""
        k, T = self.k, self.k.T
        buffer = k.arg(name)
        held = k.local(self.width, buffer.dtype)
        if self.width == 1:
            k.store(held, 0, k.load(buffer, at))
            return held
        with T.If(vectors.aligned(k, [(buffer, at)])):
            with T.Then():
                vectors.move(k, held, 0, buffer, at)
            with T.Else(), T.serial(0, self.width) as lane:
                k.store(held, lane, k.load(buffer, at + lane))
        return held

    def write(self, name: str, value: Callable[[Expr], Expr]) -> None:
        """Store value(lane) of the thread's channels."""
        k, T = self.k, self.k.T
        buffer = k.arg(name)
        if self.width == 1:
            k.store(buffer, self.at, value(0))
            return
        held = k.local(self.width, buffer.dtype)
        with T.serial(0, self.width) as lane:
            k.store(held, lane, value(lane))
        with T.If(vectors.aligned(k, [(buffer, self.at)])):
            with T.Then():
                vectors.move(k, buffer, self.at, held, 0)
            with T.Else(), T.serial(0, self.width) as lane:
                k.store(buffer, self.at + lane, k.load(held, lane))
