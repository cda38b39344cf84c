"""One layer compressed from its weight and the statistics of its inputs: prune, code the survivors, shift the bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsec.formats import EncodedWeight, Scheme, decode, encode
from sparsec.passes import hessian
from sparsec.passes.statistics import Statistics
from sparsec.recipe import Calibrate, Rule

__all__ = ["Layer", "Solved", "solve"]

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
    scheme = Scheme.parse(layer.scheme)
    target = np.concatenate([aimed_at(part, s, layer.settings) for part, s in _parts(layer.weight, layer.statistics)])
    encoded = encode(target.astype(np.float32), scheme, name=layer.name)
    return _solved(layer, encoded)


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
