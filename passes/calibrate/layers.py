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
from sparsec.passes.calibrate.inputs import layer_rows
from sparsec.passes.calibrate.segments import Segment, segments
from sparsec.passes.calibrate.solve import Layer, Solved, solve
from sparsec.passes.calibrate.stream import Stream
from sparsec.passes.select import Choice
from sparsec.passes.statistics import Moments, Statistics
from sparsec.recipe import Calibrate

__all__ = ["calibrate", "why_not"]

Array = np.ndarray[Any, Any]

_ROWS_PER_INPUT, _ROWS = 64, 1 << 16
"""Rows that a layer's moments are made of: so many for each of its inputs, or so many in all if that is more. Noise in the moments
costs accuracy, most where differences to the uncompressed model are made up for; beyond this an image's pixels say much the same."""


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
    if any(use.operator == "Gather" for use in uses):
        return "rows of a lookup table have no products to calibrate"
    if len(uses) > 1:
        return f"read by {len(uses)} nodes"
    return ""


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
    groups = _groups(model, choices)
    biases = {i: own_bias(model, choices[i].weight.uses[0], choices[i].weight.rows) for g in groups for i in g.members}
    numbers = {node: number for number, node in enumerate(model.graph)}  # biases have moved them
    for group in groups:
        group.node = min(numbers[choices[i].weight.uses[0].node] for i in group.members)
    groups.sort(key=lambda group: group.node)
    plan = segments(model.graph, [group.node for group in groups], [[group.x] for group in groups])
    sequential = settings.sequential
    masks = [sample.get(settings.mask) for sample in samples]
    with_dense = sequential and settings.correction > 0
    stream = Stream(model.clone(), samples, threads)
    dense = Stream(model.clone(), samples, threads) if with_dense else None
    found: list[Solved | None] = [None] * len(choices)
    waiting: dict[int, Future[Solved]] = {}
    try:
        for group, segment in zip(groups, plan, strict=True):
            _advance((stream, dense), segment)
            # More threads than cores make BLAS many times slower.
            with threadpool_limits(max(1, threads // len(group.members)) if sequential else 1, user_api="blas"):
                for index, statistics in _gather(group, choices, stream, dense, masks):
                    if progress is not None:
                        progress(choices[index].weight.name)
                    choice = choices[index]
                    layer = Layer(
                        choice.weight.name,
                        choice.weight.matrix(),
                        str(choice.scheme),
                        choice.rule,
                        settings,
                        statistics,
                    )
                    waiting[index] = executor.submit(solve, layer)
                    _keep(found, waiting, 2 * tasks)
                if sequential:
                    _keep(found, waiting, 0)
                    for index in group.members:
                        _replace(stream.model, choices[index], found[index], biases[index])
        _keep(found, waiting, 0)
    finally:
        stream.close()
        if dense is not None:
            dense.close()
    for index, solved in enumerate(found):
        if solved is not None and solved.shift is not None:
            add_to_bias(model, biases[index], solved.shift)
    return found


def _keep(found: list[Solved | None], waiting: dict[int, Future[Solved]], most: int) -> None:
    """Collect results until at most `most` layers are being worked on."""
    while len(waiting) > most:
        wait(waiting.values(), return_when=FIRST_COMPLETED)
        for index in [index for index, future in waiting.items() if future.done()]:
            found[index] = waiting.pop(index).result()


def _groups(model: ir.Model, choices: Sequence[Choice]) -> list[_Group]:
    groups: dict[str, _Group] = {}
    for index, choice in enumerate(choices):
        if why_not(choice):
            continue
        x = choice.weight.uses[0].node.inputs[0]
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
        alike.setdefault(_geometry(choices[index]), []).append(index)
    found = []
    for members in alike.values():
        weight = choices[members[0]].weight
        use, limit = weight.uses[0], -(-max(_ROWS_PER_INPUT * weight.cols, _ROWS) // len(masks))
        moments: list[Moments] = []
        for sample, mask in enumerate(masks):
            rows = layer_rows(use, stream.value(group.x, sample), limit, sample, mask)
            before = layer_rows(use, dense.value(group.x, sample), limit, sample, mask) if dense is not None else None
            if not moments:
                moments = [Moments(part.shape[1], with_dense=dense is not None) for part in rows]
            for number, part in enumerate(rows):
                moments[number].add(part, None if before is None else before[number])
        statistics = [m.statistics(centred=True) for m in moments]
        found += [(index, statistics) for index in members]
    return found


def _geometry(choice: Choice) -> tuple[Any, ...]:
    """What decides which inputs a layer sees of its activations."""
    node = choice.weight.uses[0].node
    if node.op_type != "Conv":
        return ()
    kept = {k: tuple(a.as_ints()) for k, a in node.attributes.items() if k in ("strides", "pads", "dilations")}
    return (choice.weight.shape[2:], node.attributes.get_int("group", 1), tuple(sorted(kept.items())))


def _replace(model: ir.Model, choice: Choice, solved: Solved | None, bias: str) -> None:
    """Give a model the decoded weight, and the bias that goes with it."""
    assert solved is not None
    value = model.graph.initializers[choice.weight.name]
    matrix = solved.decoded()
    array = matrix.T if choice.weight.flipped else matrix
    value.const_value = ir.tensor(np.ascontiguousarray(array).reshape(choice.weight.shape), name=value.name)
    if solved.shift is not None:
        add_to_bias(model, bias, solved.shift)
