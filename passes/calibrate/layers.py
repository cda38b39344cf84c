"""Calibration, layer by layer: run the samples up to a layer, gather what its inputs are like, compress it, go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from sparsec.passes.calibrate.biases import add_to_bias, own_bias
from sparsec.passes.calibrate.gather import geometry, statistics_of
from sparsec.passes.calibrate.segments import Segment, segments
from sparsec.passes.calibrate.shared import shared_statistics, why_not_shared
from sparsec.passes.calibrate.solve import Layer, Solved, solve
from sparsec.passes.calibrate.stream import Stream
from sparsec.passes.select import Choice
from sparsec.passes.statistics import Statistics
from sparsec.recipe import Calibrate

__all__ = ["calibrate", "why_not"]

Array = np.ndarray[Any, Any]


@dataclass
class _Group:
    """Layers that read the same value: they are compressed together, from one look at it."""

    node: int
    x: str
    members: list[int]


def why_not(choice: Choice) -> str:
    """Why the weight cannot be calibrated, or ''."""
    rule, uses = choice.rule, choice.weight.uses
    if rule.quantize.algorithm == "nearest" and (
        choice.scheme.is_dense or rule.sparsify.algorithm == "magnitude" or rule.sparsify.scope == "global"
    ):
        return "its rule asks for data-free algorithms"
    if all(use.operator == "Gather" for use in uses):
        return "rows of a lookup table have no products to calibrate"
    return why_not_shared(choice.weight) if len(uses) > 1 else ""


def calibrate(
    model: ir.Model,
    choices: Sequence[Choice],
    samples: Sequence[Mapping[str, Array]],
    executor: Executor,
    *,
    settings: Calibrate,
    threads: int = 1,
    tasks: int = 1,
    progress: Callable[[str], None] | None = None,
) -> list[Solved | None]:
    """Compress the weights of `choices` (None for those that `why_not` names); biases of `model` change in place.

    Args:
        model: canonical, static shapes.
        samples: inputs by name, at least one.
        executor: where layers are solved; arguments and results are picklable.
        threads: of onnxruntime.
        tasks: how many layers the executor works on at once; at most twice as many have their statistics in memory.
    """
    members = [i for i, choice in enumerate(choices) if not why_not(choice)]
    shared = [i for i in members if len(choices[i].weight.uses) > 1]
    masks = [sample.get(settings.mask) for sample in samples]
    work = _Work(choices, settings, executor, tasks, progress)
    if shared:
        with threadpool_limits(threads, user_api="blas"):
            weights = [choices[i].weight for i in shared]
            for index, statistics in zip(
                shared, shared_statistics(model, weights, samples, masks, threads), strict=True
            ):
                work.submit(index, [statistics])
            work.wait(0)
    groups = _groups(choices, [i for i in members if i not in shared])
    biases = {i: own_bias(model, choices[i].weight.uses[0], choices[i].weight.rows) for g in groups for i in g.members}
    numbers = {node: number for number, node in enumerate(model.graph)}  # biases have moved them
    for group in groups:
        group.node = min(numbers[choices[i].weight.uses[0].node] for i in group.members)
    groups.sort(key=lambda group: group.node)
    plan = segments(model.graph, [group.node for group in groups], [[group.x] for group in groups])
    sequential = settings.sequential
    with_dense = sequential and settings.correction > 0
    stream = Stream(model.clone(), samples, threads)
    dense = Stream(model.clone(), samples, threads) if with_dense else None
    try:
        if sequential:
            for index in shared:
                _replace(stream.model, choices[index], work.found[index], None)
        for group, segment in zip(groups, plan, strict=True):
            _advance((stream, dense), segment)
            # More threads than cores make BLAS many times slower.
            with threadpool_limits(max(1, threads // len(group.members)) if sequential else 1, user_api="blas"):
                for index, found in _gather(group, choices, stream, dense, masks):
                    work.submit(index, found)
                if sequential:
                    work.wait(0)
                    for index in group.members:
                        _replace(stream.model, choices[index], work.found[index], biases[index])
        work.wait(0)
    finally:
        stream.close()
        if dense is not None:
            dense.close()
    for index, solved in enumerate(work.found):
        if solved is not None and solved.shift is not None:
            add_to_bias(model, biases[index], solved.shift)
    return work.found


class _Work:
    """Layers on their way through the executor, and those it has solved (by their numbers)."""

    def __init__(
        self,
        choices: Sequence[Choice],
        settings: Calibrate,
        executor: Executor,
        tasks: int,
        progress: Callable[[str], None] | None,
    ) -> None:
        self.found: list[Solved | None] = [None] * len(choices)
        self._choices, self._settings, self._progress = choices, settings, progress
        self._executor, self._most = executor, 2 * tasks
        self._waiting: dict[int, Future[Solved]] = {}

    def submit(self, index: int, statistics: Sequence[Statistics]) -> None:
        """Start on a layer; waits while too many have their statistics in memory."""
        choice = self._choices[index]
        if self._progress is not None:
            self._progress(choice.weight.name)
        layer = Layer(
            choice.weight.name, choice.weight.matrix(), str(choice.scheme), choice.rule, self._settings, statistics
        )
        self._waiting[index] = self._executor.submit(solve, layer)
        self.wait(self._most)

    def wait(self, most: int) -> None:
        """Until at most `most` layers are being worked on."""
        while len(self._waiting) > most:
            wait(self._waiting.values(), return_when=FIRST_COMPLETED)
            for index in [index for index, future in self._waiting.items() if future.done()]:
                self.found[index] = self._waiting.pop(index).result()


def _groups(choices: Sequence[Choice], members: Sequence[int]) -> list[_Group]:
    groups: dict[str, _Group] = {}
    for index in members:
        x = choices[index].weight.uses[0].node.inputs[0]
        assert x is not None
        groups.setdefault(x.name or "", _Group(0, x.name or "", [])).members.append(index)
    return list(groups.values())


def _advance(streams: Sequence[Stream | None], segment: Segment) -> None:
    for stream in streams:
        if stream is not None:
            stream.advance(segment)


def _gather(
    group: _Group, choices: Sequence[Choice], stream: Stream, dense: Stream | None, masks: Sequence[Array | None]
) -> list[tuple[int, list[Statistics]]]:
    """Statistics of each member's inputs, one for each group of its convolution; equal geometries are looked at once."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for index in group.members:
        alike.setdefault(geometry(choices[index].weight.uses[0]), []).append(index)
    found = []
    for members in alike.values():
        weight = choices[members[0]].weight
        statistics = statistics_of(weight.uses[0], weight.cols, stream, dense, masks)
        found += [(index, statistics) for index in members]
    return found


def _replace(model: ir.Model, choice: Choice, solved: Solved | None, bias: str | None) -> None:
    """Give a model the decoded weight, and the bias that goes with it."""
    assert solved is not None
    value = model.graph.initializers[choice.weight.name]
    matrix = solved.decoded()
    array = matrix.T if choice.weight.flipped else matrix
    value.const_value = ir.tensor(np.ascontiguousarray(array).reshape(choice.weight.shape), name=value.name)
    if solved.shift is not None:
        assert bias is not None
        add_to_bias(model, bias, solved.shift)
