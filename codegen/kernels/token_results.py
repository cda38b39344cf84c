"""What becomes of the sums of token_strips.py: transposed, scaled into float32, finished and stored, a few tiles together: rows of y
that are written one cache line at a time take three times as long.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from math import ceil
from operator import mul
from typing import Any

from sparsec.codegen.isa.epilogue import apply_activation
from sparsec.codegen.isa.pieces import pieces
from sparsec.codegen.isa.transpose import transpose
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels.gemv_weights import Weights

# Rows of the weight that are stored together.
_STORED = 64


def tiles_stored(w: Mapping[str, Any]) -> int:
    """Tiles that are stored together."""
    return max(1, _STORED // int(w["tile"]))


class TokenResults:
    """Writes the code (`k`: KernelBuilder; `p`: parameters of the product). tiles: that are stored together."""

    def __init__(self, p: Mapping[str, Any], k: Any, weights: Weights) -> None:
        self.p, self.w, self.k, self.T, self.weights = p, p["w"], k, k.T, weights
        self.lanes: int = k.lanes
        self.tile: int = self.w["tile"]
        self.tiles = tiles_stored(self.w)
        self.own_tables = self.w["scope"] == "rows"  # of tiles that are stored together

    def turn(self, place: Any) -> None:
        """The sums of a tile, by token, into `results` as tile number `place`."""
        T, k, n = self.T, self.k, self.lanes
        pitch, column = self.tiles * self.tile, bind(k, place * self.tile)
        for v in range(self.tile // n):
            with T.serial(0, 4) as q:
                rows = [bind(k, k.load(k.arg("sums"), ((v * n + row) * 4 + q) * n, n)) for row in range(n)]
                if self.own_tables:
                    rows = [bind(k, row * k.splat(self.weights.table_scale, n)) for row in rows]
                for lane, value in enumerate(transpose(k, rows)):
                    token = q * 4 + (lane // 4 * 16 + lane % 4)
                    k.store(k.arg("results"), token * pitch + column + v * n, value, n)

    def store(self, lo: Any, hi: Any, first: Any, count: Any) -> None:
        """Scales, bias, residual, activation of tiles [lo, hi), and the stores."""
        T, k, p, w, n = self.T, self.k, self.p, self.w, self.lanes
        pitch = self.tiles * self.tile
        common = [] if self.own_tables else [k.load(k.arg("table_scale"), 0)]
        if w["scales"] == "tensor":
            common.append(k.load(k.arg("scales"), 0))
        constant = bind(k, reduce(mul, common, T.float32(1.0)))

        def finish(tile: Any, columns: int, token: Any, factor: Any) -> None:
            source = bind(k, token * pitch + T.truncmod(tile, self.tiles) * self.tile)
            for v in range(ceil(columns / n)):
                for offset, width in pieces(min(columns - v * n, n), n):
                    at = v * n + offset
                    value = k.load(k.arg("results"), source + at, width)
                    if w["scales"] == "channel":
                        value = value * k.load(k.arg("scales"), tile * self.tile + at, width)
                    value = value * k.splat(factor, width)
                    if p["bias"]:
                        value = value + k.load(k.arg("bias"), tile * self.tile + at, width)
                    to = bind(k, (first + token) * w["rows"] + tile * self.tile + at)
                    if p["residual"]:
                        value = value + k.load(k.arg("residual"), to, width)
                    k.store(k.arg("y"), to, apply_activation(k, p["act"], p["act_params"], value, width), width)

        last = w["rows"] - (w["tiles"] - 1) * self.tile
        whole = w["tiles"] if last == self.tile else w["tiles"] - 1
        with T.serial(0, count) as token:
            factor = bind(k, constant * k.load(k.arg("xscale"), token))
            if whole:
                with T.serial(lo, T.min(hi, whole)) as tile:
                    finish(tile, self.tile, token, factor)
            if last != self.tile:
                with T.If(hi == w["tiles"]), T.Then():
                    finish(T.int32(whole), last, token, factor)
