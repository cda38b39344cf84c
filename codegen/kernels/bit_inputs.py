"""Rounded inputs of bit_gemv.py, and what their sums by bits begin with.

Inputs are chosen four at a time (a quad); what all |x| of a quad's negative inputs add up to is added to the sums of its chosen ones,
which makes them at least 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsec.codegen.isa import dot
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels.bit_weights import spans, width
from sparsec.codegen.kernels.gemv_rounding import Rounding
from sparsec.codegen.program import Arg

ENTRIES = 16  # sums of four inputs, one for each choice of them


def work_arguments(p: Mapping[str, Any]) -> list[Arg]:
    """Scratch: rounded inputs, by block their scales and sums and where sums of products begin; |x| of quads and of negative ones.

    begins are whole numbers, times the scale of the block's inputs where blocks have one each.
    """
    inputs, blocks = width(p), width(p) // p["block"]
    return [
        Arg("xq", "int8", inputs + 64, "work"),
        Arg("xscale", "float32", blocks, "work"),
        Arg("xsum", "int32", blocks, "work"),
        Arg("begins", "float32" if p["x_group"] else "int32", blocks, "work"),
        Arg("sizes", "int32", inputs // 4 + 16, "work"),
        Arg("negatives", "int32", inputs // 4 + 16, "work"),
    ]


class Inputs:
    """Writes the code (`k`: KernelBuilder)."""

    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.p, self.k, self.T = p, k, k.T
        self.dot, self.width = dot.ByteDot(k), width(p)
        weight = {"k": p["k"], "block": p["block"], "sparse": False}
        self.rounding = Rounding({"x_group": p["x_group"], "w": weight}, k)

    def write(self) -> None:
        """All of `work_arguments`."""
        T, nb = self.T, self.dot.bytes
        self.rounding.quantise_rows(T.int32(0), 1)
        with T.serial(0, -(-self.width // nb)) as i:
            self._sizes(i)
        with T.serial(0, spans(self.p)) as block:
            self._begin(block)

    def _sizes(self, i: Any) -> None:
        """`sizes` and `negatives` of a vector of inputs: the sums of |x| and of negative ones' |x| of its quads."""
        T, k, n, nb = self.T, self.k, self.dot.lanes, self.dot.bytes
        x = bind(k, k.load(k.arg("xq"), i * nb, nb))
        zero, one = k.splat(T.int8(0), nb), k.splat(T.int8(1), nb)
        minus = bind(k, zero - x)
        for name, of in (("sizes", T.max(x, minus)), ("negatives", T.max(minus, zero))):
            k.store(k.arg(name), i * n, self.dot.widen(self.dot.pairs(of, one)), n)

    def _begin(self, block: Any) -> None:
        """What the sums of a block that are looked up lack of its products."""
        T, k = self.T, self.k
        below, quads = k.local(1, "int32"), self.p["block"] // 4
        k.store(below, 0, T.int32(0))
        with T.serial(0, quads) as i:
            k.store(below, 0, k.load(below, 0) + k.load(k.arg("negatives"), block * quads + i))
        base, together = (k.load(k.arg("levels"), at) for at in range(2))
        begin = k.load(k.arg("xsum"), block) * base - k.load(below, 0) * together
        if self.p["x_group"]:
            begin = T.Cast("float32", begin) * k.load(k.arg("xscale"), block)
        k.store(k.arg("begins"), block, begin)
