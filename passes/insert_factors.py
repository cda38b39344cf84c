"""Put a factored weight into the graph: every product with it becomes a chain of products, in standard operators and Decode.

    MatMul(x, W)    V x, then U (V x); block-diagonal factors are 1x1 convolutions with groups, each row an image of one pixel
    Conv(x, W)      the first factor is a convolution as W is, the others are 1x1 convolutions

The branch is added to the main chain's result; fusing makes it the main product's residual.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec import ops
from sparsec.passes.factor.form import Factor, Factored, factor_name
from sparsec.passes.weights import Weight

__all__ = ["insert_factors"]


def insert_factors(model: ir.Model, weight: Weight, form: Factored) -> None:
    """Replace all uses of a weight, which no lookup and no grouped convolution reads, and drop it."""
    model.graph.initializers.pop(weight.name)
    decoded: dict[str, ir.Value] = {}
    for use in weight.uses:
        _Rewrite(model, weight, use.node, decoded).replace(form)


class _Rewrite:
    """One node on its way to chains of products; `decoded` holds the factors that earlier nodes have decoded."""

    def __init__(self, model: ir.Model, weight: Weight, node: ir.Node, decoded: dict[str, ir.Value]) -> None:
        self.model, self.weight, self.node, self.decoded = model, weight, node, decoded
        self.nodes: list[ir.Node] = []

    def replace(self, form: Factored) -> None:
        node = self.node
        # The branch comes first: of two products that are added the later one takes the addition.
        side = self._chain(form.branch, None) if form.branch else None
        result = self._chain(form.main, node.inputs[2] if len(node.inputs) > 2 else None)
        if side is not None:
            result = self._op("Add", [result, side], _shape(result), f"{node.name}.with_branch")
        old = node.outputs[0]
        ir.convenience.replace_nodes_and_values(self.model.graph, node, [node], self.nodes, [old], [result])

    def _chain(self, factors: Sequence[Factor], bias: ir.Value | None) -> ir.Value:
        value = self.node.inputs[0]
        assert value is not None
        for number, factor in enumerate(factors):
            last = bias if number == len(factors) - 1 else None
            if self.node.op_type == "Conv":
                value = self._convolution(factor, value, last, pointwise=number > 0)
            elif factor.groups == 1:
                value = self._product(factor, value, last)
            else:
                value = self._blocks(factor, value, last)
        return value

    def _product(self, factor: Factor, x: ir.Value, bias: ir.Value | None) -> ir.Value:
        matrix = self._decode(factor, (factor.inputs, factor.rows), trans=True)
        result = self._op("MatMul", [x, matrix], (*_shape(x)[:-1], factor.rows), self._name(factor))
        return self._plus(result, bias, factor)

    def _blocks(self, factor: Factor, x: ir.Value, bias: ir.Value | None) -> ir.Value:
        """Block-diagonal times rows: each row is an image of one pixel."""
        name, lead, count = self._name(factor), _shape(x)[:-1], math.prod(_shape(x)[:-1])
        if factor.shuffle:
            parts = (count, factor.shuffle, factor.groups, factor.inputs // (factor.shuffle * factor.groups))
            x = self._swapped(self._reshape(x, parts, f"{name}.parts"), f"{name}.shuffled")
        x = self._reshape(x, (count, factor.inputs, 1, 1), f"{name}.pixels")
        kernel = self._decode(factor, (factor.rows, factor.coded.cols, 1, 1))
        x = self._op("Conv", [x, kernel], (count, factor.rows, 1, 1), name, kernel_shape=[1, 1], group=factor.groups)
        return self._plus(self._reshape(x, (*lead, factor.rows), f"{name}.rows"), bias, factor)

    def _convolution(self, factor: Factor, x: ir.Value, bias: ir.Value | None, *, pointwise: bool) -> ir.Value:
        name, taps = self._name(factor), () if pointwise else self.weight.shape[2:]
        ones = (1,) * (len(self.weight.shape) - 2)
        if factor.shuffle:
            shape = _shape(x)
            parts = (shape[0], factor.shuffle, factor.groups, math.prod(shape[1:]) // (factor.shuffle * factor.groups))
            x = self._reshape(
                self._swapped(self._reshape(x, parts, f"{name}.parts"), f"{name}.swapped"), shape, f"{name}.shuffled"
            )
        shape = (factor.rows, factor.coded.cols // math.prod(taps), *(taps or ones))
        attributes: dict[str, Any] = {} if pointwise else dict(self.node.attributes)
        attributes |= {"group": factor.groups, "kernel_shape": list(taps or ones)}
        inputs = [x, self._decode(factor, shape), *([] if bias is None else [bias])]
        spatial = _shape(x)[2:] if pointwise else _shape(self.node.outputs[0])[2:]
        return self._op("Conv", inputs, (_shape(x)[0], factor.rows, *spatial), name, **attributes)

    def _plus(self, value: ir.Value, bias: ir.Value | None, factor: Factor) -> ir.Value:
        if bias is None:
            return value
        return self._op("Add", [value, bias], _shape(value), f"{self._name(factor)}.biased")

    def _decode(self, factor: Factor, shape: Sequence[int], *, trans: bool = False) -> ir.Value:
        name = factor_name(self.weight.name, factor)
        if name not in self.decoded:
            built = ops.decode(ops.weight_inputs(factor.coded, name), shape, trans=trans, name=f"{name}.decode")
            built.output.name = f"{name}.decoded"
            built.register(self.model)
            self.nodes.append(built.node)
            self.decoded[name] = built.output
        return self.decoded[name]

    def _swapped(self, value: ir.Value, name: str) -> ir.Value:
        shape = _shape(value)
        return self._op("Transpose", [value], (shape[0], shape[2], shape[1], shape[3]), name, perm=[0, 2, 1, 3])

    def _reshape(self, value: ir.Value, shape: Sequence[int], name: str) -> ir.Value:
        tensor = ir.tensor(np.array(shape, np.int64), name=f"{name}.shape")
        sizes = ir.Value(
            name=tensor.name, shape=ir.Shape([len(shape)]), type=ir.TensorType(ir.DataType.INT64), const_value=tensor
        )
        self.model.graph.register_initializer(sizes)
        return self._op("Reshape", [value, sizes], shape, name)

    def _op(
        self, kind: str, inputs: Sequence[ir.Value], shape: Sequence[int], name: str, **attributes: Any
    ) -> ir.Value:
        node = ir.node(kind, list(inputs), attributes, name=name)
        result = node.outputs[0]
        result.name, result.shape, result.dtype = f"{name}.out", ir.Shape(shape), ir.DataType.FLOAT
        self.nodes.append(node)
        return result

    def _name(self, factor: Factor) -> str:
        return f"{self.node.name}.{factor.label}" if factor.label else self.node.name or ""


def _shape(value: ir.Value) -> tuple[int, ...]:
    assert value.shape is not None
    return tuple(int(size) for size in value.shape.numpy())
