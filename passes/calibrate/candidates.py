"""Every weight in every candidate scheme, and what each does to the outputs of the model: what a budget is spent by.

Samples pass once through the uncompressed model, cut before each weight. There the layer's inputs are summed up, the weight is
compressed in each scheme by itself, and a few samples that no statistics have seen go on to the outputs with some of the results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from sparsec.errors import WeightError
from sparsec.formats import Scheme, decode, encode
from sparsec.passes.budget.pq_index import least_kept
from sparsec.passes.budget.sensitivity import output_errors, probed
from sparsec.passes.calibrate.biases import own_bias
from sparsec.passes.calibrate.gather import fold_of, moments_for
from sparsec.passes.calibrate.groups import why_not
from sparsec.passes.calibrate.inputs import layer_rows
from sparsec.passes.calibrate.segments import segments
from sparsec.passes.calibrate.solve import Layer, Solved, solve
from sparsec.passes.calibrate.stream import Stream
from sparsec.passes.select import Choice
from sparsec.passes.sparsify.masks import mask_of_scores
from sparsec.passes.statistics import Moments, Statistics
from sparsec.progress import Progress
from sparsec.recipe import Calibrate
from sparsec.reference import Reference

__all__ = ["Candidates", "candidates", "relative_error"]

Array = np.ndarray[Any, Any]

_PROBES = 16
"""Samples that go on to the outputs."""
_ROWS = 1 << 15
"""Rows that a layer's moments are made of, or 16 for each input if that is more: enough to compare schemes."""


@dataclass
class Candidates:
    """One weight: `schemes` that can store it (not fp32), what it is in each, and two errors: of the layer's outputs (of the
    weight, where it is not calibrated) and of the model's outputs, relative and squared. refused: scheme -> why not."""

    name: str
    operator: str
    elements: int
    least_kept: float
    """Share of its values that pruning should leave, by its PQ-index."""
    schemes: list[str] = field(default_factory=list)
    solved: list[Solved] = field(default_factory=list)
    layer_errors: list[float] = field(default_factory=list)
    errors: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    refused: dict[str, str] = field(default_factory=dict)


def candidates(
    model: ir.Model,
    choices: Sequence[Choice],
    schemes: Sequence[str],
    samples: Sequence[Mapping[str, Array]],
    executor: Executor,
    *,
    settings: Calibrate,
    calibrated: bool,
    threads: int = 1,
    progress: Progress | None = None,
) -> list[Candidates]:
    """Try all `schemes` on each weight of `choices`.

    Args:
        model: canonical, static shapes; gets biases of zeros where layers have none and `calibrated`.
        samples: inputs by name, at least one. Errors of the outputs are measured on some of them.
        calibrated: compress by the statistics of the inputs; else without data.
        threads: of onnxruntime.
    """
    informed = {
        i for i, choice in enumerate(choices) if calibrated and len(choice.weight.uses) == 1 and not why_not(choice)
    }
    owners = [(i, choices[i].weight) for i in sorted(informed) if settings.biases]
    biases = {i: own_bias(model, weight.uses[0], weight.rows) for i, weight in owners}
    places = _places(model, choices)
    cuts = sorted(set(places))
    wanted = [sorted({_x(choices[i]) for i in informed if places[i] == cut}) for cut in cuts]
    fitted, tried = _split(len(samples))
    masks = [sample.get(settings.mask) for sample in samples]
    found = [
        Candidates(w.name, w.uses[0].operator, w.rows * w.cols, least_kept(w.matrix()))
        for w in (choice.weight for choice in choices)
    ]
    ended = count(1)
    stream = Stream(model.clone(), samples, threads)
    outputs = [value.name or "" for value in model.graph.outputs]
    dense = Reference(stream.model, threads=threads, spin=False)
    reference = [dense.run(samples[index]) for index in tried]
    try:
        for cut, segment in zip(cuts, segments(model.graph, cuts, wanted), strict=True):
            stream.advance(segment)
            members = [i for i, place in enumerate(places) if place == cut]
            waiting: dict[int, list[tuple[str, Future[Solved]]]] = {}
            with threadpool_limits(1, user_api="blas"):
                for index in members:
                    statistics = (
                        _statistics(choices[index], stream, fitted, masks, settings) if index in informed else []
                    )
                    layers = [_layer(choices[index], scheme, settings, statistics) for scheme in schemes]
                    waiting[index] = [(layer.scheme, executor.submit(_solved, layer)) for layer in layers]
                for index in members:
                    _collect(found[index], waiting[index])
                    if progress is not None:
                        progress("try schemes", next(ended), len(choices), found[index].name)
            suffix = segments(model.graph, [cut, len(model.graph)], [[], outputs])[1]
            part = suffix.model(stream.model)
            assert part is not None
            fed = _made_inputs(part, [found[i].name for i in members] + [biases[i] for i in members if i in biases])
            rest = Reference(part, threads=threads, spin=False)
            kept = [{name: stream.value(name, index) for name in suffix.reads} for index in tried]
            for index in members:
                entry, weight = found[index], choices[index].weight
                measured = {}
                for number in probed(entry.layer_errors):
                    solved = entry.solved[number]
                    matrix = solved.decoded()
                    changed = {weight.name: (matrix.T if weight.flipped else matrix).reshape(weight.shape)}
                    if solved.shift is not None:
                        bias = fed[biases[index]]
                        changed[biases[index]] = (bias + solved.shift.reshape(bias.shape)).astype(np.float32)
                    results = [rest.run({**fed, **values, **changed}) for values in kept]
                    measured[number] = relative_error(results, reference)
                entry.errors = output_errors(entry.layer_errors, measured)
    finally:
        stream.close()
    return found


def relative_error(found: Sequence[Mapping[str, Array]], wanted: Sequence[Mapping[str, Array]]) -> float:
    """Squared error of outputs over their squares, both summed over the samples, then the mean over outputs. Outputs that `found`
    lacks count as equal; those that are 0 everywhere count 0 where equal, else infinite."""
    ratios = []
    for name in wanted[0]:
        if name not in found[0]:
            ratios.append(0.0)
            continue
        pairs = [
            (np.asarray(f[name], np.float64), np.asarray(w[name], np.float64))
            for f, w in zip(found, wanted, strict=True)
        ]
        lost = sum(float(np.square(f - w).sum()) for f, w in pairs)
        power = sum(float(np.square(w).sum()) for _, w in pairs)
        ratios.append(lost / power if power else (np.inf if lost else 0.0))
    return float(np.mean(ratios))


def _places(model: ir.Model, choices: Sequence[Choice]) -> list[int]:
    """The number of the first node that reads each weight."""
    numbers = {node: number for number, node in enumerate(model.graph)}
    return [min(numbers[node] for node, _ in choice.weight.value.uses()) for choice in choices]


def _x(choice: Choice) -> str:
    value = choice.weight.uses[0].node.inputs[0]
    assert value is not None
    return value.name or ""


def _split(count: int) -> tuple[list[int], list[int]]:
    """(samples to fit, samples to try): every few is tried; both are the same where there is but one."""
    if count == 1:
        return [0], [0]
    tried = sorted({int(i) for i in np.linspace(0, count - 1, max(1, min(_PROBES, count // 4)))})
    return [i for i in range(count) if i not in tried], tried


def _statistics(
    choice: Choice, stream: Stream, fitted: Sequence[int], masks: Sequence[Array | None], settings: Calibrate
) -> list[Statistics]:
    use, limit = choice.weight.uses[0], -(-max(16 * choice.weight.cols, _ROWS) // len(fitted))
    moments: list[Moments] = []
    for number, index in enumerate(fitted):
        rows = layer_rows(use, stream.value(_x(choice), index), limit, index, masks[index])
        if not moments:
            moments = moments_for(rows, with_dense=False)
        for group, part in zip(moments, rows, strict=True):
            group.add(part, fold=fold_of(number, rows))
    return [m.statistics(centred=settings.biases) for m in moments]


def _layer(choice: Choice, scheme: str, settings: Calibrate, statistics: Sequence[Statistics]) -> Layer:
    """One candidate, by the quick ones of the algorithms that its rule allows; without statistics: without data."""
    quick = choice.rule.quantize.algorithm.replace("auto", "gptq").replace("descent", "gptq")
    quantize = choice.rule.quantize.model_copy(update={"algorithm": quick})
    rule = choice.rule.model_copy(update={"scheme": scheme, "quantize": quantize})
    structure = Scheme.parse(scheme).structure
    return Layer(choice.weight.name, choice.weight.matrix(), scheme, structure, rule, settings, statistics)


def _solved(layer: Layer) -> Solved:
    if layer.statistics:
        return solve(layer)
    weight, scheme = layer.weight, Scheme.parse(layer.scheme)
    mask = None if scheme.is_dense else mask_of_scores(np.square(weight, dtype=np.float64), scheme.structure)
    encoded = encode(weight, scheme, mask, name=layer.name)
    decoded = decode(encoded)
    power = float(np.square(weight, dtype=np.float64).sum())
    nmse = float(np.square(decoded - weight, dtype=np.float64).sum()) / power if power else 0.0
    return Solved(encoded, None, float(np.mean(decoded == 0)), nmse, nmse)


def _collect(entry: Candidates, waiting: Sequence[tuple[str, Future[Solved]]]) -> None:
    for scheme, future in waiting:
        try:
            solved = future.result()
        except WeightError as error:
            entry.refused[scheme] = str(error)
            continue
        entry.schemes.append(scheme)
        entry.solved.append(solved)
        entry.layer_errors.append(solved.output_error)


def _made_inputs(model: ir.Model, names: Sequence[str]) -> dict[str, Array]:
    """Turn initializers of a model into inputs; returns their values."""
    values = {}
    for name in names:
        value = model.graph.initializers.pop(name)
        assert value.const_value is not None
        values[name] = value.const_value.numpy()
        value.const_value = None
        model.graph.inputs.append(value)
    return values
