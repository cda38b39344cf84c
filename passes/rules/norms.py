"""Decomposed normalisations over the last axis become LayerNormalization (opset 17) and RMSNormalization (23).

LayerNorm  (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * scale + bias        (Ba et al. 2016)
RMSNorm    x / sqrt(mean(x^2) + eps) * scale                                       (Zhang, Sennrich 2019)
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern
from onnxscript.rewriter._basics import MatchResult
from onnxscript.rewriter.rules.fusion import _layer_norm

from sparsec.passes.rules.affine import constant


class LayerNorm(_layer_norm.LayerNormFusion):  # type: ignore[misc]
    """onnxscript's rule, with the scale checked: one constant per element of the last axis."""

    def check(self, context: Any, x: ir.Value, scale: ir.Value, epsilon: ir.Value, **_: Any) -> MatchResult:
        result = super().check(context, x, epsilon)
        if not _is_last_axis_vector(scale, x):
            return result.fail("the scale is not a constant vector over the last axis")
        return result


class LayerNormBias(pattern.RewriteRuleClassBase):
    """LayerNormalization(x, scale) + constant vector; an added residual must stay an addition."""

    def pattern(self, op: Any, x: Any, scale: Any, bias: Any) -> Any:
        return op.Add(op.LayerNormalization(x, scale, _allow_other_attributes=True, _outputs=["normalised"]), bias)

    def check(self, context: Any, x: ir.Value, bias: ir.Value, **_: Any) -> MatchResult:
        result = MatchResult()
        return result if _is_last_axis_vector(bias, x) else result.fail("the bias is not a constant vector")

    def rewrite(self, op: Any, x: ir.Value, scale: ir.Value, bias: ir.Value, normalised: ir.Value) -> Any:
        node = normalised.producer()
        assert node is not None
        return op.LayerNormalization(x, scale, bias, **node.attributes)


class _RmsNorm(pattern.RewriteRuleClassBase):
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
        eps = constant(epsilon)
        assert eps is not None
        return op.RMSNormalization(x, scale, axis=-1, epsilon=float(eps.reshape(())))


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


layernorm_rules = pattern.RewriteRuleSet([LayerNorm.rule(), LayerNormBias.rule()], commute=True)
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
