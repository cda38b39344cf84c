"""Decomposed activations become the one operator ONNX has for them.

    Gelu       0.5 * x * (1 + erf(x / sqrt(2)))                                     (Hendrycks, Gimpel 2016)
    Gelu tanh  0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))
    HardSwish  x * clip(x + 3, 0, 6) / 6                                            (Howard et al. 2019)
SiLU stays Mul(x, Sigmoid(x)): ONNX names it (Swish) only from opset 24 on, and the fusing pass knows the pair.
"""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern
from onnxscript.rewriter._basics import MatchResult
from onnxscript.rewriter.rules.common import fuse_hardswish_rules

from sparsec.passes.rules.affine import constant


def close(value: ir.Value | None, wanted: float) -> bool:
    """True if the value is a constant of one element near `wanted` (exporters round differently)."""
    array = constant(value)
    return array is not None and array.size == 1 and math.isclose(float(array.reshape(())), wanted, rel_tol=1e-3)


class _Product(pattern.RewriteRuleClassBase):
    """0.5 * x * (1 + f(x)) multiplied in any of three orders."""

    def __init__(self, order: int) -> None:
        super().__init__(f"{type(self).__name__}{order}")
        self.order = order

    def product(self, op: Any, x: Any, half: Any, gate: Any) -> Any:
        if self.order == 0:
            return op.Mul(op.Mul(x, gate), half)
        if self.order == 1:
            return op.Mul(op.Mul(x, half), gate)
        return op.Mul(x, op.Mul(gate, half))


class ErfGelu(_Product):
    """The argument of erf is x / sqrt(2) or x * sqrt(1/2)."""

    def __init__(self, order: int, form: str) -> None:
        super().__init__(order)
        self.form = form

    def pattern(self, op: Any, x: Any, half: Any, one: Any, root: Any) -> Any:
        inner = op.Div(x, root) if self.form == "div" else op.Mul(x, root)
        return self.product(op, x, half, op.Add(op.Erf(inner), one))

    def check(self, context: Any, half: ir.Value, one: ir.Value, root: ir.Value, **_: Any) -> MatchResult:
        result = MatchResult()
        wanted = math.sqrt(2) if self.form == "div" else math.sqrt(0.5)
        if not (close(half, 0.5) and close(one, 1.0) and close(root, wanted)):
            return result.fail("the constants are not those of Gelu")
        return result

    def rewrite(self, op: Any, x: ir.Value, **_: Any) -> Any:
        return op.Gelu(x)


class TanhGelu(_Product):
    def __init__(self, order: int, cube: str) -> None:
        super().__init__(order)
        self.cube = cube

    def pattern(self, op: Any, x: Any, half: Any, one: Any, root: Any, small: Any, three: Any) -> Any:
        cube = op.Pow(x, three) if self.cube == "pow" else op.Mul(op.Mul(x, x), x)
        inner = op.Mul(op.Add(x, op.Mul(cube, small)), root)
        return self.product(op, x, half, op.Add(op.Tanh(inner), one))

    def check(
        self, context: Any, half: ir.Value, one: ir.Value, root: ir.Value, small: ir.Value, three: Any = None, **_: Any
    ) -> MatchResult:
        result = MatchResult()
        right = close(half, 0.5) and close(one, 1.0) and close(root, math.sqrt(2 / math.pi)) and close(small, 0.044715)
        if not right or (three is not None and not close(three, 3.0)):
            return result.fail("the constants are not those of the tanh form of Gelu")
        return result

    def rewrite(self, op: Any, x: ir.Value, **_: Any) -> Any:
        return op.Gelu(x, approximate="tanh")


gelu_rules = pattern.RewriteRuleSet(
    [
        *(ErfGelu.rule(order, form) for order in range(3) for form in ("div", "mul")),
        *(TanhGelu.rule(order, cube) for order in range(3) for cube in ("pow", "mul")),
    ],
    commute=True,
)
hardswish_rules = fuse_hardswish_rules()
