"""Bring the standard operators to one opset, and raise it when a fused operator needs a newer one."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.rewriter import pattern
from onnxscript.version_converter import ConvertVersionPass

from sparsec.errors import ModelError
from sparsec.passes.fold import quiet
from sparsec.passes.rewrite import rewrite

BASE_OPSET = 18
"""Lowest opset of a canonical graph; Gelu (20) and RMSNormalization (23) raise it where they occur."""


class ConvertOpset(ir.passes.InPlacePass):
    """Convert older models to `BASE_OPSET`; newer ones stay as they are.

    Raises:
        ModelError: neither onnxscript's nor onnx's converter can convert the model.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        imports = model.graph.opset_imports
        if "" not in imports and "ai.onnx" in imports:
            imports[""] = imports.pop("ai.onnx")
        if imports.get("", BASE_OPSET) >= BASE_OPSET:
            return ir.passes.PassResult(model, False)
        convert(model, BASE_OPSET)
        return ir.passes.PassResult(model, True)


class RaiseOpset(ir.passes.InPlacePass):
    """Raise the opset to what the newest operator in the graph needs."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        current = model.graph.opset_imports[""]
        needed = max((_needed(node.op_type, current) for node in model.graph.all_nodes() if not node.domain), default=0)
        if needed <= current:
            return ir.passes.PassResult(model, False)
        convert(model, needed)
        return ir.passes.PassResult(model, True)


class RewriteAndRaise(ir.passes.InPlacePass):
    """Rewrite rules whose results may need a newer opset; skipped if the graph has no `anchor` operator."""

    def __init__(self, anchor: str, rules: pattern.RewriteRuleSet) -> None:
        super().__init__()
        self.anchor, self.rules = anchor, rules

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if not any(node.op_type == self.anchor for node in model.graph.all_nodes()):
            return ir.passes.PassResult(model, False)
        result = rewrite(self.rules)(model)
        RaiseOpset()(model)
        return result


def convert(model: ir.Model, version: int) -> None:
    """Convert in place.

    Raises:
        ModelError: the conversion failed.
    """
    found = model.graph.opset_imports[""]
    try:
        with quiet("onnxscript.version_converter"):  # it announces the fallback to onnx's converter, which we ask for
            ConvertVersionPass(target_version=version, fallback=True)(model)
    except Exception as error:
        raise ModelError(f"cannot convert the model from opset {found} to {version}: {error}") from error
    if model.graph.opset_imports[""] != version:
        raise ModelError(
            f"cannot convert the model from opset {found} to {version}: the onnx version converter refused it. "
            f"Export it again with opset {version}."
        )
    common.RemoveInitializersFromInputsPass()(model)


def _needed(op_type: str, current: int) -> int:
    if onnx.defs.has(op_type, max_inclusive_version=current) or not onnx.defs.has(op_type):
        return 0
    return min(s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.name == op_type and not s.domain)
