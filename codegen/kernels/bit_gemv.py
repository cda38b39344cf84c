"""One row of int8 activations times codes of one or two bits: act(x[1, K] . W^T + bias + residual), without decoding W.

A level is `base + first * b1 + second * b0` (bit_weights.py), so an output is made of sums of the inputs whose bit is set. Four inputs
have 16 such sums: a table, made once for all outputs, where half a byte of an output's bits finds the share of the four. A byte
shuffle looks up as many outputs as a vector has bytes (T-MAC: Wei et al., "CPU renaissance via table lookup for low-bit LLM
deployment on edge", 2024; their tables are rounded, these are exact).

bit_digits.py has the sums as two digits in bytes (two bits, groups of at most 32 inputs), bit_words.py in words of 16 bits (all
others). At the end of a block of inputs (a group of scales, or as many as 16 bits can sum) they are multiplied by `first` and
`second` and added up in 32 bits; where one scale holds for the whole row they stay whole numbers until its end. So results are
those of gemv.py.

Units are tiles of outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from math import ceil, prod
from operator import mul
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal
from sparsec.codegen.isa.epilogue import activation_cost, apply_activation
from sparsec.codegen.isa.pieces import pieces
from sparsec.codegen.isa.vecmath import bind, fma
from sparsec.codegen.kernels import bit_digits, bit_inputs, bit_tables, bit_weights
from sparsec.codegen.kernels.bit_digits import Digits
from sparsec.codegen.kernels.bit_words import Words
from sparsec.codegen.kernels.last_tile import with_size
from sparsec.codegen.kernels.weights import epilogue, int8_operands, refused_epilogue
from sparsec.codegen.program import Arg, Signature
from sparsec.op_view import view
from sparsec.target import Target


def lower_bit_gemv(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::MatMul of one row, int8 activations, with codes of one or two bits."""
    op = view(node)
    operands = int8_operands(op)
    if isinstance(operands, Refusal):
        return operands
    weight, x_group = operands
    assert op.x is not None
    if low.dtype(op.x) != "float32" or prod(low.shape(op.x)[:-1]) != 1:
        return Refusal("not one row of float32")
    if why := bit_weights.refused(weight, low.target, x_group):
        return Refusal(why)
    if (refusal := refused_epilogue(op, low)) is not None:
        return refusal
    params, arrays = bit_weights.pack(weight, low.target, x_group)
    label = node.name or "weight"
    rows = ceil(op.rows / params["tile"]) * params["tile"]
    finish, added = epilogue(op, low, arrange=lambda bias: np.pad(bias, (0, rows - op.rows)))
    ins = [low.get(op.x), *(low.const(array, f"{label}.{name}") for name, array in arrays), *added]
    note = f"[1, {op.cols}] x [{op.cols}, {op.rows}] {op.scheme} x {op.activations} {op.activation}".strip()
    low.call("bit_gemv", params | finish, ins, [low.new(op.output)], node=node.name or "", op="MatMul", note=note)
    return None


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: x [K], codes, levels, level_scale, scales?, bias? [padded N], residual? [N]; out: y [N]; work: inputs and tables."""
    rows = ceil(p["rows"] / p["tile"]) * p["tile"]
    args = [Arg("x", "float32", p["k"], "in"), *bit_weights.arguments(p)]
    if p["bias"]:
        args.append(Arg("bias", "float32", rows, "in"))
    if p["residual"]:
        args.append(Arg("residual", "float32", p["rows"], "in"))
    args.append(Arg("y", "float32", p["rows"], "out"))
    args += bit_inputs.work_arguments(p)
    args += (bit_digits if p["digits"] else bit_tables).work_arguments(p)
    args.append(Arg("total", "float32" if p["group"] else "int32", p["tile"], "work"))
    cost = p["k"] * rows * p["bits"] // 8 + p["rows"] * (4 + activation_cost(p["act"]))
    return Signature(tuple(args), units=rows // p["tile"], cost=cost, pieces=1)


def build(p: Mapping[str, Any], k: Any) -> None:
    """Write the kernel (see the module's docstring)."""
    _BitGemv(p, k).write()


class _BitGemv:
    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.p, self.k, self.T = p, k, k.T
        self.sums: Digits | Words = Digits(p, k) if p["digits"] else Words(p, k)
        self.lanes: int = k.lanes
        self.scaled = bool(p["group"])  # block by block

    def write(self) -> None:
        T, k = self.T, self.k
        with T.If(k.lo < k.hi), T.Then():
            self.sums.prepare()
            with T.serial(k.lo, k.hi) as tile:
                self._tile(tile)

    def _tile(self, tile: Any) -> None:
        T, k, p, n = self.T, self.k, self.p, self.lanes
        total = k.arg("total")
        for at in range(0, p["tile"], n):
            k.store(total, at, k.f32(0.0, n) if self.scaled else k.i32(0, n), n)
        codes = bind(k, tile * (bit_weights.width(p) * p["bits"] // 8 * p["tile"]))
        with T.serial(0, bit_weights.spans(p)) as block:
            scales = bind(k, (tile * bit_weights.spans(p) + block) * p["tile"])
            self.sums.block(codes, block, lambda at, whole: self._add(block, scales + at, at, whole))
        self._finish(tile, total)

    def _add(self, block: Any, scales: Any, at: int, whole: Any) -> None:
        """Sums of products of a block, from row `at` of the tile on, join its totals; scales: where theirs lie."""
        T, k, p, n, total = self.T, self.k, self.p, self.lanes, self.k.arg("total")
        begin = k.splat(k.load(k.arg("begins"), block), n)
        if not self.scaled:
            k.store(total, at, k.load(total, at, n) + whole + begin, n)
            return
        if p["x_group"]:
            value = fma(k, T.Cast(f"float32x{n}", whole), k.splat(k.load(k.arg("xscale"), block), n), begin, n)
        else:
            value = T.Cast(f"float32x{n}", whole + begin)
        if p["scales"] == "group":
            stored = T.Cast(f"float32x{n}", k.load(k.arg("scales"), scales, n))
            value = fma(k, value, stored, k.load(total, at, n), n)
        else:
            value = value + k.load(total, at, n)
        k.store(total, at, value, n)

    # --- results ---

    def _finish(self, tile: Any, total: Any) -> None:
        """Scales of whole rows, bias, residual, activation, and the stores."""
        T, k, p = self.T, self.k, self.p
        common = [k.load(k.arg("level_scale"), 0)]
        if not p["x_group"]:
            common.append(k.load(k.arg("xscale"), 0))
        if p["scales"] == "tensor":
            common.append(k.load(k.arg("scales"), 0))
        factor = bind(k, reduce(mul, common))

        def store(columns: int) -> None:
            for at, width in pieces(columns, self.lanes):
                value = k.load(total, at, width)
                value = (
                    value if self.scaled else T.Cast(f"float32x{width}" if width > 1 else "float32", value)
                ) * k.splat(factor, width)
                if p["scales"] == "channel":
                    value = value * k.load(k.arg("scales"), tile * p["tile"] + at, width)
                if p["bias"]:
                    value = value + k.load(k.arg("bias"), tile * p["tile"] + at, width)
                to = tile * p["tile"] + at
                if p["residual"]:
                    value = value + k.load(k.arg("residual"), to, width)
                k.store(k.arg("y"), to, apply_activation(k, p["act"], p["act_params"], value, width), width)

        with_size(k, tile, p["rows"], p["tile"], store)
