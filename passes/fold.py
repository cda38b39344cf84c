"""Fold what is constant: with static inputs the shape arithmetic of a model vanishes, and so do decided `If`s."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.optimizer._constant_folding import FoldConstantsPass

MAX_FOLDED_ELEMENTS = 1 << 22
"""A folded result may be larger than its inputs (Expand, Tile) up to this many elements."""

_MAX_ROUNDS = 8


@contextlib.contextmanager
def quiet(name: str) -> Iterator[None]:
    """Silence a library's logger whose warnings are part of how we use it."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


class FoldConstants(ir.passes.InPlacePass):
    """onnxscript's folding, for weights of any size, until nothing changes.

    Its default limits keep large transposed weights and `ConstantOfShape` in the graph; a compiler wants them gone.
    A transposed table that other nodes read untransposed (a tied embedding) stays, so that it is stored once.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for _ in range(_MAX_ROUNDS):
            before = _shape_of(model)
            with quiet("onnxscript.optimizer"):  # it warns of each node it has to leave
                FoldConstantsPass(
                    shape_inference=True,
                    input_size_limit=MAX_FOLDED_ELEMENTS,
                    output_size_limit=MAX_FOLDED_ELEMENTS,
                    should_fold=_should_fold,
                )(model)
            # Branches that were inlined bring their own Constant nodes and initializers.
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
            common.LiftSubgraphInitializersToMainGraphPass()(model)
            common.IdentityEliminationPass()(model)
            common.RemoveUnusedNodesPass()(model)
            if _shape_of(model) == before:
                break
            modified = True
        _drop_folding_notes(model)
        return ir.passes.PassResult(model, modified)


def _should_fold(node: ir.Node) -> bool | None:
    if node.op_type == "Transpose" and node.domain == "":
        table = node.inputs[0]
        if table is not None and any(use.op_type != "Transpose" for use, _ in table.uses()):
            return False
    return True


def _shape_of(model: ir.Model) -> tuple[int, int]:
    nodes = list(model.graph.all_nodes())
    return len(nodes), sum(value is not None for node in nodes for value in node.inputs)


def _drop_folding_notes(model: ir.Model) -> None:
    """onnxscript notes on each folded value where it came from; long lists nobody here reads."""
    for value in [*model.graph.initializers.values(), *(out for n in model.graph.all_nodes() for out in n.outputs)]:
        for key in [key for key in value.metadata_props if key.startswith("pkg.")]:
            del value.metadata_props[key]


class KeepWeightNames(ir.passes.InPlacePass):
    """A weight that is only read through a Transpose hands its name on: folding would leave it as "val_33"."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in model.graph:
            if node.op_type != "Transpose" or node.domain:
                continue
            value, result = node.inputs[0], node.outputs[0]
            if value is None or not value.is_initializer() or len(value.uses()) > 1 or result.is_graph_output():
                continue
            name = value.name
            value.name = f"{name}.transposed"
            result.name = name
            modified = True
        return ir.passes.PassResult(model, modified)


class ConstantsRight(ir.passes.InPlacePass):
    """Constant operands of Add and Mul come second, so that the rules after it need half as many patterns."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in model.graph:
            if node.op_type not in ("Add", "Mul") or node.domain:
                continue
            left, right = node.inputs
            if left is not None and right is not None and left.const_value is not None and right.const_value is None:
                node.replace_input_with(0, right)
                node.replace_input_with(1, left)
                modified = True
        return ir.passes.PassResult(model, modified)


class InferShapes(ir.passes.InPlacePass):
    """Shapes and dtypes of all values from the inputs on; sparsec's own nodes carry theirs."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
