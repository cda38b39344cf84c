"""The activations of int8 products rounded to bytes: rows side by side in `xq`, scales and sums of their blocks beside them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from math import ceil
from operator import add
from typing import Any

from sparsec.codegen.isa import dot
from sparsec.codegen.isa.narrow import store_bytes
from sparsec.codegen.isa.vecmath import bind, nearest
from sparsec.codegen.kernels import round_groups
from sparsec.codegen.kernels.byte_weights import zero_input
from sparsec.codegen.kernels.quantise import inverse_scale, largest_of_run, partial_vector
from sparsec.int8 import ACTIVATION_MAX

# Rows of activations that share one pass over the codes: their accumulators stay in registers.
ROWS_AT_ONCE = 4
# Inputs of one unrolled step of the products.
STEP = 32
# Vectors of inputs that are rounded together.
_VECTORS = 4
# Rows of a block that a thread rounds for itself.
_MOST_ROWS = 64


def rows_of_block(m: int) -> int:
    """Rows that are rounded together; more rows make several blocks, shared out among the threads."""
    return m if m <= 8 else min(_MOST_ROWS, max(8, ceil(m / 8) * ROWS_AT_ONCE))


def padded_width(w: Mapping[str, Any]) -> int:
    """Bytes of one row of rounded activations: whole blocks and whole steps."""
    cols = zero_input(int(w["k"])) + 1 if w["sparse"] and w["listed"] else int(w["k"])
    block = int(w["block"])
    whole = ceil(cols / block) * block
    return ceil(whole / STEP) * STEP


class Rounding:
    """Writes the code that rounds (`k`: KernelBuilder). times: what sums of rounded inputs are multiplied with in xsum."""

    def __init__(self, p: Mapping[str, Any], k: Any, times: int = 1) -> None:
        self.w, self.k, self.T, self.times = p["w"], k, k.T, times
        self.dot = dot.ByteDot(k)
        self.lanes: int = k.lanes
        self.width = padded_width(self.w)
        self.block: int = self.w["block"]
        self.blocks = self.width // self.block
        self.grouped = bool(p["x_group"])
        # strips: signed weights, so that x86 needs the inputs as unsigned bytes
        self.offset = self.w["sparse"] and self.dot.x86

    def quantise_rows(self, first: Any, rows: int) -> None:
        """xq, xscale, xsum of `rows` rows of x from `first` on."""
        T, k, size, n = self.T, self.k, self.block, self.lanes
        if not (self.grouped and self.width == self.w["k"] and round_groups.several(k, size)):
            with T.serial(0, rows) as row:
                self.quantise(first + row, row)
            return
        start, groups = bind(k, first * self.w["k"]), rows * self.blocks  # of all rows, one after the other
        if groups >= n:
            with T.serial(0, groups // n) as i:
                at = bind(k, i * n)
                round_groups.round_groups(k, k.arg("x"), start + at * size, size, at * size, at, self.times)
        if groups % n:
            with T.serial(groups // n * n, groups) as g:
                self._group(k.arg("x"), start + g * size, size, bind(k, g * size), g)

    def quantise(self, row: Any, local: Any) -> None:
        """xq, xscale, xsum number `local` from row `row` of x."""
        T, k, w = self.T, self.k, self.w
        x, start, dest = k.arg("x"), bind(k, row * w["k"]), bind(k, local * self.width)
        whole, rest = divmod(w["k"], self.block)
        if self.grouped:
            with T.serial(0, whole) as g:
                self._group(x, start + g * self.block, self.block, dest + g * self.block, local * self.blocks + g)
            if rest:
                at = whole * self.block
                self._group(x, start + at, rest, dest + at, local * self.blocks + whole)
            return
        largest = bind(k, largest_of_run(k, x, start, w["k"]))
        scale = bind(k, largest * T.float32(1.0 / ACTIVATION_MAX))
        inverse = bind(k, inverse_scale(k, largest))
        with T.serial(0, self.blocks) as b:
            k.store(k.arg("xscale"), local * self.blocks + b, scale)
            k.store(k.arg("xsum"), local * self.blocks + b, T.int32(0))
        if w["sparse"]:
            self._convert(x, start, w["k"], inverse, dest, self.width)
            return
        with T.serial(0, whole) as b:
            total = self._convert(x, start + b * self.block, self.block, inverse, dest + b * self.block)
            k.store(k.arg("xsum"), local * self.blocks + b, total)
        if rest:
            at = whole * self.block
            total = self._convert(x, start + at, rest, inverse, dest + at, self.block)
            k.store(k.arg("xsum"), local * self.blocks + whole, total)

    def _group(self, x: Any, source: Any, count: int, dest: Any, at: Any) -> None:
        """One block of inputs with a scale of its own."""
        T, k = self.T, self.k
        largest = bind(k, largest_of_run(k, x, source, count))
        k.store(k.arg("xscale"), at, largest * T.float32(1.0 / ACTIVATION_MAX))
        inverse = bind(k, inverse_scale(k, largest))
        k.store(k.arg("xsum"), at, self._convert(x, source, count, inverse, dest, self.block))

    def _convert(self, x: Any, start: Any, count: int, inverse: Any, dest: Any, fill: int = 0) -> Any:
        """xq[dest:] = round(x[start : start + count] * inverse), zeros up to `fill`; returns `times` the sum of what was written."""
        T, k, n, xq = self.T, self.k, self.lanes, self.k.arg("xq")
        total = k.local(n, "int32")
        k.store(total, 0, k.i32(0, n), n)

        def write(values: list[Any], to: Any) -> None:
            rounded = [bind(k, nearest(k, value * k.splat(inverse, n), n)) for value in values]
            k.store(total, 0, reduce(add, rounded, k.load(total, 0, n)), n)
            store_bytes(k, xq, to, rounded, plus=dot.X_OFFSET if self.offset else 0)

        done = 0
        for at_once in (_VECTORS, 1):
            runs = (count - done) // (at_once * n)
            if runs:
                with T.serial(0, runs) as i:
                    at = bind(k, done + i * (at_once * n))
                    write([k.load(x, start + (at + v * n), n) for v in range(at_once)], dest + at)
                done += runs * at_once * n
        if done < count:
            write([partial_vector(k, x, start + done, count - done)], dest + done)
            done += n
        if done < fill:
            zero = T.Cast(f"int8x{n}", k.i32(0, n))
            with T.serial(0, ceil((fill - done) / n)) as i:
                k.store(xq, dest + done + i * n, zero, n)
        return bind(k, T.call_llvm_pure_intrin("int32", "llvm.vector.reduce.add", k.load(total, 0, n)) * self.times)
