"""Factors for channels: AWQ's from calibration inputs (quantise/awq.py), equalised ranges without (quantise/equalise.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsec.formats import Scheme
from sparsec.passes.equivalent.channels import Channels, channels_of, input_space, output_space
from sparsec.passes.equivalent.steps import Refused
from sparsec.passes.quantise.awq import Part, input_scales
from sparsec.passes.quantise.equalise import Link, Side, equalised
from sparsec.passes.select import Choice
from sparsec.passes.statistics import Statistics

__all__ = ["equalise_ranges", "scale_inputs"]

Survey = Callable[[Sequence[Choice], Callable[[Choice, list[Statistics]], None]], None]
"""Calls its second argument with the statistics of the inputs of each weight of the first."""


@dataclass
class _Shared:
    """Weights that read the same channels: one search for all."""

    channels: Channels
    members: list[Choice]
    parts: dict[str, Part] = field(default_factory=dict)
    factors: NDArray[np.float32] | None = None


def scale_inputs(model: ir.Model, choices: Sequence[Choice], survey: Survey) -> bool:
    """AWQ's scales for the inputs of weights whose rules say `scaling: awq`, folded into what makes them; whether any changed."""
    sets: list[_Shared] = []
    by_name: dict[str, _Shared] = {}
    wanted = [choice for choice in choices if choice.rule.quantize.scaling == "awq"]
    names = {choice.weight.name: choice for choice in wanted}
    for choice in wanted:
        if choice.weight.name in by_name:
            continue
        try:
            channels = _input_channels(model, choice)
        except Refused as why:
            choice.notes.append(f"inputs not scaled: {why}")
            continue
        readers = {touch.value.name or "" for touch in channels.touches if touch.role == "in"}
        members = [
            c for name, c in names.items() if name in readers and len(c.weight.uses) == 1 and not _is_depthwise(c)
        ]
        sets.append(_Shared(channels, members))
        by_name |= {member.weight.name: sets[-1] for member in members}

    def visit(choice: Choice, statistics: list[Statistics]) -> None:
        shared, name = by_name[choice.weight.name], choice.weight.name
        scheme = Scheme.of(choice.scheme.codec, scales=choice.scheme.scales)  # what is pruned is decided later
        span = choice.weight.cols // shared.channels.count
        shared.parts[name] = Part(
            choice.weight.matrix(),
            statistics[0].second_moment,
            scheme,
            span,
            choice.rule.quantize.algorithm != "nearest",
        )
        if len(shared.parts) == len(shared.members):
            shared.factors = input_scales(list(shared.parts.values()), damping=choice.rule.quantize.damping)
            shared.parts.clear()

    survey([member for shared in sets for member in shared.members], visit)
    changed = False
    for shared in sets:
        factors = shared.factors
        if factors is None or np.ptp(factors) == 0:
            for member in shared.members:
                member.notes.append("inputs not scaled: no factors round with less error")
            continue
        changed = True
        # Weights are multiplied by the factors, so what makes their inputs is divided by them.
        shared.channels.rescale(model, 1 / factors.astype(np.float64))
        for member in shared.members:
            member.notes.append(f"inputs scaled by {1 / factors.max():.2g} to {1 / factors.min():.2g}")
    return changed


def _input_channels(model: ir.Model, choice: Choice) -> Channels:
    if len(choice.weight.uses) > 1 or choice.weight.uses[0].operator == "Gather":
        raise Refused("the weight is looked up or read by several nodes")
    if _is_depthwise(choice):
        raise Refused("an output of a depthwise convolution has one input channel, its scale is the output's")
    node = choice.weight.uses[0].node
    channels = channels_of(model, *input_space(node), "scale")
    if choice.weight.cols % channels.count:
        raise Refused("the weight's groups read different channels")
    touch = next(touch for touch in channels.touches if touch.node is node and touch.role == "in")
    assert touch.value.shape is not None
    if touch.value.shape.numpy()[touch.space.axis] != channels.count * touch.space.inner:
        raise Refused("the channels lie apart in the weight's inputs")
    return channels


def _is_depthwise(choice: Choice) -> bool:
    return any(use.operator == "DepthwiseConv" for use in choice.weight.uses)


def equalise_ranges(model: ir.Model, choices: Sequence[Choice]) -> bool:
    """Equal ranges for rows that make channels and columns that read them, around weights whose rules say `scaling: equalize`."""
    found: dict[frozenset[tuple[ir.Value, int]], Channels] = {}
    for choice in choices:
        if choice.rule.quantize.scaling != "equalize":
            continue
        for side, where in (("inputs", input_space), ("outputs", output_space)):
            try:
                channels = _between_weights(model, choice, side, where)
            except Refused as why:
                choice.notes.append(f"{side} not equalised: {why}")
                continue
            key = frozenset((touch.value, touch.space.axis) for touch in channels.touches)
            found.setdefault(key, channels)
            choice.notes.append(f"{side} equalised")
    weights: dict[str, NDArray[np.floating]] = {}
    links = []
    for channels in found.values():
        ends: dict[str, list[Side]] = {"out": [], "in": []}
        for touch in channels.touches:
            if touch.role != "each":
                assert touch.value.const_value is not None
                name = touch.value.name or ""
                weights[name] = touch.value.const_value.numpy()
                ends[touch.role].append(Side(name, touch.space.axis, touch.space.inner))
        links.append(Link(channels.count, tuple(ends["out"]), tuple(ends["in"])))
    for channels, factors in zip(found.values(), equalised(weights, links), strict=True):
        channels.rescale(model, factors)
    return bool(found)


def _between_weights(
    model: ir.Model, choice: Choice, side: str, where: Callable[[ir.Node], tuple[ir.Value, int]]
) -> Channels:
    use = choice.weight.uses[0]
    if side == "inputs" and use.operator == "Gather":
        raise Refused("a table is read by indices")
    channels = channels_of(model, *where(use.node), "scale")
    missing = {"in", "out"} - {touch.role for touch in channels.touches}
    if missing:
        raise Refused("no weight makes them" if "out" in missing else "no weight reads them")
    return channels
