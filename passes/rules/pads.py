"""Padding belongs to the operator that reads it: explicit `pads` instead of `auto_pad`, Pad nodes into pooling.

SAME_UPPER: out = ceil(in / stride), total = max((out - 1) * stride + (k - 1) * dilation + 1 - in, 0),
            the odd one at the end
AveragePool(Pad(x, 0)) = AveragePool(x, pads, count_include_pad=1)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import pattern
from onnxscript.rewriter._basics import MatchResult

from sparsec.passes.rules.base import RewriteRule, array_of, constant, producer


class ExplicitPads(RewriteRule):
    """auto_pad of pooling operators (onnxscript has the rule for Conv)."""

    def __init__(self, op_type: str) -> None:
        super().__init__(f"ExplicitPads{op_type}")
        self.op_type = op_type

    def pattern(self, op: Any, x: Any) -> Any:
        return getattr(op, self.op_type)(x, _allow_other_attributes=True, _outputs=["y"])

    def check(self, context: Any, x: ir.Value, y: ir.Value) -> MatchResult:
        result = MatchResult()
        node = producer(y)
        if node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET":
            return result.fail("pads are explicit already")
        if x.shape is None or not x.shape.is_static():
            return result.fail("the input shape is not known")
        return result

    def rewrite(self, op: Any, x: ir.Value, y: ir.Value) -> Any:
        node = producer(y)
        assert x.shape is not None
        attributes = dict(node.attributes)
        mode = attributes.pop("auto_pad").as_string()
        kernel = list(attributes["kernel_shape"].as_ints())
        ones = [1] * len(kernel)
        strides = list(attributes["strides"].as_ints()) if "strides" in attributes else ones
        dilations = list(attributes["dilations"].as_ints()) if "dilations" in attributes else ones
        begin, end = [], []
        for size, k, stride, dilation in zip(x.shape.numpy()[2:], kernel, strides, dilations, strict=True):
            need = (-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size
            total = 0 if mode == "VALID" else max(need, 0)
            small, large = total // 2, total - total // 2
            begin.append(small if mode != "SAME_LOWER" else large)
            end.append(large if mode != "SAME_LOWER" else small)
        attributes["pads"] = ir.AttrInt64s("pads", begin + end)
        return op.op(self.op_type, x, **attributes)


class PadIntoAveragePool(RewriteRule):
    """A zero Pad of the spatial axes before an average pool that has no padding of its own."""

    def pattern(self, op: Any, x: Any, pads: Any) -> Any:
        padded = op.Pad(x, pads, _allow_other_inputs=True, _allow_other_attributes=True, _outputs=["padded"])
        return op.AveragePool(padded, _allow_other_attributes=True, _outputs=["y"])

    def check(self, context: Any, x: ir.Value, pads: ir.Value, padded: ir.Value, y: ir.Value) -> MatchResult:
        result = MatchResult()
        pad, pool = producer(padded), producer(y)
        amounts = constant(pads)
        if amounts is None or len(pad.inputs) > 3 or pad.attributes.get_string("mode", "constant") != "constant":
            return result.fail("not a constant padding of all axes")
        if len(pad.inputs) > 2 and pad.inputs[2] is not None:
            fill = constant(pad.inputs[2])
            if fill is None or np.any(fill != 0):
                return result.fail("the padding is not zero")
        half = amounts.size // 2
        if np.any(amounts < 0) or np.any(amounts[:2]) or np.any(amounts[half : half + 2]):
            return result.fail("padding of batch or channels, or negative padding")
        attributes = pool.attributes
        if attributes.get_string("auto_pad", "NOTSET") != "NOTSET" or attributes.get_int("ceil_mode", 0) != 0:
            return result.fail("the pool has auto_pad or ceil_mode")
        if any(attributes.get_ints("pads", ())):
            return result.fail("the pool has padding of its own")
        return result

    def rewrite(self, op: Any, x: ir.Value, pads: ir.Value, padded: ir.Value, y: ir.Value) -> Any:
        pool, amounts = producer(y), array_of(pads)
        half = amounts.size // 2
        attributes = dict(pool.attributes)
        attributes["pads"] = ir.AttrInt64s("pads", [int(p) for p in (*amounts[2:half], *amounts[half + 2 :])])
        attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
        return op.AveragePool(x, **attributes)


class MeanToGlobalAveragePool(RewriteRule):
    """ReduceMean over all spatial axes of [N, C, ...] is GlobalAveragePool, reshaped if the axes are dropped."""

    def pattern(self, op: Any, x: Any, axes: Any) -> Any:
        return op.ReduceMean(x, axes, _allow_other_attributes=True, _outputs=["y"])

    def check(self, context: Any, x: ir.Value, axes: ir.Value, y: ir.Value) -> MatchResult:
        result = MatchResult()
        over = constant(axes)
        if x.shape is None or y.shape is None or over is None or not y.shape.is_static():
            return result.fail("the shapes or axes are not known")
        rank = len(x.shape)
        if rank != 4 or {int(axis) % rank for axis in over} != {2, 3}:
            return result.fail("not a mean over the two spatial axes of an image")
        return result

    def rewrite(self, op: Any, x: ir.Value, axes: ir.Value, y: ir.Value) -> Any:
        pooled = op.GlobalAveragePool(x)
        if producer(y).attributes.get_int("keepdims", 1):
            return pooled
        assert y.shape is not None
        shape = op.initializer(ir.tensor(np.array(y.shape.numpy(), np.int64)), f"{y.name}_shape")
        return op.Reshape(pooled, shape)


pooling_rules = pattern.RewriteRuleSet([MeanToGlobalAveragePool.rule()])
pool_pad_rules = [*(ExplicitPads.rule(op) for op in ("MaxPool", "AveragePool", "LpPool")), PadIntoAveragePool.rule()]
