"""A small builder for ONNX function bodies: operators in, values out, constants where they are used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["Body", "reference"]


def reference(function_attribute: str, kind: ir.AttributeType, name: str | None = None) -> ir.Attr:
    """An attribute (of that name, or else `name`) of a body node that takes the value of the function's attribute."""
    return ir.RefAttr(name or function_attribute, function_attribute, kind)


class Body:
    """Collects the nodes of one function body of standard ONNX operators (opset 18 or later).

    Bodies are much of a small file, so equal constants are one node, nodes have no names and values short ones.
    """

    def __init__(self) -> None:
        self._nodes: list[ir.Node] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        references: Mapping[str, ir.Attr] | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Append a node with one output and return that output; None skips an optional input.

        references: attributes that take the value of an attribute of the function, made by `reference`.
        """
        node = ir.node(op_type, inputs, {**attributes, **(references or {})})
        self._nodes.append(node)
        return node.outputs[0]

    def cast(self, value: ir.Value, dtype: str) -> ir.Value:
        """Convert to the ONNX data type of that name, such as "FLOAT" or "INT64"."""
        return self.op("Cast", value, to=int(ir.DataType[dtype]))

    def const(self, array: np.ndarray) -> ir.Value:
        """A constant tensor."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.op("Constant", **_constant(array))
        return self._constants[key]

    def float_const(self, value: float) -> ir.Value:
        """A float32 scalar."""
        return self.const(np.array(value, np.float32))

    def int_const(self, value: int) -> ir.Value:
        """An int64 scalar."""
        return self.const(np.array(value, np.int64))

    def ints_const(self, values: Sequence[int]) -> ir.Value:
        """An int64 vector."""
        return self.const(np.array(values, np.int64))

    def arange(self, count: int) -> ir.Value:
        """int64 0 .. count-1, computed in the body so that it costs no bytes in the file."""
        return self.op("Range", self.int_const(0), self.int_const(count), self.int_const(1))

    def function(
        self,
        domain: str,
        name: str,
        overload: str,
        inputs: Sequence[ir.Value],
        output: ir.Value,
        attributes: Iterable[tuple[str, ir.AttributeType]],
        opset: int,
    ) -> ir.Function:
        """Close the body into a model-local function."""
        graph = ir.Graph(inputs, [output], nodes=self._nodes, opset_imports={"": opset}, name=name)
        for number, node in enumerate(self._nodes):
            node.name = None
            node.outputs[0].name = f"v{number}"
        output.name = "result"
        return ir.Function(
            domain, name, overload, graph=graph, attributes=[ir.Attr(key, kind, None) for key, kind in attributes]
        )


def _constant(array: np.ndarray) -> dict[str, Any]:
    """The attribute of a Constant node, in the form that takes the fewest bytes."""
    if array.dtype == np.float32 and array.ndim == 0:
        return {"value_float": float(array)}
    if (
        array.dtype == np.int64 and array.ndim < 2 and array.size and array.min() >= 0
    ):  # negative ones take ten bytes each
        return {"value_ints": array.tolist()} if array.ndim else {"value_int": int(array)}
    return {"value": ir.AttrTensor("value", ir.Tensor(array))}
