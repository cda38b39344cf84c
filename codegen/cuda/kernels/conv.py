"""Convolution with a compressed weight as implicit matrix multiplication on tensor cores: gemm.py on receptive fields.

Row m of A is what output pixel m sees of a channels-last image; it is never stored. In order `tap`, K runs over (tap, channel), the
channels padded to 8, and chunks of 8 channels of a tap go from where they lie to shared memory, zeros in place of those outside of the
image; what the padding's codes stand for meets zeros too. In order `channel`, K runs over (channel, tap) as ONNX stores weights, and
`places` says of every input where it lies in the receptive field.

Groups of filters read channels of their own: each has whole blocks of outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from sparsec.codegen.cuda import blocking, fragments
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
    """in: a [batch, H, W, C], weight (fragments.py), places [K, 2] (order channel), then as gemm.py."""
    w = Window.of(p)
    image = p["batch"] * w.size[0] * w.size[1] * p["channels"]
    args = [Arg("a", "float32", image, "in"), *fragments.arguments(p["weight"])]
    if p["order"] == "channel":
        args.append(Arg("places", "int32", 2 * p["weight"]["k"], "in"))
    return gemm.signature_of(p, args, p["filters"])


def launch(p: Mapping[str, Any], target: Target) -> Launch:
    """As of gemm.py."""
    return gemm.launch(p, target)


def build(p: Mapping[str, Any], k: Any) -> None:
    """One block of filters and pixels."""
    _Convolution(p, k).write()


class _Convolution(gemm.Product):
    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        super().__init__(p, k)
        # outputs of a group, as panels have them, and as they are
        self.padded, self.each = self.w["n"] // p["groups"], p["filters"] // p["groups"]
        self.channels = p["channels"] // p["groups"]

    def _begin(self, group: Any) -> None:
        super()._begin(group)
        self.filters: Any = 0  # which group of filters
        if self.p["groups"] > 1:
            self.filters = self.k.let(self.T.truncdiv(group * blocking.block_outputs(self.p), self.padded))

    def _corner(self, row: Any) -> tuple[Any, Any, Any]:
        """(image, line, column) of the first pixel that an output pixel sees; lines and columns may be outside of the image."""
        T, k, w = self.T, self.k, Window.of(self.p)
        rows, columns = w.out
        line = k.let(T.truncdiv(row, columns))
        x = k.let(T.truncmod(row, columns) * w.strides[1] - w.pads[1])
        y = k.let(T.truncmod(line, rows) * w.strides[0] - w.pads[0])
        return T.truncdiv(line, rows), y, x

    def _source(self, row: Any, first: Any) -> tuple[Any, Any]:
        """8 channels of a tap, none of them where the tap is outside of the image."""
        T, k, w = self.T, self.k, Window.of(self.p)
        (height, width), depth = w.size, padded_channels(self.channels)
        tap, channel = k.let(T.truncdiv(first, depth)), k.let(T.truncmod(first, depth))
        image, y, x = self._corner(row)
        x = k.let(x + T.truncmod(tap, w.kernel[1]) * w.dilations[1])
        y = k.let(y + T.truncdiv(tap, w.kernel[1]) * w.dilations[0])
        inside = T.And(T.And(x >= 0, x < width), T.And(y >= 0, y < height))
        inside = T.And(inside, T.And(row < self.p["m"], first < self.w["k"]))
        at = ((image * height + y) * width + x) * self.p["channels"] + (self.filters * self.channels + channel)
        return T.Select(inside, at, T.int32(0)), T.Select(inside, self.channels - channel, T.int32(0))

    def _stage_chunk(self, place: Any, row: Any, first: Any) -> None:
        if self.p["order"] == "tap":
            super()._stage_chunk(place, row, first)
            return
        T, k, w, depth = self.T, self.k, Window.of(self.p), self.w["k"]
        (height, width), channels = w.size, self.p["channels"]
        image, y, x = self._corner(row)
        at = ((image * height + y) * width + x) * channels + self.filters * self.channels
        left = T.Select(row < self.p["m"], depth - first, T.int32(0))
        source = k.at(k.arg("places"), T.Select(first < depth, first * 2, T.int32(0)))
        k.do(
            f"spc_stage_taps_{self.suffix}", place, k.at(k.arg("a"), T.int32(0)), at, source, y, x, height, width, left
        )

    def _column(self, output: Any) -> tuple[Any, Any]:
        if self.p["groups"] == 1:
            return super()._column(output)
        inner = self.k.let(output - self.filters * self.padded)
        return self.filters * self.each + inner, inner < self.each

    def _place(self, row: Any, column: Any) -> Any:
        return row * self.p["filters"] + column

    def _results(self) -> int:
        return int(self.p["m"] * self.p["filters"])
