"""Validation: is a compressed model still as good as the original, on labelled examples, by a metric, or by its outputs alone?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparsec.calibration import calibration_samples, split_labels
from sparsec.candidate import open_candidate
from sparsec.errors import InputError, VerificationError
from sparsec.frontend import load_model
from sparsec.labelled import Decisions, checked_labels
from sparsec.measured import measured_score
from sparsec.progress import Progress
from sparsec.reference import Reference
from sparsec.similarity import Similarity
from sparsec.validation_report import Validation

__all__ = ["Validation", "validate"]

Array = np.ndarray[Any, Any]


def validate(
    model: Any,
    candidate: Any,
    samples: Any,
    labels: Any = None,
    *,
    metric: Callable[[dict[str, Array], Any], Any] | None = None,
    aggregate: Callable[[Array], float] | None = None,
    output: str | None = None,
    logits: bool = False,
    example_inputs: Any = None,
    input_shapes: Mapping[str, Any] | None = None,
    input_values: Mapping[str, Any] | None = None,
    threads: int = 1,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Progress | None = None,
) -> Validation:
    """Compare a compressed model with the original on the same samples; the same arguments give the same result.

    Args:
        model: the original, as for `compress`; runs in onnxruntime.
        candidate: portable ONNX, bundle folder, `CompressedModel` or `CompiledModel`.
        samples: as `calibration` of `compress`: .npz file, mapping, iterable or callable.
        labels: classes of all decisions in order, whole numbers; an output [.., C] makes one decision a row. A word names the array
            of the file or mapping `samples` that holds them. With `metric` labels may be anything.
        metric: called as metric(outputs, labels) for either model, with its outputs by name, samples side by side along the first axis;
            gives values [N, ...] of N independent examples, or one number for the whole set (then there is no interval).
        aggregate: values [N, ...] of the metric -> score; None: the mean.
        output: the output that labels belong to; None: the first.
        logits: outputs hold logits of classes in their last axis, so that KL divergence and agreement mean something. True where there
            are labels; distributions are recognised without it.
        resamples, confidence, seed: of the bootstrap (`sparsec.paired.bootstrap`).
        The other arguments are those of `compile`.

    Raises:
        InputError: samples or labels do not fit the model or each other, hold NaN, or the original gives NaN.
        VerificationError: the compressed model lacks an output, or gives NaN.
    """
    made = open_candidate(candidate, input_shapes, input_values, threads)
    source = load_model(model, example_inputs, input_shapes or made.shapes, input_values)
    samples, labels, where = split_labels(samples, labels)
    if resamples < 100 or not 0 < confidence < 1:
        raise InputError(f"resamples={resamples}, confidence={confidence}: at least 100, and between 0 and 1")
    if aggregate is not None and metric is None:
        raise InputError("aggregate belongs to metric; labels are scored by the share of right decisions")
    feeds = calibration_samples(samples, source, what=where)
    reference = Reference(model if isinstance(model, str | Path) else source, fixed=input_values, threads=threads)
    chosen = _chosen(output, reference.outputs)
    collected = None
    if metric is None and labels is not None:
        collected = Decisions(checked_labels(labels, where), where, len(feeds))
    kept: tuple[list[Mapping[str, Array]], list[Mapping[str, Array]]] = ([], [])
    similar = {
        name: Similarity(name, logits or (collected is not None and name == chosen)) for name in reference.outputs
    }
    for index, feed in enumerate(feeds):
        dense, found = reference.run(feed), made.run(feed)
        _check_outputs(dense, found, f"{where}, sample {index}")
        for name, sums in similar.items():
            sums.add(dense[name], found[name])
        if collected is not None:
            collected.add(chosen, dense[chosen], found[chosen])
        if metric is not None:
            kept[0].append(dense)
            kept[1].append(found)
        if progress is not None:
            progress("validate", index + 1, len(feeds), "")
    score = None
    if metric is not None:
        score = measured_score(metric, aggregate, kept, labels, resamples, confidence, seed)
    elif collected is not None:
        score = collected.score(resamples, confidence, seed)
    return Validation(
        made.words,
        f"{model} in onnxruntime" if isinstance(model, str | Path) else "the original in onnxruntime",
        len(feeds),
        tuple(sums.result() for sums in similar.values()),
        score,
        collected.classes() if collected is not None else [],
        collected.changed() if collected is not None else [],
        {} if score is None else {"confidence": confidence, "resamples": resamples, "seed": seed},
    )


def _chosen(output: str | None, outputs: list[str]) -> str:
    if output is not None and output not in outputs:
        raise InputError(f"the model has no output '{output}'; it has: {', '.join(outputs)}")
    return output or outputs[0]


def _check_outputs(dense: Mapping[str, Array], found: Mapping[str, Array], where: str) -> None:
    for name, b in dense.items():
        if name not in found or found[name].shape != b.shape or found[name].dtype != b.dtype:
            has = f"{found[name].dtype}{list(found[name].shape)}" if name in found else "nothing"
            raise VerificationError(
                f"{where}: the compressed model gives {has} for output '{name}', the original {b.dtype}{list(b.shape)}; "
                "is it made from this model?"
            )
        if b.dtype.kind != "f":
            continue
        if np.isnan(b).any():
            raise InputError(f"{where}: the original gives NaN in output '{name}'; leave this sample out")
        odd = ~np.isfinite(b)
        if not np.isfinite(found[name][~odd]).all() or not np.array_equal(found[name][odd], b[odd]):
            raise VerificationError(f"{where}: the compressed model gives NaN or Inf in output '{name}'")
