"""One layer compressed from its weight and the statistics of its inputs: prune, code the survivors, shift the bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsec.errors import CalibrationError, WeightError
from sparsec.formats import EncodedWeight, Scheme, Structure, decode, encode
from sparsec.passes import hessian
from sparsec.passes.calibrate.few_samples import damped_for
from sparsec.passes.factor.coding import Coder
from sparsec.passes.factor.form import Factored
from sparsec.passes.factor.solve import factored
from sparsec.passes.quantise import compensate, flexround, follow_paths, learn_jointly, quantise
from sparsec.passes.sparsify.dsnot import dsnot
from sparsec.passes.sparsify.gblm import balance, gblm
from sparsec.passes.sparsify.masks import mask_of_scores
from sparsec.passes.sparsify.obs import obs_mask
from sparsec.passes.sparsify.refit import refit
from sparsec.passes.sparsify.sparsegpt import sparsegpt
from sparsec.passes.sparsify.swap import swap
from sparsec.passes.sparsify.wanda import wanda
from sparsec.passes.statistics import Statistics
from sparsec.recipe import Calibrate, Rule

__all__ = ["Layer", "Solved", "solve"]

_MOST_INPUTS = 1024
"""Above, optimal brain surgeon on single weights takes minutes a layer."""

_SPREAD_IN_ORDER = 0.5
"""How far strips may be from the average share of zeros where rows are in an order for them: they differ as much as rows do then."""

_OF_RESIDUALS = 2 / 3
"""How far a layer goes in what is added to its outputs, as a share of `correction`: at 1 the outputs of a transformer come up to 6 %
nearer, those of a convolutional network stay up to 8 % farther off (KL divergence on other samples)."""

Mask = NDArray[np.bool_]
Matrix = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Layer:
    """What a layer's compression needs; picklable.

    weight: float32 [N, K]. structure: the scheme's, with this weight's share of the zeros. statistics: of the K inputs, one for each
    group of a grouped convolution (rows in equal parts). gradient_square: float64 [N, K], where pruning needs it (gblm).
    """

    name: str
    weight: NDArray[np.float32]
    scheme: str
    structure: Structure
    rule: Rule
    settings: Calibrate
    statistics: Sequence[Statistics]
    gradient_square: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class Solved:
    """The encoded or factored weight; `shift`, float32 [N], to add to the layer's bias; zeros: share of W; nmse: |W' - W|^2 / |W|^2;
    output_error: the layer's squared error on the calibration data over its outputs' squares, means taken out."""

    encoded: EncodedWeight | Factored
    shift: NDArray[np.float32] | None
    zeros: float
    nmse: float
    output_error: float

    def decoded(self) -> NDArray[np.float32]:
        """float32 [N, K]."""
        return _decoded(self.encoded)


def solve(layer: Layer) -> Solved:
    """Compress one layer as its rule says. Raises CalibrationError, with the layer's name, for statistics that cannot be used."""
    try:
        return _solve(layer)
    except CalibrationError as error:
        raise CalibrationError(f"weight '{layer.name}': {error}") from None


def _solve(layer: Layer) -> Solved:
    layer = replace(layer, rule=damped_for(layer.rule, layer.statistics))
    statistics = layer.statistics
    parts = [
        aimed_at(part, s, layer.settings.correction, layer.rule.quantize.damping)
        for part, s in _parts(layer.weight, statistics)
    ]
    target = np.ascontiguousarray(np.concatenate(parts), np.float32)
    moments = [s.second_moment for s in statistics]
    second_moment = moments[0] if len(moments) == 1 else np.stack(moments)
    if len(moments) == 1 and layer.rule.several_products:
        return _solved(layer, factored(target, second_moment, layer.structure, layer.rule, _coder(layer)))
    return _solved(layer, _one_product(target, second_moment, None, layer))


def _one_product(target: NDArray[np.float32], second_moment: Matrix, mask: Mask | None, layer: Layer) -> EncodedWeight:
    """The weight pruned, on a given mask if there is one, and coded."""
    scheme, rule, start = Scheme.parse(layer.scheme), layer.rule, target
    if mask is not None:
        start = refit(target, second_moment, mask, damping=rule.sparsify.damping)
    elif not scheme.is_dense:
        mask, start = prune(target, second_moment, layer.structure, rule, layer.gradient_square)
    return code(target, start, second_moment, scheme, mask, layer)


def _coder(layer: Layer) -> Coder:
    def one_product(target: NDArray[np.float32], second_moment: Matrix | None, mask: Mask | None) -> EncodedWeight:
        assert second_moment is not None
        return _one_product(target, second_moment, mask, layer)

    return one_product


def prune(
    weight: NDArray[np.float32],
    second_moment: Matrix,
    structure: Structure,
    rule: Rule,
    gradient_square: NDArray[np.float64] | None = None,
) -> tuple[Mask, NDArray[np.float32]]:
    """(keep-mask, weights on it) by the rule's algorithm, with a second moment [K, K], or [G, K, K] for G equal parts of the rows
    (a grouped convolution). Unless values are only to be rounded (`nearest`), they are the ones that best make up for what is gone."""
    algorithm, damping, single = rule.sparsify.algorithm, rule.sparsify.damping, structure.block == (1, 1)
    joint = rule.sparsify.scope == "global"
    if algorithm == "auto":
        algorithm = "wanda" if joint else "sparsegpt" if single and weight.shape[1] > _MOST_INPUTS else "obs"
    start = weight
    match algorithm:
        case "magnitude":
            mask = mask_of_scores(np.square(weight, dtype=np.float64), structure)
        case "wanda":
            mask = wanda(weight, second_moment, structure, by_row=not (joint or rule.sparsify.reorder))
        case "gblm":
            assert gradient_square is not None
            mask = gblm(
                weight,
                second_moment,
                gradient_square,
                structure,
                alpha=balance(hessian.diagonals(second_moment, len(weight)), gradient_square),
                by_row=not rule.sparsify.reorder,
            )
        case "dsnot":
            mask = wanda(weight, second_moment, structure, by_row=not joint)
            mask = dsnot(weight, second_moment, mask, structure)
        case "obs":
            spread = _SPREAD_IN_ORDER if rule.sparsify.reorder else None
            mask = obs_mask(weight, second_moment, structure, damping=damping, spread=spread)
        case "sparsegpt":
            mask, start = sparsegpt(weight, second_moment, structure, damping=damping)
            if single and rule.sparsify.algorithm == "auto":
                mask, start = swap(weight, second_moment, mask, structure, start=start, damping=damping)
    if rule.quantize.algorithm == "nearest" and algorithm != "obs":
        return mask, np.where(mask, start, np.float32(0))
    return mask, refit(weight, second_moment, mask, start=start, damping=damping)


def code(
    weight: NDArray[np.float32],
    start: NDArray[np.float32],
    second_moment: Matrix,
    scheme: Scheme,
    mask: Mask | None,
    layer: Layer,
) -> EncodedWeight:
    """The weight in its scheme by the rule's algorithm; `start` is what is rounded, `weight` whose outputs are wanted."""
    damping = layer.rule.quantize.damping
    try:
        match layer.rule.quantize.algorithm:
            case "nearest":
                return encode(start, scheme, mask)
            case "gpfq":
                return follow_paths(start, second_moment, scheme, mask, damping=damping)
            case "gptq":
                return compensate(start, second_moment, scheme, mask, damping=damping)
            case "joint":
                return learn_jointly(weight, second_moment, scheme, mask, damping=damping, start=start)
            case "flexround":
                return flexround(weight, second_moment, scheme, mask, damping=damping, start=start)
            case "auto" | "descent":
                return quantise(weight, second_moment, scheme, mask, damping=damping, start=start)
    except WeightError as error:
        raise WeightError(f"weight '{layer.name}' as {scheme}: {error}") from None


def aimed_at(weight: Matrix, statistics: Statistics, correction: float, damping: float) -> Matrix:
    """W + a (W E[(d - x) x^T] + b E[(s - r) x^T]) H^-1: the weight whose outputs on the compressed model's activations x, with what
    is added to them there (r), are nearest to W's on the uncompressed model's d with what is added there (s), as far as
    `correction` = a and b go (all the way fits the samples' noise too)."""
    if statistics.cross is None:
        return weight
    inverse = hessian.inverse(hessian.damped(statistics.second_moment, damping))
    missing = weight.astype(np.float64) @ statistics.cross
    if statistics.residual is not None:
        missing += _OF_RESIDUALS * statistics.residual
    return np.asarray(weight + correction * missing @ inverse)


def _parts(weight: Matrix, statistics: Sequence[Statistics]) -> list[tuple[Matrix, Statistics]]:
    return list(zip(np.split(weight, len(statistics)), statistics, strict=True))


def _decoded(encoded: EncodedWeight | Factored) -> NDArray[np.float32]:
    return encoded.decoded() if isinstance(encoded, Factored) else decode(encoded)


def _solved(layer: Layer, encoded: EncodedWeight | Factored) -> Solved:
    decoded, weight = _decoded(encoded), layer.weight
    shift = np.zeros(len(weight))
    lost = power = 0.0
    start = 0
    for (part, statistics), now in zip(
        _parts(weight, layer.statistics), np.split(decoded, len(layer.statistics)), strict=True
    ):
        if statistics.centred:
            shift[start : start + len(part)] = part @ statistics.mean_dense - now @ statistics.mean
            if statistics.mean_residual is not None:
                shift[start : start + len(part)] += statistics.mean_residual
        start += len(part)
        lost += hessian.error(part, now, statistics.second_moment)
        power += hessian.error(part, np.zeros_like(part), statistics.second_moment)
    square = float(np.square(weight, dtype=np.float64).sum())
    difference = float(np.square(decoded - weight, dtype=np.float64).sum())
    return Solved(
        encoded,
        shift.astype(np.float32) if layer.statistics[0].centred else None,
        encoded.zeros() if isinstance(encoded, Factored) else float(np.mean(decoded == 0)),
        difference / square if square else 0.0,
        lost / power if power else 0.0,
    )
