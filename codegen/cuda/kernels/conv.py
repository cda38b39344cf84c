"""Convolution with a compressed weight as implicit matrix multiplication on tensor cores: gemm.py on receptive fields.

Row m of A is what output pixel m sees of a channels-last image; it is never stored: chunks of 8 channels of one tap go from where they
lie to shared memory, zeros in place of those outside of the image. K runs over (tap, channel), the channels padded to 8 for
that: what the padding's codes stand for meets zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from sparsec.codegen.cuda import epilogue, fragments
from sparsec.codegen.cuda.kernels import gemm
from sparsec.codegen.cuda.launch import Launch
from sparsec.codegen.kernels.window import Window
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target

CHUNK = 8
"""Channels that are copied together."""


def padded_channels(channels: int) -> int:
    """Channels of a tap in the order of K."""
    return ceil(channels / CHUNK) * CHUNK


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: a [batch, H, W, C], weight (fragments.py), bias? [N], residual? like c; out: c [M, N], or the sums of the parts as in gemm.py."""
    w = Window.of(p)
    m, n = p["m"], p["weight"]["n"]
    image = p["batch"] * w.size[0] * w.size[1] * p["channels"]
    args = [Arg("a", "float32", image, "in"), *fragments.arguments(p["weight"])]
    if p["parts"] > 1:
        args.append(Arg("c", "uint32", p["parts"] * m * n, "out"))
    else:
        args += [*epilogue.arguments(p, n, m * n), Arg("c", "float32", m * n, "out")]
    return Signature(tuple(args), units=1, cost=2 * m * n * p["weight"]["k"])


def launch(p: Mapping[str, Any], target: Target) -> Launch:
    """As of gemm.py."""
    return gemm.launch(p, target)


def build(p: Mapping[str, Any], k: Any) -> None:
    """One block of filters and pixels."""
    _Convolution(p, k).write()


class _Convolution(gemm.Product):
    def _source(self, row: Any, first: Any) -> tuple[Any, Any]:
        """8 channels of a tap, none of them where the tap is outside of the image."""
        T, k, w, channels = self.T, self.k, Window.of(self.p), self.p["channels"]
        (height, width), (rows, columns) = w.size, w.out
        depth = padded_channels(channels)
        tap, channel = k.let(T.truncdiv(first, depth)), k.let(T.truncmod(first, depth))
        x = T.truncmod(row, columns) * w.strides[1] + T.truncmod(tap, w.kernel[1]) * w.dilations[1] - w.pads[1]
        pixel = k.let(T.truncdiv(row, columns))
        y = T.truncmod(pixel, rows) * w.strides[0] + T.truncdiv(tap, w.kernel[1]) * w.dilations[0] - w.pads[0]
        x, y = k.let(x), k.let(y)
        inside = T.And(T.And(x >= 0, x < width), T.And(y >= 0, y < height))
        inside = T.And(inside, T.And(row < self.p["m"], first < self.w["k"]))
        at = ((T.truncdiv(pixel, rows) * height + y) * width + x) * channels + channel
        return T.Select(inside, at, T.int32(0)), T.Select(inside, channels - channel, T.int32(0))
