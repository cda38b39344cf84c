"""One layer compressed from its weight and the statistics of its inputs: prune, code the survivors, shift the bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsec.formats import EncodedWeight, Scheme, decode, encode
from sparsec.passes import hessian
from sparsec.passes.quantise.compensate import compensate
from sparsec.passes.sparsify.masks import mask_of_scores
from sparsec.passes.sparsify.sparsegpt import sparsegpt
from sparsec.passes.sparsify.wanda import wanda
from sparsec.passes.statistics import Statistics
from sparsec.recipe import Calibrate, Rule

__all__ = ["Layer", "Solved", "solve"]

Mask = NDArray[np.bool_]
Matrix = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Layer:
    """What a layer's compression needs; picklable.

    weight: float32 [N, K]. statistics: of the K inputs, one for each group of a grouped convolution (rows in equal parts).
    """

    name: str
    weight: NDArray[np.float32]
    scheme: str
    rule: Rule
    settings: Calibrate
    statistics: Sequence[Statistics]


@dataclass(frozen=True, eq=False)
class Solved:
    """The encoded weight; `shift`, float32 [N], to add to the layer's bias; zeros: share of W; nmse: |W' - W|^2 / |W|^2;
    output_error: the layer's squared error on the calibration data over its outputs' squares, means taken out."""

    encoded: EncodedWeight
    shift: NDArray[np.float32] | None
    zeros: float
    nmse: float
    output_error: float

    def decoded(self) -> NDArray[np.float32]:
        """float32 [N, K]."""
        return decode(self.encoded)


def solve(layer: Layer) -> Solved:
    """Compress one layer as its rule says."""
    scheme, statistics = Scheme.parse(layer.scheme), layer.statistics
    parts = [aimed_at(part, s, layer.settings) for part, s in _parts(layer.weight, statistics)]
    target = np.ascontiguousarray(np.concatenate(parts), np.float32)
    if len(statistics) > 1:
        return _solved(layer, _by_groups(layer, scheme, target))
    second_moment = statistics[0].second_moment
    mask = None
    if not scheme.is_dense:
        mask, target = prune(target, second_moment, scheme, layer.rule, layer.settings.damping)
    return _solved(layer, code(target, second_moment, scheme, mask, layer))


def prune(
    weight: NDArray[np.float32], second_moment: Matrix, scheme: Scheme, rule: Rule, damping: float
) -> tuple[Mask, NDArray[np.float32]]:
    """(keep-mask, weight that makes up for what is gone) by the rule's algorithm."""
    structure = scheme.structure
    match rule.sparsify.algorithm:
        case "magnitude":
            mask = mask_of_scores(np.square(weight, dtype=np.float64), structure)
        case "wanda":
            mask = wanda(weight, second_moment, structure)
        case _:
            return sparsegpt(weight, second_moment, structure, damping=damping)
    return mask, np.where(mask, weight, np.float32(0))


def code(
    weight: NDArray[np.float32], second_moment: Matrix, scheme: Scheme, mask: Mask | None, layer: Layer
) -> EncodedWeight:
    """The weight in its scheme by the rule's algorithm."""
    match layer.rule.quantize.algorithm:
        case "nearest":
            return encode(weight, scheme, mask, name=layer.name)
        case "gptq":
            return compensate(weight, second_moment, scheme, mask, damping=layer.settings.damping)
        case _:
            return compensate(weight, second_moment, scheme, mask, damping=layer.settings.damping)


def _by_groups(layer: Layer, scheme: Scheme, target: NDArray[np.float32]) -> EncodedWeight:
    """A grouped convolution: rows read different inputs, so each weight counts by its own input's second moment."""
    importance = np.concatenate(
        [np.broadcast_to(np.diag(s.second_moment), part.shape) for part, s in _parts(target, layer.statistics)]
    )
    mask = None
    if not scheme.is_dense:
        magnitude = layer.rule.sparsify.algorithm == "magnitude"
        score = np.square(target, dtype=np.float64) * (1.0 if magnitude else importance)
        mask = mask_of_scores(score, scheme.structure)
    return encode(target, scheme, mask, importance, name=layer.name)


def aimed_at(weight: Matrix, statistics: Statistics, settings: Calibrate) -> Matrix:
    """W + a W E[(d - x) x^T] H^-1: the weight whose outputs on the compressed model's activations x are nearest to W's on the
    uncompressed model's d, as far as `correction` = a goes (all the way fits the samples' noise too)."""
    if statistics.cross is None:
        return weight
    inverse = hessian.inverse(hessian.damped(statistics.second_moment, settings.damping))
    return np.asarray(weight + settings.correction * (weight.astype(np.float64) @ statistics.cross) @ inverse)


def _parts(weight: Matrix, statistics: Sequence[Statistics]) -> list[tuple[Matrix, Statistics]]:
    return list(zip(np.split(weight, len(statistics)), statistics, strict=True))


def _solved(layer: Layer, encoded: EncodedWeight) -> Solved:
    decoded, weight = decode(encoded), layer.weight
    shift = np.zeros(len(weight))
    lost = power = 0.0
    start = 0
    for (part, statistics), now in zip(
        _parts(weight, layer.statistics), np.split(decoded, len(layer.statistics)), strict=True
    ):
        if statistics.centred:
            shift[start : start + len(part)] = part @ statistics.mean_dense - now @ statistics.mean
        start += len(part)
        lost += hessian.error(part, now, statistics.second_moment)
        power += hessian.error(part, np.zeros_like(part), statistics.second_moment)
    square = float(np.square(weight, dtype=np.float64).sum())
    difference = float(np.square(decoded - weight, dtype=np.float64).sum())
    return Solved(
        encoded,
        shift.astype(np.float32) if layer.statistics[0].centred else None,
        float(np.mean(decoded == 0)),
        difference / square if square else 0.0,
        lost / power if power else 0.0,
    )
