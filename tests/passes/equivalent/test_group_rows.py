"""Codebooks of runs of rows, rows reordered and learned jointly: better than one codebook with no more bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import sparsec
from sparsec.errors import RecipeError
from sparsec.passes.equivalent.group_rows import group_rows
from tests.passes.calibrate.networks import chain, choices, distance, samples
from tests.passes.equivalent.networks import block, mobile


def kinds(seed: int = 0) -> ir.Model:
    """Neurons of four kinds, mixed: each has its own few values."""
    rng = np.random.default_rng(seed)
    values, kind = 2 * rng.standard_normal((4, 6)), rng.permutation(np.repeat(np.arange(4), 16))
    first = values[kind[:, None], rng.integers(0, 6, (64, 96))] + 0.1 * rng.standard_normal((64, 96))
    return chain(first / 10, rng.standard_normal((9, 64)) / 8)


@pytest.mark.parametrize("network", [kinds, mobile, block])
def test_the_model_stays_as_it_is(network: Callable[[], ir.Model]) -> None:
    model = network()
    found = choices(model, "cb2.r4", quantize={"reorder": True})
    assert group_rows(model, found) == any(choice.notes[0].startswith("rows reordered") for choice in found)
    assert all(choice.notes for choice in found)
    assert distance(model, network(), samples(network(), 3)) < 1e-9


def coded(scheme: str, calibration: Any, **quantize: Any) -> sparsec.CompressedModel:
    rules = [{"targets": "w0", "scheme": scheme, "quantize": quantize}, {"targets": "w1", "scheme": "fp32"}]
    recipe = {"version": 1, "rules": rules, "min_elements": 0}
    return sparsec.compress(kinds(), recipe, calibration=calibration, verify=False)


def bits(model: sparsec.CompressedModel) -> float:
    return next(row.record.bits_per_weight for row in model.report.layers if row.record.name == "w0")


@pytest.mark.parametrize("algorithm", ["nearest", "joint", "descent"])
def test_groups_beat_one_codebook_with_more_bits(algorithm: str) -> None:
    feeds = None if algorithm == "nearest" else samples(kinds(), 24)
    others = samples(kinds(), 6, seed=4)
    groups = coded("cb2.r16", feeds, algorithm=algorithm, reorder=True)
    errors = {}
    for scheme in ("cb2", "cb2-c", "cb2.r16"):
        model = coded(scheme, feeds, algorithm=algorithm)
        errors[scheme] = distance(model.model, kinds(), others)
        assert scheme != "cb2-c" or bits(groups) < bits(model)
    ours = distance(groups.model, kinds(), others)
    assert ours < 0.8 * min(errors.values())
    notes = {row.record.name: row.record.notes for row in groups.report.layers}
    assert "rows reordered: codebooks fit with" in notes["w0"]
    again = sparsec.compress(kinds(), groups.recipe, calibration=feeds, verify=False)
    assert again.to_bytes() == groups.to_bytes()


def test_what_cannot_be_reordered_says_so() -> None:
    model = mobile()
    found = {choice.weight.name: choice for choice in choices(model, "cb2.r4", quantize={"reorder": True})}
    group_rows(model, list(found.values()))
    assert found["w2"].notes == ["rows keep their order: rows of a depthwise convolution belong to its inputs"]
    assert found["w4"].notes == ["rows keep their order: 'y' is an output of the model"]


@pytest.mark.parametrize("scheme", ["int4", "cb4", "cb4.i16"])
def test_rows_without_codebooks_of_their_own(scheme: str) -> None:
    with pytest.raises(RecipeError, match=r"quantize\.reorder is for codebooks of runs of rows"):
        coded(scheme, None, reorder=True)
