"""Rounded tokens as a panel [input][token] of unsigned bytes, x + 128 (token_strips.py): as many tokens as a vector has bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsec.codegen.isa import dot
from sparsec.codegen.isa.memory import prefetch_vector
from sparsec.codegen.isa.vecmath import bind, nearest
from sparsec.codegen.kernels.quantise import inverse_scale, largest_of_run, partial_vector
from sparsec.codegen.kernels.token_weights import padded_inputs
from sparsec.int8 import ACTIVATION_MAX


class TokenPanel:
    """Writes the code (`w`: parameters of the weight, `k`: KernelBuilder); scratch `xq` has the rounded rows."""

    def __init__(self, w: Mapping[str, Any], k: Any) -> None:
        self.k, self.T, self.size = k, k.T, int(w["k"])
        self.lanes: int = k.lanes
        self.tokens, self.width = 4 * k.lanes, padded_inputs(self.size)

    def write(self, first: Any, count: Any) -> None:
        """`panel` and `xscale` of `count` tokens from `first` on; what is left of the block holds any numbers."""
        T, k, nb, panel = self.T, self.k, self.tokens, self.k.arg("panel")
        k.store(panel, self.width * nb, k.splat(T.uint8(dot.X_OFFSET), nb), nb)
        with T.serial(0, count) as row:
            self._quantise(first + row, row)
        # 16 inputs of all tokens at a time: whole cache lines are stored
        every = [T.int32(i) for i in range(nb)]
        with T.serial(0, self.width // 16) as part:
            rows = []
            for row in range(16):
                quarters = [k.load(k.arg("xq"), part * 16 + (row + i) * self.width, 16) for i in range(0, nb, 16)]
                held = k.local(nb, "uint8")
                k.store(held, 0, T.reinterpret(f"uint8x{nb}", T.Shuffle(quarters, every)), nb)
                rows.append(k.load(held, 0, nb))
            for column, value in enumerate(self._interleaved(rows)):
                k.store(panel, (part * 16 + column) * nb, value, nb)

    def _interleaved(self, rows: list[Any]) -> list[Any]:
        """Columns of 16 x 16 bytes, in every 128 bits: four rounds of interleaving row i with row i + 8."""
        k, nb = self.k, self.tokens
        low, high = (
            [part + at // 2 + nb * (at % 2) for part in range(0, nb, 16) for at in range(first, first + 16)]
            for first in (0, 16)
        )
        for _ in range(4):
            mixed = []
            for a, b in zip(rows[:8], rows[8:], strict=True):
                mixed += [bind(k, k.shuffle(a, b, low)), bind(k, k.shuffle(a, b, high))]
            rows = mixed
        return rows

    def _quantise(self, row: Any, local: Any) -> None:
        """Row `row` of x to row `local` of xq, as unsigned bytes."""
        T, k, n, size = self.T, self.k, self.lanes, self.size
        x, start, to = k.arg("x"), bind(k, row * size), bind(k, local * self.width)
        largest = bind(k, largest_of_run(k, x, start, size))
        k.store(k.arg("xscale"), local, largest * T.float32(1.0 / ACTIVATION_MAX))
        inverse = bind(k, inverse_scale(k, largest))

        def one(value: Any, at: Any) -> None:
            whole = nearest(k, value * k.splat(inverse, n), n) + k.i32(dot.X_OFFSET, n)
            k.store(k.arg("xq"), to + at, T.Cast(f"int8x{n}", whole), n)

        if size >= n:
            with T.serial(0, size // n) as i:
                prefetch_vector(k, x, start + i * n + size)  # the next row
                one(k.load(x, start + i * n, n), i * n)
        if size % n:
            done = size // n * n
            one(partial_vector(k, x, start + done, size % n), done)
