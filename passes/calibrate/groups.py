"""Layers that read the same value, when their turn comes, and what samples tell about their inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from sparsec.passes.calibrate.gather import geometry, statistics_of
from sparsec.passes.calibrate.residual import Residual, added_to
from sparsec.passes.calibrate.segments import Segment, segments
from sparsec.passes.calibrate.shared import why_not_shared
from sparsec.passes.calibrate.stream import Stream
from sparsec.passes.select import Choice
from sparsec.passes.statistics import Statistics
from sparsec.recipe import Calibrate

__all__ = ["Group", "gather", "groups_of", "planned", "survey", "why_not"]

Array = np.ndarray[Any, Any]


@dataclass
class Group:
    """Layers that read the same value: they are compressed together, from one look at it."""

    node: int
    x: str
    members: list[int]
    residuals: dict[int, Residual] = field(default_factory=dict)
    """What other branches add to the outputs of members, where it is at hand when their turn comes."""


def why_not(choice: Choice) -> str:
    """Why the weight is not calibrated, or ''."""
    rule, uses = choice.rule, choice.weight.uses
    weighed = (
        (rule.low_rank is not None and rule.low_rank.algorithm != "lorc")
        or (rule.factor is not None and rule.factor.algorithm != "svd")
        or rule.outliers is not None
    )
    if (
        not weighed
        and rule.quantize.algorithm == "nearest"
        and (choice.scheme.is_dense or rule.sparsify.algorithm == "magnitude")
    ):
        return "its rule asks for data-free algorithms"
    if all(use.operator == "Gather" for use in uses):
        return "rows of a lookup table have no products to calibrate"
    return why_not_shared(choice.weight) if len(uses) > 1 else ""


def groups_of(choices: Sequence[Choice], members: Sequence[int]) -> list[Group]:
    """The weights with these numbers, each read by one node, by the value that node reads."""
    groups: dict[str, Group] = {}
    for index in members:
        x = choices[index].weight.uses[0].node.inputs[0]
        assert x is not None
        groups.setdefault(x.name or "", Group(0, x.name or "", [])).members.append(index)
    return list(groups.values())


def planned(model: ir.Model, groups: Sequence[Group], choices: Sequence[Choice]) -> list[tuple[Group, Segment]]:
    """Groups in order of execution, each with the segment of the graph that leads to it."""
    numbers = {node: number for number, node in enumerate(model.graph)}

    def made_at(residual: Residual) -> int:
        producer = residual.value.producer()
        return -1 if producer is None else numbers[producer]

    for group in groups:
        group.node = min(numbers[choices[i].weight.uses[0].node] for i in group.members)
        added = {i: added_to(choices[i].weight.uses[0]) for i in group.members}
        group.residuals = {
            i: residual for i, residual in added.items() if residual is not None and made_at(residual) < group.node
        }
    ordered = sorted(groups, key=lambda group: group.node)
    plan = segments(model.graph, [group.node for group in ordered], [[group.x] for group in ordered])
    return list(zip(ordered, plan, strict=True))


def gather(
    group: Group,
    choices: Sequence[Choice],
    stream: Stream,
    dense: Stream | None,
    masks: Sequence[Array | None],
    *,
    centred: bool,
) -> list[tuple[int, list[Statistics]]]:
    """Statistics of each member's inputs, one for each group of its convolution; equal geometries are looked at once."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for index in group.members:
        key = (geometry(choices[index].weight.uses[0]), group.residuals.get(index))
        alike.setdefault(key, []).append(index)
    found = []
    for (_, residual), members in alike.items():
        weight = choices[members[0]].weight
        statistics = statistics_of(
            weight.uses[0], weight.cols, stream, dense, masks, centred=centred, residual=residual
        )
        found += [(index, statistics) for index in members]
    return found


def survey(
    model: ir.Model,
    choices: Sequence[Choice],
    samples: Sequence[Mapping[str, Array]],
    visit: Callable[[Choice, list[Statistics]], None],
    *,
    settings: Calibrate,
    threads: int = 1,
) -> None:
    """Call `visit` with the statistics of each weight's inputs in the model as it is, one after the other; not for lookup tables
    and weights that several nodes read."""
    members = [i for i, c in enumerate(choices) if len(c.weight.uses) == 1 and c.weight.uses[0].operator != "Gather"]
    stream = Stream(model.clone(), samples, threads)
    masks = [sample.get(settings.mask) for sample in samples]
    try:
        for group, segment in planned(model, groups_of(choices, members), choices):
            stream.advance(segment)
            with threadpool_limits(1, user_api="blas"):  # as in layers.py
                for index, statistics in gather(group, choices, stream, None, masks, centred=settings.biases):
                    visit(choices[index], statistics)
    finally:
        stream.close()
