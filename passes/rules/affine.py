"""Fold constant per-channel scales and offsets into the linear operator before them.

BatchNormalization(x) = x * s + t,  s = gamma / sqrt(var + eps),  t = beta - mean * s     (one value per channel)
Conv(x, W, b) * s     = Conv(x, W * s, b * s)        Conv(x, W, b) + t = Conv(x, W, b + t)
MatMul(x, W) * s      = MatMul(x, W * s)             Gemm likewise, with its bias
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.rewriter import pattern
from onnxscript.rewriter._basics import MatchResult

from sparsec.passes.rules.base import RewriteRule, array_of, constant, producer, rank_of

Array = NDArray[np.floating[Any]]


def per_channel(array: NDArray[Any], rank: int, axis: int, channels: int) -> Array | None:
    """`array` as a vector [channels] if, broadcast to `rank` dimensions, it varies along `axis` only; else None."""
    if array.size == 1:
        return np.full(channels, array.reshape(()), dtype=array.dtype)
    shape = (1,) * (rank - array.ndim) + array.shape
    wanted = tuple(channels if i == axis % rank else 1 for i in range(rank))
    return array.reshape(channels) if len(shape) == rank and shape == wanted else None


class BatchNormToMulAdd(RewriteRule):
    """Whatever batch normalisation no neighbour absorbed becomes one multiplication and one addition."""

    def pattern(self, op: Any, x: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> Any:
        return op.BatchNormalization(x, gamma, beta, mean, var, _allow_other_attributes=True, _outputs=["normalised"])

    def check(self, context: Any, x: ir.Value, normalised: ir.Value, **params: ir.Value) -> MatchResult:
        result = MatchResult()
        if x.shape is None or any(constant(value) is None for value in params.values()):
            return result.fail("the rank of the input or a parameter is not known")
        if producer(normalised).attributes.get_int("training_mode", 0):
            return result.fail("batch normalisation in training mode")
        return result

    def rewrite(self, op: Any, x: ir.Value, normalised: ir.Value, **params: ir.Value) -> Any:
        gamma, beta, mean, var = (array_of(params[name]) for name in ("gamma", "beta", "mean", "var"))
        scale = gamma / np.sqrt(var + producer(normalised).attributes.get_float("epsilon", 1e-5))
        shape = (-1,) + (1,) * (rank_of(x) - 2)
        name = normalised.name
        return op.Add(
            op.Mul(x, op.initializer(ir.tensor(scale.astype(gamma.dtype).reshape(shape)), f"{name}_scale")),
            op.initializer(ir.tensor((beta - mean * scale).astype(gamma.dtype).reshape(shape)), f"{name}_offset"),
        )


class _AfterLinear(RewriteRule):
    """Common part: `linear(x, W, b?) <op> constant`, the constant one value per output channel."""

    linear: str
    arithmetic: str

    def pattern(self, op: Any, x: Any, w: Any, other: Any) -> Any:
        y = getattr(op, self.linear)(x, w, _allow_other_inputs=True, _allow_other_attributes=True, _outputs=["y"])
        return getattr(op, self.arithmetic)(y, other)

    def check(self, context: Any, x: ir.Value, w: ir.Value, other: ir.Value, y: ir.Value) -> MatchResult:
        result = MatchResult()
        node = producer(y)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        weight, value = constant(w), constant(other)
        if weight is None or value is None or (bias is not None and constant(bias) is None):
            return result.fail("weight, bias or operand is not constant")
        if not np.issubdtype(weight.dtype, np.floating) or y.shape is None:
            return result.fail("not a float weight, or a result of unknown rank")
        if self._vector(node, weight, value, len(y.shape)) is None:
            return result.fail("the operand is not one value per output channel")
        if bias is not None and self.linear == "Gemm":
            array = constant(bias)
            if array is not None and array.size not in (1, self._channels(node, weight)):
                return result.fail("the bias of Gemm is a matrix")
        return result

    def rewrite(self, op: Any, x: ir.Value, w: ir.Value, other: ir.Value, y: ir.Value) -> Any:
        node = producer(y)
        weight, value = array_of(w), array_of(other)
        vector = self._vector(node, weight, value, rank_of(y))
        assert vector is not None
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        attributes = dict(node.attributes)
        name = y.name
        if self.arithmetic == "Mul":
            shape = [1] * weight.ndim
            shape[self._axis(node)] = -1
            inputs = [
                op.initializer(
                    ir.tensor((weight * vector.reshape(shape)).astype(weight.dtype)), _name_for(w, f"{name}_w")
                )
            ]
            if bias is not None:
                scaled = (bias.reshape(-1) * vector).astype(weight.dtype)
                inputs.append(op.initializer(ir.tensor(scaled), f"{name}_b"))
        else:
            beta = node.attributes.get_float("beta", 1.0) if self.linear == "Gemm" else 1.0
            attributes.pop("beta", None)
            total = vector if bias is None else bias.reshape(-1) * np.float32(beta) + vector
            inputs = [w, op.initializer(ir.tensor(total.astype(weight.dtype)), f"{name}_b")]
        return op.op(self.linear, x, *inputs, **attributes)

    def _axis(self, node: ir.Node) -> int:
        """Axis of the weight that counts output channels."""
        if self.linear == "Conv":
            return 0
        return 0 if self.linear == "Gemm" and node.attributes.get_int("transB", 0) != 0 else -1

    def _channels(self, node: ir.Node, weight: NDArray[Any]) -> int:
        return int(weight.shape[self._axis(node)])

    def _vector(self, node: ir.Node, weight: NDArray[Any], value: NDArray[Any], rank: int) -> Array | None:
        if value.ndim > rank or (self.linear == "MatMul" and weight.ndim != 2):
            return None
        return per_channel(value, rank, 1 if self.linear == "Conv" else rank - 1, self._channels(node, weight))


class GemmScalars(RewriteRule):
    """alpha and beta of Gemm go into its constants: alpha * x @ B + beta * C = x @ (alpha * B) + (beta * C)."""

    def pattern(self, op: Any, x: Any, w: Any) -> Any:
        return op.Gemm(x, w, _allow_other_inputs=True, _allow_other_attributes=True, _outputs=["y"])

    def check(self, context: Any, x: ir.Value, w: ir.Value, y: ir.Value) -> MatchResult:
        result = MatchResult()
        node = producer(y)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
        if alpha == 1.0 and (beta == 1.0 or bias is None):
            return result.fail("nothing to fold")
        if constant(w) is None or (bias is not None and beta != 1.0 and constant(bias) is None):
            return result.fail("weight or bias is not constant")
        return result

    def rewrite(self, op: Any, x: ir.Value, w: ir.Value, y: ir.Value) -> Any:
        node = producer(y)
        attributes = dict(node.attributes)
        inputs = [_scaled(op, w, _number(attributes.pop("alpha", None)), _name_for(w, f"{y.name}_w"))]
        beta = _number(attributes.pop("beta", None))
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            inputs.append(_scaled(op, node.inputs[2], beta, f"{y.name}_b"))
        return op.Gemm(x, *inputs, **attributes)


def _number(attribute: ir.Attr | None) -> float:
    return 1.0 if attribute is None else attribute.as_float()


def _scaled(op: Any, value: ir.Value, factor: float, name: str) -> Any:
    if factor == 1.0:
        return value
    array = array_of(value)
    return op.initializer(ir.tensor((array * np.float32(factor)).astype(array.dtype)), name)


class ConvMul(_AfterLinear):
    linear, arithmetic = "Conv", "Mul"


class ConvAdd(_AfterLinear):
    linear, arithmetic = "Conv", "Add"


class GemmMul(_AfterLinear):
    linear, arithmetic = "Gemm", "Mul"


class GemmAdd(_AfterLinear):
    linear, arithmetic = "Gemm", "Add"


class MatMulMul(_AfterLinear):
    linear, arithmetic = "MatMul", "Mul"


def _name_for(weight: ir.Value, otherwise: str) -> str:
    """A rewritten weight keeps its name, by which recipes and tables know it, unless others still read the old one."""
    return weight.name or otherwise if len(weight.uses()) == 1 else otherwise


batchnorm_rules = [BatchNormToMulAdd.rule()]
affine_rules = pattern.RewriteRuleSet(
    [rule.rule() for rule in (GemmScalars, ConvMul, ConvAdd, GemmMul, GemmAdd, MatMulMul)], commute=True
)
