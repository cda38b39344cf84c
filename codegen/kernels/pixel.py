"""1x1 convolution on images of one pixel (the head of many networks): a matrix product on the same memory."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import onnx_ir as ir

from sparsec import ops
from sparsec.codegen.context import Lowering, Refusal, Rule, Tensor
from sparsec.op_view import view


def as_matmul(rules: Sequence[Rule]) -> Rule:
    """A rule that lowers such a sparsec::Conv as a sparsec::MatMul, by the first of `rules` that takes it."""

    def lower_pixel(node: ir.Node, low: Lowering) -> Refusal | None:
        op = view(node)
        assert op.x is not None
        shape, out_shape = low.shape(op.x), low.shape(op.output)
        if op.group != 1 or prod(op.kernel_shape) != 1 or any(op.pads) or prod(shape[2:]) * prod(out_shape[2:]) != 1:
            return Refusal("not a 1x1 convolution on images of one pixel")
        if op.residual is not None and low.shape(op.residual) != out_shape:
            return Refusal("the residual has not the shape of the result")

        def rows(value: ir.Value) -> ir.Value:
            """The value as a matrix [images, channels]."""
            source = low.get(value)
            matrix = ir.Value(name=f"{value.name}.rows", shape=ir.Shape(source.shape[:2]), type=value.type)
            low.bind(matrix, Tensor(source.buffer, source.dtype, source.shape[:2], "row", source.offset))
            return matrix

        twin = ops.matmul(
            rows(op.x),
            op.weight_inputs,
            bias=op.bias,
            residual=None if op.residual is None else rows(op.residual),
            activation=op.activation,
            act_params=op.act_params,
            name=node.name or "",
        )
        reasons = []
        try:
            for rule in rules:
                refusal = rule(twin.node, low)
                if refusal is None:
                    result = low.get(twin.output)
                    low.bind(op.output, Tensor(result.buffer, result.dtype, out_shape, "row", result.offset))
                    return None
                reasons.append(refusal.reason)
        finally:
            for index in range(len(twin.node.inputs)):  # the graph's values forget a node that is not in it
                twin.node.replace_input_with(index, None)
        return Refusal("; ".join(reasons))

    return lower_pixel
