"""A node of the `sparsec` domain that was made, with what a graph needs to hold it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from sparsec.errors import ModelError
from sparsec.op_view import DOMAIN

__all__ = ["VERSION", "Built"]

VERSION = 1
"""Of the domain."""
_LOWEST_OPSET = 18


@dataclass(frozen=True, eq=False)
class Built:
    """A new node that is not in a graph yet, with the initializers and the function it needs."""

    node: ir.Node
    initializers: tuple[ir.Value, ...]
    overload: str
    _body: Callable[[int], ir.Function]

    @property
    def output(self) -> ir.Value:
        """The node's result."""
        return self.node.outputs[0]

    def function(self, opset: int = _LOWEST_OPSET) -> ir.Function:
        """The model-local function for a model of that opset."""
        return self._body(opset)

    def register(self, model: ir.Model) -> None:
        """Give the model the node's initializers and function, and the versions they need; the node itself is the
        caller's to insert.

        Raises ModelError below opset 18, or when a different value already has an initializer's name.
        """
        opset = model.opset_imports.get("", 0)
        if opset < _LOWEST_OPSET:
            raise ModelError(
                f"sparsec operators need opset {_LOWEST_OPSET} or later, the model has {opset}; convert it first"
            )
        for value in self.initializers:
            assert value.name is not None
            known = model.graph.initializers.get(value.name)
            if known is None:
                model.graph.register_initializer(value)
            elif known is not value:
                raise ModelError(f"an initializer named '{value.name}' exists already; choose another weight name")
        key = self.node.op_identifier()
        if key not in model.functions:
            model.functions[key] = self.function(opset)
        model.graph.opset_imports[DOMAIN] = VERSION
        model.ir_version = max(model.ir_version or 0, 10)
