"""How many zeros each weight of a rule gets (`sparsify.scope`); the algorithms are in sparsify/allocation.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sparsec.formats import Block, FanIn, Unstructured
from sparsec.passes.select import Choice
from sparsec.passes.sparsify.allocation import by_output, erk, joint, lamp
from sparsec.recipe import Sparsify

__all__ = ["allocate", "needs_inputs"]


def needs_inputs(sparsify: Sparsify) -> bool:
    """True where scores of different weights are compared that depend on calibration inputs (if there are any)."""
    return sparsify.scope == "output" or (sparsify.scope == "global" and sparsify.algorithm != "magnitude")


def allocate(choices: Sequence[Choice], power: Mapping[str, NDArray[np.float64]]) -> None:
    """Set the `structure` of weights whose rule shares zeros out: the percentage becomes the weight's own.

    power: E[x^2] of each input, float64 [N, K] or [K], by the weight's name; weights without count all inputs alike. Structures that
    fix the zeros of every group or row stay as they are.
    """
    for rule in sorted({choice.rule_index for choice in choices}):
        members = [choice for choice in choices if choice.rule_index == rule]
        structure, sparsify = members[0].scheme.structure, members[0].rule.sparsify
        if sparsify.scope == "layer" or not isinstance(structure, Unstructured | Block | FanIn):
            continue
        for choice, percent in zip(members, _percents(members, structure, sparsify, power), strict=True):
            choice.structure = replace(structure, percent=percent)


def _percents(
    members: Sequence[Choice],
    structure: Unstructured | Block | FanIn,
    sparsify: Sparsify,
    power: Mapping[str, NDArray[np.float64]],
) -> list[float]:
    if sparsify.scope == "erk":
        return erk([_shape(choice) for choice in members], structure.percent)
    weights = [choice.weight.matrix() for choice in members]
    if sparsify.scope == "lamp":
        return lamp(weights, structure.percent, block=structure.block)
    if isinstance(structure, FanIn):  # decided within each row
        return [structure.percent] * len(members)
    scores = []
    for choice, weight in zip(members, weights, strict=True):
        known = power.get(choice.weight.name) if needs_inputs(sparsify) else None
        square = np.square(weight, dtype=np.float64)
        scores.append(square if known is None else square * known)
    return by_output(scores, structure) if sparsify.scope == "output" else joint(scores, structure)


def _shape(choice: Choice) -> tuple[int, ...]:
    """Outputs, inputs and what a convolution has besides."""
    shape = choice.weight.shape
    return shape if len(shape) > 2 else (choice.weight.rows, choice.weight.cols)
