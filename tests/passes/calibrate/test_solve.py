"""Algorithms of a rule on one layer and through a whole network: each beats its simpler ancestor; biases can be left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sparsec
from sparsec.errors import CalibrationError, RecipeError
from sparsec.formats import Scheme
from sparsec.passes.calibrate.solve import Layer, Solved, solve
from sparsec.passes.statistics import Moments, Statistics
from sparsec.recipe import Calibrate, Rule
from tests.passes.calibrate.networks import distance, image_network, samples, text_network


def inputs(cols: int, groups: int = 1) -> list[Statistics]:
    """Correlated inputs, a few of them large, with a mean."""
    rng = np.random.default_rng(cols)
    found = []
    for _ in range(groups):
        x = rng.standard_normal((300, cols)) @ rng.standard_normal((cols, cols)) * np.exp(rng.standard_normal(cols)) + 1
        moments = Moments(cols, with_dense=False)
        moments.add(x.astype(np.float32))
        found.append(moments.statistics(centred=True))
    return found


def solved(scheme: str, cols: int = 40, groups: int = 1, **rule: Any) -> Solved:
    weight = np.random.default_rng(1).standard_t(4, (24, cols)).astype(np.float32)
    structure = Scheme.parse(scheme).structure
    made = Rule(scheme=scheme, **rule)
    return solve(Layer("w", weight, scheme, structure, made, Calibrate(), inputs(cols, groups)))


@pytest.mark.parametrize("scheme", ["s50", "s2:4", "sf75", "s60-int4"])
def test_dsnot_loses_no_more_than_wanda(scheme: str) -> None:
    for quantize in ("nearest", "auto"):
        errors = [
            solved(scheme, sparsify={"algorithm": name}, quantize={"algorithm": quantize}).output_error
            for name in ("dsnot", "wanda")
        ]
        assert errors[0] < errors[1]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("scheme", ["int3", "cb3-c", "int2-g8", "vq1d2", "s50-int4"])
def test_gpfq_lies_between_nearest_and_descent(scheme: str, groups: int) -> None:
    near, path, descent = (
        solved(scheme, groups=groups, quantize={"algorithm": name}).output_error
        for name in ("nearest", "gpfq", "descent")
    )
    assert descent < path < near


def test_blocks_and_exchanges_of_single_weights() -> None:
    with pytest.raises(RecipeError, match="'dsnot' exchanges single weights, 's4x1@50' keeps blocks"):
        sparsec.compress(text_network(), {"rules": [{"scheme": "s4x1@50", "sparsify": {"algorithm": "dsnot"}}]})


@pytest.mark.parametrize("key", ["sparsify: {algorithm: dsnot}", "quantize: {algorithm: gpfq}"])
def test_end_to_end_better_than_without_inputs(key: str) -> None:
    for network in (text_network, image_network):
        recipe = f"version: 1\nmin_elements: 0\nrules:\n  - scheme: s2:4-int4\n    {key}\n"
        feeds, others = samples(network(), 24), samples(network(), 8, seed=9)
        found = sparsec.compress(network(), recipe, calibration=feeds, verify=False)
        plain = sparsec.compress(network(), {"rules": [{"scheme": "s2:4-int4"}], "min_elements": 0}, verify=False)
        assert distance(found.model, network(), others) < 0.9 * distance(plain.model, network(), others)


def test_biases_can_be_left_alone() -> None:
    feeds = samples(text_network(), 30)
    models = {}
    for biases in (True, False):
        recipe = {"rules": [{"scheme": "int2"}], "min_elements": 0, "calibrate": {"biases": biases}}
        models[biases] = sparsec.compress(text_network(), recipe, calibration=feeds, verify=False).model
    bias = text_network().graph.initializers["bq"].const_value
    assert bias is not None
    kept = [v.const_value.numpy() for v in models[False].graph.initializers.values() if v.const_value is not None]
    assert any(np.array_equal(array, bias.numpy()) for array in kept)
    assert len(models[True].graph.initializers) > len(models[False].graph.initializers)
    assert distance(models[True], text_network(), feeds) < distance(models[False], text_network(), feeds)


@pytest.mark.parametrize("scheme", ["int4", "s50", "s2:4-cb3-c"])
def test_statistics_that_cannot_be_used_name_the_layer(scheme: str) -> None:
    (found,) = inputs(40)
    found.second_moment[3, 3] = np.nan
    weight = np.random.default_rng().standard_normal((24, 40)).astype(np.float32)
    layer = Layer("up", weight, scheme, Scheme.parse(scheme).structure, Rule(scheme=scheme), Calibrate(), [found])
    with pytest.raises(CalibrationError, match="weight 'up': the second moment of a layer's inputs holds NaN"):
        solve(layer)
