"""The first half of the pipeline: whatever arrives becomes standard operators in one form, all shapes static."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.rewriter.rules import common as onnxscript_rules

from sparsec.passes.check import check_static
from sparsec.passes.fold import ConstantsRight, FoldConstants, InferShapes, KeepWeightNames
from sparsec.passes.opset import ConvertOpset, RewriteAndRaise
from sparsec.passes.rewrite import rewrite
from sparsec.passes.rules.activations import erf_gelu_rules, hardswish_rules, tanh_gelu_rules
from sparsec.passes.rules.affine import affine_rules, batchnorm_rules
from sparsec.passes.rules.norms import layernorm_rules, rmsnorm_rules
from sparsec.passes.rules.pads import pool_pad_rules, pooling_rules
from sparsec.passes.stages import PassRecord, Stage, run_stages
from sparsec.progress import Progress


class CheckStatic(ir.passes.InPlacePass):
    """The end of canonicalisation: from here on every shape is static.

    Raises:
        ShapeError: a value has no static shape.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        check_static(model)
        return ir.passes.PassResult(model, False)


_R = onnxscript_rules
_NO_OPS = [
    _R.add_0_rule, _R.sub_0_rule, _R.mul_by_1_rule, _R.div_by_1_rule, _R.dropout_inference_rule,
    _R.dropout_zero_rule, _R.no_op_cast_rule, _R.no_op_expand_rule, _R.no_op_transpose_rule, _R.cast_cast_rule,
    _R.cast_constant_of_shape_rule, _R.cast_constant_of_shape_without_value_rule, _R.collapse_slice_rule,
    _R.collapse_slice2_rule, _R.no_op_static_scatter_nd_rule, _R.no_op_dynamic_scatter_nd_rule,
]  # fmt: skip
_RESHAPES = [
    _R.materialize_reshape_shape_rule, _R.flatten_to_reshape_rule, _R.reshape_reshape_rule,
    _R.squeeze_reshape_1d_rule, _R.unsqueeze_unsqueeze_rule, _R.transpose_transpose_rule,
    *_R.expand_before_binary_op_rules,
]  # fmt: skip
_CLIPS = [
    _R.min_min_rule, _R.max_max_rule, _R.min_max_rule, _R.max_min_rule, _R.successive_relu_rule,
    _R.successive_clip_rule, _R.successive_clip_relu_rule, _R.successive_relu_clip_rule,
]  # fmt: skip
_PADS = [_R.normalize_pad_format_conv_rule, _R.fuse_pad_into_conv_rule, *pool_pad_rules]
_BATCHNORM = [
    _R.fuse_batchnorm_into_conv_rule, _R.fuse_batchnorm_into_conv_transpose_rule, _R.fuse_batchnorm_into_gemm_rule,
    *batchnorm_rules,
]  # fmt: skip


def _is_not_encoded(function: ir.Function) -> bool:
    """False for sparsec's operators on encoded weights: a compressed file that comes back stays compressed."""
    return function.domain != "sparsec" or function.overload.split("/")[0] == "fp32"


CANONICALISE: tuple[Stage, ...] = (
    Stage("clear-metadata", common.ClearMetadataAndDocStringPass, static=False),
    Stage("inline-functions", lambda: common.InlinePass(criteria=_is_not_encoded), static=False),
    Stage("keep-weight-names", KeepWeightNames, static=False),
    Stage("fold-constants", FoldConstants, static=False),
    Stage("convert-opset", ConvertOpset, static=False),
    Stage("infer-shapes", InferShapes, static=False),
    Stage("fold-shapes", FoldConstants, static=False),
    Stage("check-static-shapes", CheckStatic),
    Stage("remove-no-ops", lambda: rewrite(_NO_OPS)),
    Stage("simplify-reshapes", lambda: rewrite(_RESHAPES)),
    Stage("merge-clips", lambda: rewrite(_CLIPS)),
    Stage("explicit-pads", lambda: rewrite(_PADS)),
    Stage("fold-batchnorm", lambda: rewrite(_BATCHNORM)),
    Stage("fold-affine", lambda: rewrite(affine_rules)),
    Stage("constants-right", ConstantsRight),
    Stage("fuse-layernorm", lambda: RewriteAndRaise("ReduceMean", layernorm_rules)),
    Stage("fuse-rmsnorm", lambda: RewriteAndRaise("ReduceMean", rmsnorm_rules)),
    Stage("fuse-gelu", lambda: RewriteAndRaise("Erf", erf_gelu_rules)),
    Stage("fuse-tanh-gelu", lambda: RewriteAndRaise("Tanh", tanh_gelu_rules)),
    Stage("fuse-hardswish", lambda: RewriteAndRaise("Clip", hardswish_rules)),
    Stage("mean-to-pooling", lambda: RewriteAndRaise("ReduceMean", pooling_rules)),
    Stage("fold-again", FoldConstants),
    Stage("merge-equal-subgraphs", common.CommonSubexpressionEliminationPass),
    Stage("remove-unused", common.RemoveUnusedNodesPass),
    Stage("unique-names", common.NameFixPass),
    Stage("final-shapes", InferShapes),
    Stage("final-static-check", CheckStatic),
)


def canonicalise(
    model: ir.Model, *, debug_dump: str | Path | None = None, progress: Progress | None = None
) -> list[PassRecord]:
    """Bring a model with static inputs to canonical form, in place; it stays a standard ONNX model.

    Raises:
        ShapeError: a shape depends on data.
        ModelError: the opset cannot be converted.
    """
    return run_stages(model, CANONICALISE, debug_dump=debug_dump, title="simplify", progress=progress)
