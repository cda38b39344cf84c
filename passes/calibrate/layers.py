"""Calibration, layer by layer: run the samples up to a layer, gather what its inputs are like, compress it, go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from sparsec.passes.calibrate.biases import add_to_bias, own_bias
from sparsec.passes.calibrate.few_samples import note_on, rows_and_inputs
from sparsec.passes.calibrate.groups import gather, groups_of, planned, why_not
from sparsec.passes.calibrate.shared import shared_statistics
from sparsec.passes.calibrate.solve import Layer, Solved, solve
from sparsec.passes.calibrate.solved_cache import key_of, load_solved, store_solved
from sparsec.passes.calibrate.stream import Stream
from sparsec.passes.select import Choice
from sparsec.passes.statistics import Statistics
from sparsec.progress import Progress
from sparsec.recipe import Calibrate

__all__ = ["calibrate"]

Array = np.ndarray[Any, Any]


def calibrate(
    model: ir.Model,
    choices: Sequence[Choice],
    samples: Sequence[Mapping[str, Array]],
    executor: Executor,
    *,
    settings: Calibrate,
    threads: int = 1,
    tasks: int = 1,
    progress: Progress | None = None,
    gradients: Mapping[str, Array] = MappingProxyType({}),
    notes: list[str] | None = None,
) -> list[Solved | None]:
    """Compress the weights of `choices` (None for those that `why_not` names); biases of `model` change in place.

    Args:
        model: canonical, static shapes.
        samples: inputs by name, at least one.
        executor: where layers are solved; arguments and results are picklable.
        threads: of onnxruntime.
        gradients: by weight, float64 [N, K], mean squared gradients where a rule's algorithm needs them.
        notes: gets what is to be said of all layers together.
        tasks: how many layers the executor works on at once; at most twice as many have their statistics in memory.
    """
    members = [i for i, choice in enumerate(choices) if not why_not(choice)]
    shared = [i for i in members if len(choices[i].weight.uses) > 1]
    masks = [sample.get(settings.mask) for sample in samples]
    work = _Work(choices, settings, executor, tasks, len(members), progress, gradients)
    if shared:
        with threadpool_limits(1, user_api="blas"):
            weights = [choices[i].weight for i in shared]
            for index, statistics in zip(
                shared, shared_statistics(model, weights, samples, masks, threads), strict=True
            ):
                work.submit(index, [statistics])
            work.wait(0)
    groups = groups_of(choices, [i for i in members if i not in shared])
    biases: dict[int, str] = {}
    if settings.biases:
        own = (i for group in groups for i in group.members)
        biases = {i: own_bias(model, choices[i].weight.uses[0], choices[i].weight.rows) for i in own}
    plan = planned(model, groups, choices)
    sequential = settings.sequential
    with_dense = sequential and settings.correction > 0
    stream = Stream(model.clone(), samples, threads)
    dense = Stream(model.clone(), samples, threads) if with_dense else None
    try:
        if sequential:
            for index in shared:
                _replace(stream.model, choices[index], work.found[index], None)
        for group, segment in plan:
            for running in (stream, dense):
                if running is not None:
                    running.advance(segment, work.sampling(group.members[0]))
            # The last bits of BLAS's sums depend on its threads; files must not depend on how many there are.
            with threadpool_limits(1, user_api="blas"):
                for index, found in gather(group, choices, stream, dense, masks, centred=settings.biases):
                    work.submit(index, found)
                if sequential:
                    work.wait(0)
                    for index in group.members:
                        _replace(stream.model, choices[index], work.found[index], biases.get(index))
        work.wait(0)
    finally:
        stream.close()
        if dense is not None:
            dense.close()
    for index, solved in enumerate(work.found):
        if solved is not None and solved.shift is not None:
            add_to_bias(model, biases[index], solved.shift)
    if notes is not None and (note := note_on(work.read)):
        notes.append(note)
    return work.found


class _Work:
    """Layers on their way through the executor, and those it has solved (by their numbers)."""

    def __init__(
        self,
        choices: Sequence[Choice],
        settings: Calibrate,
        executor: Executor,
        tasks: int,
        total: int,
        progress: Progress | None,
        gradients: Mapping[str, Array],
    ) -> None:
        self._gradients = gradients
        self.read: dict[str, tuple[int, int]] = {}
        self.found: list[Solved | None] = [None] * len(choices)
        self._choices, self._settings, self._progress, self._total = choices, settings, progress, total
        self._executor, self._most = executor, 2 * tasks
        self._waiting: dict[int, tuple[str, Future[Solved]]] = {}

    def submit(self, index: int, statistics: Sequence[Statistics]) -> None:
        """Start on a layer; waits while too many have their statistics in memory."""
        choice = self._choices[index]
        self.read[choice.weight.name] = rows_and_inputs(statistics)
        layer = Layer(
            choice.weight.name, choice.weight.matrix(), str(choice.scheme), choice.structure, choice.rule,
            self._settings, statistics, self._gradients.get(choice.weight.name),
        )  # fmt: skip
        key = key_of(layer)
        self.found[index] = load_solved(key)
        self._report(index)
        if self.found[index] is None:
            self._waiting[index] = (key, self._executor.submit(solve, layer))
            self.wait(self._most)

    def wait(self, most: int) -> None:
        """Until at most `most` layers are being worked on."""
        while len(self._waiting) > most:
            wait([future for _, future in self._waiting.values()], return_when=FIRST_COMPLETED)
            for index in [index for index, (_, future) in self._waiting.items() if future.done()]:
                key, future = self._waiting.pop(index)
                self.found[index] = solved = future.result()
                store_solved(key, solved)
                self._report(index)

    def sampling(self, index: int) -> Callable[[int, int], None] | None:
        """What says how many samples have come to a layer."""
        if self._progress is None:
            return None
        return lambda done, count: self._report(index, f": sample {done + 1} of {count}")

    def _report(self, index: int, more: str = "") -> None:
        if self._progress is not None:
            solved = sum(found is not None for found in self.found)
            self._progress("calibrate", solved, self._total, self._choices[index].weight.name + more)


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
