"""Inputs of N:M weights in an order that loses less (sparsify/permute.py), undone by the rows of the layers that make them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsec.formats import NM
from sparsec.passes.equivalent.channels import Channels, channels_of, input_space
from sparsec.passes.equivalent.steps import Refused
from sparsec.passes.select import Choice
from sparsec.passes.sparsify.permute import permutation, retained

__all__ = ["permute_inputs"]

_SWEEPS = 16
"""Rounds of trades: with 1536 inputs they take half a minute and find nine tenths of what there is to gain."""


def permute_inputs(model: ir.Model, choices: Sequence[Choice], power: Mapping[str, NDArray[np.float64]]) -> bool:
    """Reorder what the weights read whose rules say `permute`, in place; whether anything changed. Notes tell what came of it.

    power: E[x^2] of a weight's inputs, float64 [K], by its name; weights without it are scored by their squares. Weights that read
    the same channels share an order.
    """
    wanted = {choice.weight.name: choice for choice in choices if choice.rule.sparsify.permute}
    done: set[str] = set()
    changed = False
    for name, choice in wanted.items():
        if name in done:
            continue
        done.add(name)
        try:
            channels = _channels(model, choice)
        except Refused as why:
            choice.notes.append(f"inputs keep their order: {why}")
            continue
        members = [wanted[n] for n in _readers(channels) if n in wanted and _fits(wanted[n], channels, choice)]
        done |= {member.weight.name for member in members}
        changed |= _permute(model, channels, members, power)
    return changed


def _channels(model: ir.Model, choice: Choice) -> Channels:
    if len(choice.weight.uses) > 1 or choice.weight.uses[0].operator == "Gather":
        raise Refused("the weight is looked up or read by several nodes")
    node = choice.weight.uses[0].node
    channels = channels_of(model, *input_space(node), "order")
    if channels.count != choice.weight.cols:
        raise Refused(f"a channel has {choice.weight.cols / channels.count:g} inputs, groups lie within one")
    return channels


def _readers(channels: Channels) -> list[str]:
    return list(dict.fromkeys(touch.value.name or "" for touch in channels.touches if touch.role == "in"))


def _fits(other: Choice, channels: Channels, choice: Choice) -> bool:
    """Whether the weight is scored together with `choice`: one input a channel, the same groups."""
    return other.weight.cols == channels.count and other.scheme.structure == choice.scheme.structure


def _permute(
    model: ir.Model, channels: Channels, members: Sequence[Choice], power: Mapping[str, NDArray[np.float64]]
) -> bool:
    structure = members[0].scheme.structure
    assert isinstance(structure, NM)
    scores = []
    for member in members:
        square = np.square(member.weight.matrix(), dtype=np.float64)
        scores.append(square * power.get(member.weight.name, 1.0))
    score = np.concatenate(scores)
    order = permutation(score, structure, sweeps=_SWEEPS)
    total = float(score.sum()) or 1.0
    before, after = (100 * retained(s, structure) / total for s in (score, score[:, order]))
    if np.array_equal(order, np.arange(len(order))):
        return False
    channels.reorder(model, order)
    for member in members:
        member.notes.append(f"inputs reordered: {structure} keeps {after:.1f} % of the scores, {before:.1f} % before")
    return True
