"""The pipeline: one linear list of named stages, each timed, dumpable and checkable."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.rewriter.rules import common as onnxscript_rules

from sparsec.errors import OutputError, SparsecError
from sparsec.passes.attention import FuseAttention
from sparsec.passes.check import check_model, check_static
from sparsec.passes.compression import EncodeWeights, Job, QuantiseActivations, SelectSchemes, Sparsify
from sparsec.passes.fold import ConstantsRight, FoldConstants, InferShapes, KeepWeightNames
from sparsec.passes.fuse import Fuse
from sparsec.passes.layers import LayerRecord
from sparsec.passes.opset import ConvertOpset, RewriteAndRaise
from sparsec.passes.rewrite import rewrite
from sparsec.passes.rules.activations import erf_gelu_rules, hardswish_rules, tanh_gelu_rules
from sparsec.passes.rules.affine import affine_rules, batchnorm_rules
from sparsec.passes.rules.norms import layernorm_rules, rmsnorm_rules
from sparsec.passes.rules.pads import pool_pad_rules, pooling_rules
from sparsec.recipe import load_recipe


@dataclass(frozen=True)
class PassRecord:
    """What one stage did: its wall time in seconds, the number of nodes before and after it."""

    name: str
    seconds: float
    nodes_before: int
    nodes_after: int
    modified: bool


@dataclass(frozen=True)
class Stage:
    """A named pass; `static` says that every shape is known after it."""

    name: str
    make: Callable[[], ir.passes.PassBase]
    static: bool = True


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


def compression(job: Job) -> tuple[Stage, ...]:
    """The stages that follow canonicalisation; `job` carries what they decide from one to the next."""
    return (
        Stage("select-schemes", lambda: SelectSchemes(job)),
        Stage("sparsify", lambda: Sparsify(job)),
        Stage("encode-weights", lambda: EncodeWeights(job)),
        Stage("fuse", Fuse),
        Stage("quantise-activations", lambda: QuantiseActivations(job)),
        Stage("fuse-attention", FuseAttention),
        Stage("remove-unused-weights", common.RemoveUnusedNodesPass),
        Stage("remove-unused-functions", common.RemoveUnusedFunctionsPass),
        Stage("final-names", common.NameFixPass),
    )


def run_stages(
    model: ir.Model,
    stages: Sequence[Stage],
    *,
    debug_dump: str | Path | None = None,
    first: int = 1,
    progress: Callable[[str], None] | None = None,
) -> list[PassRecord]:
    """Run stages in order on `model`, in place.

    Args:
        debug_dump: folder that gets `NN-name.onnx` after each stage.
        first: number of the first stage, for the names of the dumps.
        progress: called with the name of each stage before it starts.

    Raises:
        SparsecError: what a stage found wrong with the model.
        OutputError: the dump folder cannot be written.
    """
    check = os.environ.get("SPARSEC_CHECK", "") not in ("", "0")
    records = []
    for number, stage in enumerate(stages, first):
        if progress is not None:
            progress(stage.name)
        before, start = _count(model), time.perf_counter()
        try:
            result = stage.make()(model)
        except ir.passes.PassError as error:
            if isinstance(error.__cause__, SparsecError):
                raise error.__cause__ from None
            raise
        records.append(
            PassRecord(stage.name, time.perf_counter() - start, before, _count(model), bool(result.modified))
        )
        if debug_dump is not None:
            _dump(model, Path(debug_dump), f"{number:02d}-{stage.name}.onnx")
        if check:
            check_model(model, stage.name, static=stage.static)
    return records


@dataclass(frozen=True)
class Compressed:
    """The result of `compress`: the graph, what became of each weight in order of execution, and what each stage did."""

    model: ir.Model
    layers: list[LayerRecord]
    passes: list[PassRecord]
    effective_recipe: str
    """YAML text of a recipe that names every compressed weight and gives the same result."""


def compress(
    model: ir.Model,
    recipe: Any = None,
    *,
    debug_dump: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Compressed:
    """Canonicalise, compress by the recipe and fuse; the argument stays as it is.

    Args:
        model: from `sparsec.frontend.load_model`, input shapes static.
        recipe: what `sparsec.recipe.load_recipe` takes; None leaves every weight dense (fp32) and fuses all the same.
        debug_dump: folder that gets `NN-name.onnx` after each stage.
        progress: called with the name of each stage, and of each weight while it is encoded.

    Raises:
        ShapeError: a shape depends on data.
        RecipeError: the recipe is wrong, or a selector matches nothing.
        WeightError: weights hold NaN or Inf, or do not fit their scheme.
    """
    job = Job(load_recipe(recipe), progress=progress)
    work = model.clone()
    stages = (*CANONICALISE, *compression(job))
    records = run_stages(work, stages, debug_dump=debug_dump, progress=progress)
    return Compressed(work, job.layers, records, job.effective_recipe())


def canonicalise(model: ir.Model, *, debug_dump: str | Path | None = None) -> list[PassRecord]:
    """Bring a model with static inputs to canonical form, in place; it stays a standard ONNX model.

    Raises:
        ShapeError: a shape depends on data.
        ModelError: the opset cannot be converted.
    """
    return run_stages(model, CANONICALISE, debug_dump=debug_dump)


def _count(model: ir.Model) -> int:
    return sum(1 for _ in model.graph.all_nodes())


def _dump(model: ir.Model, folder: Path, name: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        ir.save(model, folder / name)
    except OSError as error:
        raise OutputError(f"debug_dump: cannot write {folder / name}: {error}") from error
