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

from sparsec.passes.rules.base import RewriteRule, constant


def close(value: ir.Value | None, wanted: float) -> bool:
    """True if the value is a constant of one element near `wanted` (exporters round differently)."""
    array = constant(value)
    return array is not None and array.size == 1 and math.isclose(float(array.reshape(())), wanted, rel_tol=1e-3)


class _Product(RewriteRule):
    """0.5 * x * (1 + f(x)), multiplied in any order; constants are on the right already."""

    def __init__(self, order: int, form: str) -> None:
        super().__init__(f"{type(self).__name__}_{order}_{form}")
        self.order, self.form = order, form

    def product(self, op: Any, x: Any, half: Any, gate: Any) -> Any:
        match self.order:
            case 0:
                return op.Mul(op.Mul(x, gate), half)
            case 1:
                return op.Mul(op.Mul(gate, x), half)
            case 2:
                return op.Mul(op.Mul(x, half), gate)
            case 3:
                return op.Mul(gate, op.Mul(x, half))
            case 4:
                return op.Mul(x, op.Mul(gate, half))
            case _:
                return op.Mul(op.Mul(gate, half), x)


class ErfGelu(_Product):
    """The argument of erf is x / sqrt(2) or x * sqrt(1/2)."""

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


class _TanhGelu(_Product):
    """The argument of tanh is root * (x + small * x^3); subclasses write the cube."""

    def argument(self, op: Any, x: Any, cube: Any, root: Any, small: Any) -> Any:
        cubed = op.Mul(cube, small)
        return op.Tanh(op.Mul(op.Add(x, cubed) if self.form == "x_first" else op.Add(cubed, x), root))

    def check(
        self, context: Any, half: ir.Value, one: ir.Value, root: ir.Value, small: ir.Value, **others: Any
    ) -> MatchResult:
        result = MatchResult()
        right = close(half, 0.5) and close(one, 1.0) and close(root, math.sqrt(2 / math.pi)) and close(small, 0.044715)
        if not right or ("three" in others and not close(others["three"], 3.0)):
            return result.fail("the constants are not those of the tanh form of Gelu")
        return result

    def rewrite(self, op: Any, x: ir.Value, **_: Any) -> Any:
        return op.Gelu(x, approximate="tanh")


class TanhGeluPow(_TanhGelu):
    def pattern(self, op: Any, x: Any, half: Any, one: Any, root: Any, small: Any, three: Any) -> Any:
        return self.product(op, x, half, op.Add(self.argument(op, x, op.Pow(x, three), root, small), one))


class TanhGeluSquareTimes(_TanhGelu):
    def pattern(self, op: Any, x: Any, half: Any, one: Any, root: Any, small: Any) -> Any:
        return self.product(op, x, half, op.Add(self.argument(op, x, op.Mul(op.Mul(x, x), x), root, small), one))


class TanhGeluTimesSquare(_TanhGelu):
    def pattern(self, op: Any, x: Any, half: Any, one: Any, root: Any, small: Any) -> Any:
        return self.product(op, x, half, op.Add(self.argument(op, x, op.Mul(x, op.Mul(x, x)), root, small), one))


erf_gelu_rules = pattern.RewriteRuleSet([ErfGelu.rule(order, form) for order in range(6) for form in ("div", "mul")])
tanh_gelu_rules = pattern.RewriteRuleSet(
    [
        rule.rule(order, form)
        for rule in (TanhGeluPow, TanhGeluSquareTimes, TanhGeluTimesSquare)
        for order in range(6)
        for form in ("x_first", "x_last")
    ]
)
hardswish_rules = fuse_hardswish_rules()
