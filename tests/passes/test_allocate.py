"""Who gets the zeros (`sparsify.scope`), through the whole pipeline: planted networks, and the budget is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import sparsec
from sparsec.errors import RecipeError
from tests.passes.calibrate.networks import chain, distance, samples


def planted(shape: tuple[int, int], density: float, rng: np.random.Generator) -> np.ndarray:
    """A ticket of this density in noise that is a hundredth of it."""
    ticket = rng.uniform(1, 2, shape) * rng.choice([-1, 1], shape) * (rng.random(shape) < density)
    return ((ticket + 0.01 * rng.standard_normal(shape)) / np.sqrt(density * shape[1])).astype(np.float32)


def network(seed: int = 0) -> ir.Model:
    """A wide layer whose ticket is sparse, narrow ones that need nearly all their weights."""
    rng = np.random.default_rng(seed)
    return chain(planted((120, 20), 0.25, rng), planted((6, 120), 0.9, rng), planted((11, 6), 0.95, rng))


def compressed(scheme: str, scope: str, calibration: Any = None, **sparsify: Any) -> sparsec.CompressedModel:
    rule = {"scheme": scheme, "sparsify": {"scope": scope, **sparsify}}
    recipe = {"version": 1, "rules": [rule], "min_elements": 0}
    return sparsec.compress(network(), recipe, calibration=calibration, verify=False)


def zeros(model: sparsec.CompressedModel) -> dict[str, float]:
    return {row.record.name: row.record.zeros for row in model.report.layers}


SIZES = {"w0": 2400, "w1": 720, "w2": 66}


@pytest.mark.parametrize("algorithm", ["magnitude", "wanda", "dsnot", "obs", "sparsegpt"])
@pytest.mark.parametrize("scope", ["lamp", "erk", "global", "output"])
def test_shared_zeros_beat_equal_shares_on_a_planted_network(scope: str, algorithm: str) -> None:
    if scope == "global" and algorithm in ("obs", "sparsegpt"):
        with pytest.raises(RecipeError, match=r"sparsify.scope 'global' compares scores .* Choose lamp or erk"):
            compressed("s55", scope, algorithm=algorithm)
        return
    feeds = None if algorithm == "magnitude" else samples(network(), 6)
    found, equal = (compressed("s55", s, feeds, algorithm=algorithm) for s in (scope, "layer"))
    shares = zeros(found)
    assert shares["w0"] > 0.6 > shares["w2"]
    assert sum(shares[name] * size for name, size in SIZES.items()) / sum(SIZES.values()) == pytest.approx(
        0.55, abs=0.01
    )
    others = samples(network(), 6, seed=5)
    assert distance(found.model, network(), others) < 0.5 * distance(equal.model, network(), others)


def test_global_scores_count_inputs_where_there_are_samples() -> None:
    feeds = samples(network(), 6)
    for feed in feeds:
        feed["x"][..., :10] *= 1e-3  # half of the wide layer's weights meet next to nothing
    with_inputs, without = compressed("s65", "global", feeds), compressed("s65", "global", feeds, algorithm="magnitude")
    assert zeros(with_inputs)["w0"] > zeros(without)["w0"] + 0.02


@pytest.mark.parametrize("scheme", ["s4x1@50", "sf50", "s50-int4"])
@pytest.mark.parametrize("scope", ["lamp", "erk"])
def test_every_structure_with_a_share_of_zeros(scheme: str, scope: str) -> None:
    model = compressed(scheme, scope)
    assert {row.record.scheme for row in model.report.layers} == {scheme}
    assert zeros(model)["w0"] > 0.5 > zeros(model)["w2"]


def test_fixed_zeros_cannot_be_shared_out() -> None:
    with pytest.raises(RecipeError, match="'s2:4' fixes the zeros of every group; choose layer"):
        compressed("s2:4", "lamp")


def test_the_effective_recipe_gives_the_same_bytes() -> None:
    for feeds in (None, samples(network(), 4)):
        first = compressed("s50-int4", "lamp", feeds)
        again = sparsec.compress(network(), first.recipe, calibration=feeds, verify=False)
        assert again.to_bytes() == first.to_bytes()
