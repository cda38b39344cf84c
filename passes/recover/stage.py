"""Recovery as a stage of the pipeline: after weights are encoded, before anything is fused."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsec.errors import RecipeError
from sparsec.formats import EncodedWeight, decode
from sparsec.passes.compression import Job
from sparsec.passes.gradients import needs_torch
from sparsec.passes.layers import LayerRecord

__all__ = ["KeepOriginal", "RecoverWeights", "check_recovery"]


def check_recovery(job: Job) -> None:
    """Raise RecipeError, before any work, where the recipe's `recover` lacks what it needs."""
    settings = job.recipe.recover
    if settings is None:
        return
    needs_torch("recipe recover")
    given = job.calibration
    if given is None:
        raise RecipeError(
            "recipe recover: needs calibration inputs to train on; give some (calibration=..., --calibration data.npz), or drop it"
        )
    if settings.loss == "layers" and job.recipe.structure is not None:
        raise RecipeError(
            "recipe recover.loss: 'layers' compares results of layers, which structured removal changes; choose output, kl or labels"
        )
    if settings.loss == "labels" and given.labels is None:
        raise RecipeError(
            "recipe recover.loss: 'labels' needs labels; give an array 'labels' in the .npz or mapping of calibration inputs, or labels=..."
        )
    if settings.loss == "custom" and given.loss is None:
        raise RecipeError(
            "recipe recover.loss: 'custom' is a function of Python; give it as recover={'loss': function} to compress or compile"
        )


class KeepOriginal(ir.passes.InPlacePass):
    """Remembers the graph as it is: the teacher."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self.job.original = model.clone()
        return ir.passes.PassResult(model, False)


class RecoverWeights(ir.passes.InPlacePass):
    """Encoded weights, biases and norms trained against `job.original`, if the recipe has a section `recover`."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        job, settings = self.job, self.job.recipe.recover
        if settings is None or not job.choices:
            return ir.passes.PassResult(model, False)
        from sparsec.passes.recover.run import recover

        assert job.original is not None
        assert job.calibration is not None
        given = job.calibration
        labels = None if given.labels is None else given.labels[: len(given.recovery)]
        seen = 0 if all(solved is None for solved in job.solved) else len(given.samples)
        done = recover(
            model, job.original, settings, given.recovery, seen=seen, labels=labels, function=given.loss,
            mask=job.recipe.calibrate.mask, with_biases=job.recipe.calibrate.biases, threads=given.threads, progress=job.progress,
        )  # fmt: skip
        records = {record.name: record for record in job.layers}
        losses, best = done.training.losses, done.training.best
        words = f"recovered: held-out loss {losses[best]:.4g} after epoch {best}, {losses[0]:.4g} before"
        for choice in job.choices:
            record = records[choice.weight.name]
            record.reason = "; ".join(filter(None, (record.reason, words)))
            encoded = done.weights.get(f"{choice.weight.name}.decoded")
            if encoded is not None and (encoded.rows, encoded.cols) == (choice.weight.rows, choice.weight.cols):
                _update(record, encoded, choice.weight.matrix())
        return ir.passes.PassResult(model, True)


def _update(record: LayerRecord, encoded: EncodedWeight, matrix: np.ndarray) -> None:
    now = decode(encoded)
    power = float(np.square(matrix, dtype=np.float64).sum())
    record.nmse = float(np.square(now - matrix, dtype=np.float64).sum()) / power if power else 0.0
    record.zeros = float(np.mean(now == 0))
    record.output_error = None  # of the layer as calibration left it
