"""N:M weights with reordered inputs, through the whole pipeline: more is kept, and the model computes what it did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import sparsec
from sparsec.errors import RecipeError
from sparsec.passes.equivalent.permute import permute_inputs
from sparsec.passes.sparsify.masks import mask_of_scores
from sparsec.reference import Reference
from sparsec.report import LayerRow
from tests.passes.calibrate.networks import chain, choices, distance, samples
from tests.passes.equivalent.networks import block, mobile


def uneven(seed: int = 0) -> ir.Model:
    """Inputs whose columns are large in runs of four: groups of 2:4 must drop large ones and keep small ones."""
    rng = np.random.default_rng(seed)
    columns = np.where(np.arange(24) % 8 < 4, 1.0, 0.05)
    return chain(rng.standard_normal((24, 10)) / 3, rng.standard_normal((13, 24)) * columns)


@pytest.mark.parametrize("network", [uneven, mobile, block])
def test_the_model_stays_as_it_is(network: Callable[[], ir.Model]) -> None:
    model, feeds = network(), samples(network(), 3)
    found = choices(model, "s2:4", sparsify={"permute": True})
    assert permute_inputs(model, found, {})
    assert all(choice.notes for choice in found)
    assert distance(model, network(), feeds) < 1e-9


def kept(model: ir.Model) -> float:
    """Share of the squares that a 2:4 mask keeps of the second weight."""
    square = np.square(choices(model, "s2:4")[1].weight.matrix())
    return float(square[mask_of_scores(square, choices(model, "s2:4")[1].scheme.structure)].sum() / square.sum())


def test_more_is_kept() -> None:
    model = uneven()
    before = kept(model)
    found = choices(model, "s2:4", sparsify={"permute": True})
    permute_inputs(model, found, {})
    assert kept(model) > 0.95 > 0.9 > before
    assert found[0].notes == ["inputs keep their order: 'x' is an input of the model"]
    assert found[1].notes == [
        f"inputs reordered: s2:4 keeps {100 * kept(model):.1f} % of the scores, {100 * before:.1f} % before"
    ]


def test_inputs_that_are_small_may_go() -> None:
    """Scores count what inputs are like: columns are alike, their inputs are not."""
    rng = np.random.default_rng(1)
    rows = np.where(np.arange(16) % 8 < 4, 1.0, 0.02)
    model = chain(rng.standard_normal((16, 10)) * rows[:, None], rng.standard_normal((9, 16)))
    feeds, others = samples(model, 8), samples(model, 4, seed=7)
    errors = []
    for permute in (True, False):
        found = sparsec.compress(model, recipe(permute, "wanda"), calibration=feeds, verify=False)
        errors.append(distance(found.model, model, others))
    assert errors[0] < 0.5 * errors[1]


def recipe(permute: bool, algorithm: str, scheme: str = "s2:4") -> dict[str, Any]:
    rules = [{"targets": "w0", "scheme": "fp32"}, {"targets": "w1", "scheme": scheme}]
    rules[1] |= {"sparsify": {"permute": permute, "algorithm": algorithm}, "quantize": {"algorithm": "nearest"}}
    return {"version": 1, "rules": rules, "min_elements": 0}


@pytest.mark.parametrize("algorithm", ["magnitude", "obs", "sparsegpt", "dsnot"])
@pytest.mark.parametrize("scheme", ["s2:4", "s2:4-int8"])
def test_pruned_with_less_error(algorithm: str, scheme: str) -> None:
    feeds = samples(uneven(), 12)
    given = None if algorithm == "magnitude" else feeds
    permuted, plain = (
        sparsec.compress(uneven(), recipe(p, algorithm, scheme), calibration=given, verify=False) for p in (True, False)
    )
    others = samples(uneven(), 4, seed=9)
    assert distance(permuted.model, uneven(), others) < 0.7 * distance(plain.model, uneven(), others)
    notes = {row.record.name: row.record.notes for row in permuted.report.layers}
    assert notes["w1"].startswith("inputs reordered: s2:4 keeps")
    assert notes["w1"] in str([row.to_json() for row in permuted.report.layers])
    assert [LayerRow.from_json(row.to_json()).record.notes for row in permuted.report.layers] == list(notes.values())
    assert notes["w1"] in str(permuted.report)
    assert "notes" not in str(plain.report)
    again = sparsec.compress(uneven(), permuted.recipe, calibration=given, verify=False)
    assert again.to_bytes() == permuted.to_bytes()


def test_kernels_run_it(tmp_path: Any) -> None:
    program = sparsec.compile(uneven(), recipe=recipe(True, "magnitude"))
    feed = samples(uneven(), 1)[0]
    portable = sparsec.compress(uneven(), recipe(True, "magnitude"), verify=False)
    np.testing.assert_allclose(program.run(feed)["y"], Reference(portable.model).run(feed)["y"], rtol=1e-3, atol=1e-4)


def test_kernels_of_convolutions_are_left_alone() -> None:
    model = mobile()
    found = {choice.weight.name: choice for choice in choices(model, "s2:4", sparsify={"permute": True})}
    permute_inputs(model, list(found.values()), {})
    assert found["w4"].notes == ["inputs keep their order: a channel has 16 inputs, groups lie within one"]
    assert found["w3"].notes[0].startswith("inputs reordered")


def test_only_groups_have_an_order() -> None:
    with pytest.raises(RecipeError, match="orders the inputs of N:M weights"):
        sparsec.compress(uneven(), {"rules": [{"scheme": "s50", "sparsify": {"permute": True}}]})
