"""What the stages of structured removal hand on: the model as it was, and how outputs of the smaller one relate to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsec.passes.layers import Removal

__all__ = ["Structured"]

Matrix = NDArray[np.floating[Any]]


@dataclass
class Structured:
    """before: the canonical model before anything went, or None if nothing is asked for. wanted: by the name of a linear layer's
    node, T [outputs before, outputs now]: its outputs should be T^T times what they were; missing where nothing changed. values: by a
    node that is new, the name of a value in `before`, a node there that comes after it, and T: it should give T^T times that."""

    before: ir.Model | None = None
    wanted: dict[str, Matrix] = field(default_factory=dict)
    values: dict[str, tuple[str, str, Matrix]] = field(default_factory=dict)
    records: list[Removal] = field(default_factory=list)

    def change(self, node: str, rows: int, step: Matrix) -> None:
        """The outputs of a layer, `rows` of them so far, were multiplied by `step` [outputs, fewer] on the right."""
        self.wanted[node] = self.wanted[node] @ step if node in self.wanted else np.eye(rows, dtype=np.float32) @ step
