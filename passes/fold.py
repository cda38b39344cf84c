"""Fold what is constant: with static inputs the shape arithmetic of a model vanishes, and so do decided `If`s."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.optimizer._constant_folding import FoldConstantsPass

MAX_FOLDED_ELEMENTS = 1 << 22
"""A folded result may be larger than its inputs (Expand, Tile) up to this many elements."""

_MAX_ROUNDS = 8


class FoldConstants(ir.passes.InPlacePass):
    """onnxscript's folding, for weights of any size, until nothing changes.

    Its default limits keep large transposed weights and `ConstantOfShape` in the graph; a compiler wants them gone.
    A transposed table that other nodes read untransposed (a tied embedding) stays, so that it is stored once.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for _ in range(_MAX_ROUNDS):
            before = _shape_of(model)
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


class InferShapes(ir.passes.InPlacePass):
    """Shapes and dtypes of all values from the inputs on; sparsec's own nodes carry theirs."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
