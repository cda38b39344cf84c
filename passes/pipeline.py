"""The pipeline: one linear list of named stages, canonicalise.py's and then these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common

from sparsec.passes.attention import FuseAttention
from sparsec.passes.calibrate.solve import Solved
from sparsec.passes.canonical_cache import canonical
from sparsec.passes.compression import (
    ArrangeCodebooks,
    CalibrateWeights,
    Calibration,
    EncodeWeights,
    Job,
    PermuteInputs,
    QuantiseActivations,
    ReorderRows,
    ScaleChannels,
    SelectSchemes,
    ShareZeros,
    Sparsify,
)
from sparsec.passes.fuse import Fuse
from sparsec.passes.join_products import JoinProducts
from sparsec.passes.layers import LayerRecord, Removal
from sparsec.passes.recover.stage import KeepOriginal, RecoverWeights, check_recovery
from sparsec.passes.restructure import restructuring
from sparsec.passes.stages import PassRecord, Stage, run_stages
from sparsec.progress import Progress
from sparsec.recipe import load_recipe


def compression(job: Job) -> tuple[Stage, ...]:
    """The stages that follow canonicalisation; `job` carries what they decide from one to the next."""
    kept = () if job.recipe.recover is None else (Stage("keep-original", lambda: KeepOriginal(job)),)
    removes = job.recipe.structure is not None
    return (
        *(kept if removes else ()),
        *restructuring(job),
        Stage("select-schemes", lambda: SelectSchemes(job)),
        Stage("scale-channels", lambda: ScaleChannels(job)),
        Stage("permute-inputs", lambda: PermuteInputs(job)),
        Stage("reorder-rows", lambda: ReorderRows(job)),
        Stage("arrange-codebooks", lambda: ArrangeCodebooks(job)),
        *(() if removes else kept),  # rescaled and reordered, so that its layers can be compared with
        Stage("share-zeros", lambda: ShareZeros(job)),
        Stage("calibrate", lambda: CalibrateWeights(job)),
        Stage("sparsify", lambda: Sparsify(job)),
        Stage("encode-weights", lambda: EncodeWeights(job)),
        Stage("recover", lambda: RecoverWeights(job)),
        Stage("fuse", Fuse),
        Stage("quantise-activations", lambda: QuantiseActivations(job)),
        Stage("fuse-attention", FuseAttention),
        Stage("remove-what-fusion-left", common.RemoveUnusedNodesPass),
        Stage("join-products", JoinProducts),
        Stage("remove-unused-weights", common.RemoveUnusedNodesPass),
        Stage("remove-unused-functions", common.RemoveUnusedFunctionsPass),
        Stage("final-names", common.NameFixPass),
    )


@dataclass(frozen=True)
class Compressed:
    """The result of `compress`: the graph, what became of each weight in order of execution, and what each stage did."""

    model: ir.Model
    layers: list[LayerRecord]
    passes: list[PassRecord]
    effective_recipe: str
    """YAML text of a recipe that names every compressed weight and gives the same result."""
    removed: list[Removal] = field(default_factory=list)
    """What structured removal took out, or could not."""
    notes: list[str] = field(default_factory=list)
    """What is to be said of all weights together."""


def compress(
    model: ir.Model,
    recipe: Any = None,
    *,
    calibration: Calibration | None = None,
    solved: Mapping[str, Solved] | None = None,
    debug_dump: str | Path | None = None,
    progress: Progress | None = None,
) -> Compressed:
    """Canonicalise, compress by the recipe and fuse; the argument stays as it is.

    Args:
        model: from `sparsec.frontend.load_model`, input shapes static.
        recipe: what `sparsec.recipe.load_recipe` takes; None leaves every weight dense (fp32) and fuses all the same.
        calibration: inputs to calibrate on, for the algorithms that need them; None: data-free ones only.
        solved: weights by name that are coded already, in the schemes of the recipe (trials of a budget); nothing is calibrated then.
        debug_dump: folder that gets `NN-name.onnx` after each stage.
        progress: called with the stages `simplify` and `compress`, and within those with layers calibrated, weights encoded ...

    Raises:
        ShapeError: a shape depends on data.
        RecipeError: the recipe is wrong, or a selector matches nothing.
        CalibrationError: structured removal finds nothing to work with in the calibration inputs.
        WeightError: weights hold NaN or Inf, or do not fit their scheme.
    """
    job = Job(load_recipe(recipe), progress=progress, calibration=calibration, given=solved)
    check_recovery(job)
    work, records = canonical(model, debug_dump=debug_dump, progress=progress)
    records += run_stages(work, compression(job), debug_dump=debug_dump, first=len(records) + 1, progress=progress)
    return Compressed(work, job.layers, records, job.effective_recipe(), job.structured.records, job.notes)
