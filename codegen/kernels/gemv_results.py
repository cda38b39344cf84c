"""What becomes of the sums of int8 products in gemv.py: scaled into float32 block by block, finished and stored at the end."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import mul
from typing import Any

from sparsec.codegen.isa import dot
from sparsec.codegen.isa.epilogue import apply_activation
from sparsec.codegen.isa.pieces import pieces
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels.gemv_inputs import Inputs
from sparsec.codegen.kernels.gemv_weights import Weights
from sparsec.codegen.kernels.last_tile import with_size


class Results:
    """Writes the code (`k`: KernelBuilder). Sums and totals lie [row of activations][vector of the tile]."""

    def __init__(self, p: Mapping[str, Any], k: Any, weights: Weights, inputs: Inputs) -> None:
        self.p, self.w, self.k, self.T = p, p["w"], k, k.T
        self.weights, self.inputs = weights, inputs
        self.lanes: int = k.lanes
        self.vectors = self.w["tile"] // k.lanes
        self.blocks, self.grouped = inputs.blocks, inputs.grouped

    def scaled(
        self, tile: Any, block: Any, sums: list[Any], rows: int, acc: Any, total: Any, *, at_end: bool,
        x_scales: list[Any] | None = None,
    ) -> None:  # fmt: skip
        """total += scale * (acc - offset * sum of x)."""
        T, k, n, w = self.T, self.k, self.lanes, self.w
        for v in range(self.vectors):
            at = {"group": block * w["tile"], "channel": tile * w["tile"]}.get(w["scales"], T.int32(0)) + v * n
            scale = None
            if w["scales"] == "group":
                scale = bind(k, T.Cast(f"float32x{n}", k.load(k.arg("scales"), at, n)))
            if w["scope"] == "inputs":
                assert self.weights.table_scale is not None
                spread = k.splat(self.weights.table_scale, n)
                scale = spread if scale is None else scale * spread
            zero = None
            if w["zero_points"]:
                stored = k.arg("zero_points")
                zero = k.splat(k.load(stored, 0), n) if w["scales"] == "tensor" else k.load(stored, at, n)
                zero = bind(k, T.Cast(f"float32x{n}", zero))
            for r in range(rows):
                slot = (r * self.vectors + v) * n
                whole = k.load(acc, slot, n)
                if at_end and w["offset"]:
                    whole = whole - k.splat(sums[r] * T.int32(w["offset"]), n)
                value = T.Cast(f"float32x{n}", whole)
                if zero is not None:
                    value = value - zero * k.splat(T.Cast("float32", sums[r]), n)
                factor = scale
                if x_scales is not None:
                    xs = k.splat(x_scales[r], n)
                    factor = xs if factor is None else factor * xs
                value = value if factor is None else value * factor
                k.store(total, slot, k.load(total, slot, n) + value, n)

    def finish(self, tile: Any, row_base: Any, row0: Any, rows: int, total: Any) -> None:
        """Scales that hold for the whole row, bias, residual, activation, and the stores. row_base: first row of the block."""
        k, p, w = self.k, self.p, self.w

        def store(columns: int) -> None:
            for r in range(rows):
                common = (
                    [] if self.weights.table_scale is None or w["scope"] == "inputs" else [self.weights.table_scale]
                )
                if w["scales"] == "tensor":
                    common.append(k.load(k.arg("scales"), 0))
                scale = None if self.grouped else k.load(k.arg("xscale"), (row0 + r) * self.blocks)
                if scale is not None and not self.inputs.offset:
                    common.append(scale)
                factor = bind(k, reduce(mul, common)) if common else None
                for v in range(self.vectors):
                    for offset, width in pieces(min(columns - v * self.lanes, self.lanes), self.lanes):
                        at = v * self.lanes + offset
                        value = k.load(total, (r * self.vectors) * self.lanes + at, width)
                        if w["scales"] == "channel":
                            value = value * k.load(k.arg("scales"), tile * w["tile"] + at, width)
                        if factor is not None:
                            value = value * k.splat(factor, width)
                        if self.inputs.offset:
                            sums = k.load(k.arg("row_sums"), tile * w["tile"] + at, width)
                            value = (value - sums * k.f32(dot.X_OFFSET, width)) * k.splat(scale, width)
                        if p["bias"]:
                            value = value + k.load(k.arg("bias"), tile * w["tile"] + at, width)
                        to = (row_base + row0 + r) * w["rows"] + tile * w["tile"] + at
                        if p["residual"]:
                            value = value + k.load(k.arg("residual"), to, width)
                        k.store(k.arg("y"), to, apply_activation(k, p["act"], p["act_params"], value, width), width)

        with_size(k, tile, w["rows"], w["tile"], store)
