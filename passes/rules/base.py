"""What all our rewrite rules share: a typed base class and ways to read constants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.rewriter import pattern

__all__ = ["RewriteRule", "array_of", "constant", "producer", "rank_of"]

if TYPE_CHECKING:

    class RewriteRule:
        """onnxscript's `RewriteRuleClassBase`: subclasses define `pattern`, `check` and `rewrite`, each with the
        pattern's variables as arguments. (onnxscript leaves it untyped, and its signatures cannot be narrowed.)"""

        def __init__(self, name: str | None = None) -> None: ...

        @classmethod
        def rule(cls, *args: Any) -> pattern.RewriteRule:
            """The rule that an instance made with these arguments stands for."""

else:
    RewriteRule = pattern.RewriteRuleClassBase


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The array of an initializer, None for everything else."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def producer(value: ir.Value) -> ir.Node:
    """The node that makes a value a pattern matched as a result."""
    node = value.producer()
    assert node is not None
    return node


def array_of(value: ir.Value) -> NDArray[Any]:
    """The array of a value that `check` found constant."""
    array = constant(value)
    assert array is not None
    return array


def rank_of(value: ir.Value) -> int:
    """Number of dimensions of a value whose shape is known."""
    assert value.shape is not None
    return len(value.shape)
