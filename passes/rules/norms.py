"""Decomposed normalisations over the last axis become LayerNormalization (opset 17) and RMSNormalization (23).

LayerNorm  (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * scale + bias        (Ba et al. 2016)
RMSNorm    x / sqrt(mean(x^2) + eps) * scale                                       (Zhang, Sennrich 2019)
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern
from onnxscript.rewriter._basics import MatchResult

from sparsec.passes.rules.base import RewriteRule, array_of, constant, producer, rank_of


class LayerNorm(RewriteRule):
    """The deviation is squared by Pow or Mul, and divided by the root or multiplied by its reciprocal."""

    def __init__(self, square: str, root: str) -> None:
        super().__init__(f"LayerNorm_{square}_{root}")
        self.square, self.root = square, root

    def pattern(self, op: Any, x: Any, scale: Any, axes: Any, axes_again: Any, epsilon: Any) -> Any:
        deviation = op.Sub(x, op.ReduceMean(x, axes, keepdims=1, _allow_other_attributes=True))
        square = op.Mul(deviation, deviation) if self.square == "mul" else op.Pow(deviation, 2)
        variance = op.ReduceMean(square, axes_again, keepdims=1, _allow_other_attributes=True)
        root = op.Sqrt(op.Add(variance, epsilon))
        normalised = op.Div(deviation, root) if self.root == "div" else op.Mul(deviation, op.Reciprocal(root))
        return op.Mul(normalised, scale)

    def check(
        self, context: Any, x: ir.Value, scale: ir.Value, axes: ir.Value, axes_again: ir.Value, epsilon: ir.Value
    ) -> MatchResult:
        result = MatchResult()
        if x.shape is None or x.dtype != ir.DataType.FLOAT:
            return result.fail("not a float32 input of known rank")
        if not all(_is_last_axis(value, rank_of(x)) for value in (axes, axes_again)):
            return result.fail("the means are not over the last axis")
        eps = constant(epsilon)
        if eps is None or eps.size != 1:
            return result.fail("epsilon is not a constant")
        if not _is_last_axis_vector(scale, x):
            return result.fail("the scale is not a constant vector over the last axis")
        return result

    def rewrite(self, op: Any, x: ir.Value, scale: ir.Value, epsilon: ir.Value, **_: Any) -> Any:
        return op.LayerNormalization(x, scale, axis=-1, epsilon=float(array_of(epsilon).reshape(())))


class LayerNormBias(RewriteRule):
    """LayerNormalization(x, scale) + constant vector; an added residual must stay an addition."""

    def pattern(self, op: Any, x: Any, scale: Any, bias: Any) -> Any:
        return op.Add(op.LayerNormalization(x, scale, _allow_other_attributes=True, _outputs=["normalised"]), bias)

    def check(self, context: Any, x: ir.Value, bias: ir.Value, **_: Any) -> MatchResult:
        result = MatchResult()
        return result if _is_last_axis_vector(bias, x) else result.fail("the bias is not a constant vector")

    def rewrite(self, op: Any, x: ir.Value, scale: ir.Value, bias: ir.Value, normalised: ir.Value) -> Any:
        return op.LayerNormalization(x, scale, bias, **producer(normalised).attributes)


class _RmsNorm(RewriteRule):
    """Subclasses write the square; constants are on the right already."""

    def __init__(self, root: str, x_first: bool) -> None:
        super().__init__(f"{type(self).__name__}_{root}_{x_first}")
        self.root, self.x_first = root, x_first

    def normalise(self, op: Any, x: Any, square: Any, scale: Any, axes: Any, epsilon: Any) -> Any:
        mean = op.ReduceMean(square, axes, keepdims=1, _allow_other_attributes=True)
        root = op.Sqrt(op.Add(mean, epsilon))
        if self.root == "div":
            return op.Mul(op.Div(x, root), scale)
        inverse = op.Reciprocal(root) if self.root == "reciprocal" else op.Div(1.0, root)
        return op.Mul(op.Mul(x, inverse) if self.x_first else op.Mul(inverse, x), scale)

    def check(
        self, context: Any, x: ir.Value, scale: ir.Value, axes: ir.Value, epsilon: ir.Value, two: Any = None
    ) -> MatchResult:
        result = MatchResult()
        if x.shape is None or x.dtype != ir.DataType.FLOAT:
            return result.fail("not a float32 input of known rank")
        if not _is_last_axis(axes, len(x.shape)):
            return result.fail("the mean is not over the last axis")
        eps, power = constant(epsilon), constant(two)
        if eps is None or eps.size != 1 or (two is not None and (power is None or power.size != 1 or power != 2)):
            return result.fail("epsilon or the exponent is not the constant it should be")
        if not _is_last_axis_vector(scale, x):
            return result.fail("the scale is not a constant vector over the last axis")
        return result

    def rewrite(self, op: Any, x: ir.Value, scale: ir.Value, epsilon: ir.Value, **_: Any) -> Any:
        return op.RMSNormalization(x, scale, axis=-1, epsilon=float(array_of(epsilon).reshape(())))


class RmsNormPow(_RmsNorm):
    def pattern(self, op: Any, x: Any, scale: Any, two: Any, axes: Any, epsilon: Any) -> Any:
        return self.normalise(op, x, op.Pow(x, two), scale, axes, epsilon)


class RmsNormMul(_RmsNorm):
    def pattern(self, op: Any, x: Any, scale: Any, axes: Any, epsilon: Any) -> Any:
        return self.normalise(op, x, op.Mul(x, x), scale, axes, epsilon)


def _is_last_axis(axes: ir.Value, rank: int) -> bool:
    array = constant(axes)
    return array is not None and array.size == 1 and int(array.reshape(())) % rank == rank - 1


def _is_last_axis_vector(value: ir.Value, x: ir.Value) -> bool:
    array = constant(value)
    return array is not None and x.shape is not None and array.shape == (x.shape[-1],)


layernorm_rules = pattern.RewriteRuleSet(
    [
        *(LayerNorm.rule(square, root) for square in ("pow", "mul") for root in ("div", "reciprocal")),
        LayerNormBias.rule(),
    ]
)
rmsnorm_rules = pattern.RewriteRuleSet(
    [
        rule.rule(root, x_first)
        for rule in (RmsNormPow, RmsNormMul)
        for root, x_first in (
            ("div", True),
            ("reciprocal", True),
            ("reciprocal", False),
            ("inverse", True),
            ("inverse", False),
        )
    ]
)
