"""A node of a graph as the operators in this folder see it: attributes, static shapes, constants; and how they say no."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

__all__ = ["Builder", "NodeView", "Refused", "Run", "torch_dtype"]

Run = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]
"""Computes a node: its inputs in order, None where there is none."""


class Refused(Exception):
    """A form of an operator that is not supported; the message says which."""


@dataclass(frozen=True)
class NodeView:
    """Read-only; whatever is asked for and is not static is `Refused`."""

    node: ir.Node

    def ints(self, name: str, default: Sequence[int] = ()) -> tuple[int, ...]:
        return tuple(self.node.attributes.get_ints(name, tuple(default)))

    def integer(self, name: str, default: int) -> int:
        return self.node.attributes.get_int(name, default)

    def number(self, name: str, default: float) -> float:
        return self.node.attributes.get_float(name, default)

    def string(self, name: str, default: str) -> str:
        return self.node.attributes.get_string(name, default)

    def given(self, index: int) -> bool:
        """Whether the node has this input."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def constant(self, index: int) -> NDArray[Any] | None:
        """The array of a constant input, None where there is no such input."""
        if not self.given(index):
            return None
        value = self.node.inputs[index]
        assert value is not None
        if value.const_value is None:
            raise Refused(f"input {index} ('{value.name}') is not a constant")
        return np.asarray(value.const_value.numpy())

    def integers(self, index: int, name: str, default: Sequence[int] = ()) -> tuple[int, ...]:
        """Whole numbers from a constant input, or (older operator sets) the attribute `name`."""
        found = self.constant(index)
        return self.ints(name, default) if found is None else tuple(int(v) for v in found.reshape(-1))

    def shape(self, index: int) -> tuple[int, ...]:
        """Of an input."""
        value = self.node.inputs[index]
        assert value is not None
        return _static(value)

    def result(self, index: int = 0) -> tuple[int, ...]:
        """The shape of an output."""
        return _static(self.node.outputs[index])

    def axis(self, default: int, index: int = 0) -> int:
        """The attribute `axis`, 0 or more, of an input with the rank of input `index`."""
        axis = self.integer("axis", default)
        return axis + len(self.shape(index)) if axis < 0 else axis

    def refuse_auto_pad(self) -> None:
        """Pads are numbers by now; other forms are refused."""
        if self.string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            raise Refused(f"auto_pad {self.string('auto_pad', 'NOTSET')}")


Builder = Callable[[NodeView], Run]
"""Makes the function of one node; raises `Refused`."""


def _static(value: ir.Value) -> tuple[int, ...]:
    if value.shape is None or not value.shape.is_static():
        raise Refused(f"'{value.name}' has no static shape")
    return tuple(int(size) for size in value.shape.numpy())


_DTYPES = {
    "FLOAT": torch.float32, "DOUBLE": torch.float64, "FLOAT16": torch.float16, "INT64": torch.int64, "INT32": torch.int32,
    "INT8": torch.int8, "UINT8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def torch_dtype(dtype: ir.DataType) -> torch.dtype:
    """Raises `Refused` for element types that are not computed with."""
    if dtype.name not in _DTYPES:
        raise Refused(f"element type {dtype.name.lower()}")
    return _DTYPES[dtype.name]
