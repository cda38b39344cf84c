"""A canonical graph as a function that torch can differentiate.

The graph keeps the batch it was bound to; many samples run side by side through `torch.vmap`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from sparsec.errors import UnsupportedOpError
from sparsec.formats import EncodedWeight, decode
from sparsec.op_view import SparsecNode, is_sparsec, view
from sparsec.passes.differentiable.elementwise import ELEMENTWISE
from sparsec.passes.differentiable.node import NodeView, Refused, Run, torch_dtype
from sparsec.passes.differentiable.products import PRODUCTS
from sparsec.passes.differentiable.shapes import SHAPES

__all__ = ["OPERATORS", "Network", "as_weight"]

Tensor = torch.Tensor
OPERATORS = {**ELEMENTWISE, **PRODUCTS, **SHAPES}
"""The operators of ONNX that are supported, by name. `sparsec::Decode` is too."""


class Network:
    """Runs the nodes of a graph with static shapes on tensors of one sample.

    constants: initializers by name, as tensors. weights: `sparsec::Decode` nodes by the name of the value they make; without
    another value in a call they give what they decode to. Raises UnsupportedOpError, which lists every node that torch cannot
    compute here, before anything runs.
    """

    def __init__(self, model: ir.Model) -> None:
        self.inputs = [value.name or "" for value in model.graph.inputs if value.const_value is None]
        self.outputs = [value.name or "" for value in model.graph.outputs]
        self.constants: dict[str, Tensor] = {}
        self.weights: dict[str, SparsecNode] = {}
        self._steps: list[tuple[Run, list[str | None], list[str]]] = []
        decoded: dict[str, Tensor] = {}
        blocked: list[str] = []
        for node in model.graph:
            try:
                if is_sparsec(node) and node.op_type == "Decode":
                    found = view(node)
                    name = node.outputs[0].name or ""
                    self.weights[name] = found
                    decoded[name] = torch.tensor(_decoded(found))
                    continue
                self._add(node)
            except Refused as reason:
                blocked.append(f"{node.name or '?'} ({node.domain or 'ai.onnx'}::{node.op_type}): {reason}")
        if blocked:
            raise UnsupportedOpError(
                f"{len(blocked)} node(s) have no gradients here:\n  "
                + "\n  ".join(blocked)
                + f"\nSupported: {', '.join(sorted(OPERATORS))}. Leave out what needs gradients (recover, gblm)."
            )
        self._decoded = decoded
        self._last: dict[str, int] = {}
        for number, (_, reads, _) in enumerate(self._steps):
            self._last.update((name, number) for name in reads if name)

    def _add(self, node: ir.Node) -> None:
        builder = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if builder is None:
            raise Refused("operator is not supported")
        for value in node.inputs:
            if value is not None and value.const_value is not None and (value.name or "") not in self.constants:
                array = np.array(value.const_value.numpy())
                torch_dtype(value.const_value.dtype)
                self.constants[value.name or ""] = torch.from_numpy(array)
        reads = [None if value is None else value.name or "" for value in node.inputs]
        self._steps.append((builder(NodeView(node)), reads, [value.name or "" for value in node.outputs]))

    def __call__(
        self, feed: Mapping[str, Tensor], values: Mapping[str, Tensor], wanted: Sequence[str]
    ) -> dict[str, Tensor]:
        """The values `wanted` (any in the graph) for one sample.

        feed: inputs by name. values: in place of constants and decoded weights, by name, with their shapes.
        """
        known: dict[str, Tensor] = {**self.constants, **self._decoded, **values, **feed}
        keep, missing = {*wanted, *known}, set(wanted) - set(known)
        for number, (run, reads, makes) in enumerate(self._steps):
            if not missing:
                break
            made = run(*(None if name is None else known[name] for name in reads))
            known.update(zip(makes, made if isinstance(made, tuple) else (made,), strict=False))
            missing.difference_update(makes)
            for name in reads:
                if name and name not in keep and self._last[name] == number:
                    known.pop(name, None)
        return {name: known[name] for name in wanted}

    def batch(
        self, feeds: Mapping[str, Tensor], values: Mapping[str, Tensor], wanted: Sequence[str]
    ) -> dict[str, Tensor]:
        """The same for samples side by side: every input and result has them along a new first axis."""
        found: dict[str, Tensor] = torch.vmap(lambda feed: self(feed, values, wanted))(dict(feeds))
        return found


def _decoded(node: SparsecNode) -> NDArray[np.float32]:
    weight = node.weight()
    matrix = decode(weight) if isinstance(weight, EncodedWeight) else weight
    return np.asarray(as_weight(matrix, node))


def as_weight(matrix: Any, node: SparsecNode) -> Any:
    """W [N, K] (an array or a tensor) as the Decode node gives it."""
    turned = matrix.T if node.trans else matrix
    return turned.reshape(node.shape)
