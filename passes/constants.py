"""New constants of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["register_constant"]


def register_constant(model: ir.Model, name: str, array: NDArray[Any]) -> ir.Value:
    """A new initializer, called `name` or, where that is taken, `name` and a number."""
    taken = {value.name for value in model.graph.inputs} | set(model.graph.initializers)
    wanted, number = name, 1
    while name in taken:
        name, number = f"{wanted}.{number}", number + 1
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value
