"""The recipe's section `structure` through the whole pipeline."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import sparsec
from bench.zoo import MissingData, get
from sparsec.errors import RecipeError
from sparsec.inspection import verify_files
from sparsec.passes import Calibration, Compressed, compress
from sparsec.recipe import load_recipe
from sparsec.reference import Reference
from tests.models import DIGITS, accuracy, digits, held_out
from tests.passes.structure.networks import Array, branching, feeds, residual, transformer


def shrink(model: ir.Model, samples: list[dict[str, Array]] | None = None, **structure: Any) -> Compressed:
    recipe = {"version": 1, "structure": structure}
    with ThreadPoolExecutor(2) as executor:
        return compress(model, recipe, calibration=Calibration(samples, executor) if samples else None)


def error(made: ir.Model, model: ir.Model, samples: list[dict[str, Array]]) -> float:
    one, other = Reference(made), Reference(model)
    return float(np.mean([np.square(one.run(s)["y"] - other.run(s)["y"]).mean() for s in samples]))


def weight_elements(model: ir.Model) -> int:
    return sum(v.const_value.size for v in model.graph.initializers.values() if v.const_value is not None)


def test_magnitude_needs_no_data() -> None:
    model = residual()
    made = shrink(model, channels="30%", score="magnitude")
    found = {r.name: (r.units, r.removed) for r in made.removed if r.removed}
    assert found == {"w0": (7, 2), "w1": (9, 3), "w3": (6, 2), "w4": (4, 1)}
    assert {r.name for r in made.removed if "output" in r.reason} == {"w5"}
    assert weight_elements(made.model) < 0.75 * weight_elements(model)
    assert (
        load_recipe(made.effective_recipe).structure
        == load_recipe({"structure": {"channels": 0.3, "score": "magnitude"}}).structure
    )


def test_flap_beats_magnitude_where_inputs_fluctuate() -> None:
    """Half of the channels are large and nearly constant: magnitude keeps them, FLAP gives them to the biases."""
    model = transformer(tied=False, blocks=1)
    rng = np.random.default_rng(0)
    for name, scale in (("qw0", 1.0), ("uw0", 0.02)):
        value = model.graph.initializers[name]
        assert value.const_value is not None
        array = value.const_value.numpy().copy()
        array[:, : array.shape[1] // 2] *= scale
        value.const_value = ir.tensor(array, name=name)
    down = model.graph.initializers["dw0"]
    assert down.const_value is not None
    array = down.const_value.numpy().copy()
    array[:6] *= 3 + rng.random((6, 1)).astype(np.float32)
    down.const_value = ir.tensor(array, name="dw0")
    samples, others = feeds(model, 30), feeds(model, 10, seed=7)
    errors = {
        score: error(shrink(model, samples, channels="46%", score=score, compensate="bias").model, model, others)
        for score in ("magnitude", "flap")
    }
    assert errors["flap"] < 0.5 * errors["magnitude"]


def test_heads_and_channels_of_a_transformer() -> None:
    model = transformer()
    samples = feeds(model, 12)
    made = shrink(model, samples, heads="33%", channels="25%")
    assert {(r.kind, r.name): r.removed for r in made.removed if r.removed} == {
        ("heads", "qw0"): 1, ("heads", "qw1"): 1, ("channels", "uw0"): 3, ("channels", "uw1"): 3,
    }  # fmt: skip
    assert [v.name for v in made.model.graph.initializers.values() if v.name == "table"] == ["table"]  # still tied


@pytest.mark.parametrize("network", [residual, branching, transformer])
def test_schemes_apply_to_what_remains(network: Any) -> None:
    model = network()
    recipe = {
        "version": 1,
        "structure": {"channels": "30%", "heads": "30%"},
        "rules": [{"targets": "*", "scheme": "int4", "optional": True}],
        "min_elements": 8,
    }
    samples = feeds(model, 6)
    compiled = sparsec.compile(model, recipe=recipe, calibration=samples, jobs=1)
    assert compiled.report.verification is not None
    assert sum(r.removed for r in compiled.report.removed) > 2
    assert {row.record.scheme for row in compiled.report.layers} == {"int4"}
    again = sparsec.compress(model, compiled.recipe, calibration=samples, jobs=2, verify=False)
    first = sparsec.compress(model, recipe, calibration=samples, jobs=1, verify=False)
    assert first.to_bytes() == again.to_bytes()
    assert "REASON" in str(first.report)
    assert first.report.to_json()["removed"]


@pytest.mark.parametrize("post", [False, True])
def test_everything_at_once(post: bool) -> None:
    """All of the section, schemes on what is left, compiled and verified; the effective recipe gives the same bytes."""
    model = transformer(post=post, blocks=3)
    recipe = {
        "structure": {
            "zero_channels": True,
            "depth": 1,
            "channels": 0.2,
            "heads": 0.34,
            "rms_norm": True,
            "slice": "25%",
        },
        "rules": [{"targets": "MatMul", "scheme": "int8", "optional": True}],
        "min_elements": 8,
    }
    samples = feeds(model, 8)
    compiled = sparsec.compile(model, recipe=recipe, calibration=samples, jobs=1)
    assert compiled.report.verification is not None
    kinds = {r.kind for r in compiled.report.removed if r.removed}
    assert kinds >= {"branch", "channels", "heads", "hidden width"}
    first = sparsec.compress(model, recipe, calibration=samples, jobs=1, verify=False)
    again = sparsec.compress(model, compiled.recipe, calibration=samples, jobs=3, verify=False)
    assert first.to_bytes() == again.to_bytes()


def test_verify_knows_that_units_are_gone(tmp_path: Path) -> None:
    """Without schemes the result is still another function than the original."""
    model, small = tmp_path / "model.onnx", tmp_path / "small.onnx"
    ir.save(residual(), model)
    made = sparsec.compress(model, {"structure": {"channels": "30%", "score": "magnitude"}})
    made.save(small)
    found = verify_files(model, small)
    assert found.bound is None
    assert found.error > 1e-3
    compiled = sparsec.compile(model, recipe={"structure": {"channels": "30%", "score": "magnitude"}})
    compiled.save(tmp_path / "bundle")
    assert verify_files(model, tmp_path / "bundle").bound is None
    assert verify_files(small, tmp_path / "bundle").error < 1e-4


def test_ignored_weights_keep_their_outputs() -> None:
    made = shrink(residual(), channels="50%", ignore=["w1", "re:w3"])
    reasons = {r.name: r.reason for r in made.removed}
    assert "ignored by the recipe (w1)" in reasons["w1"]
    assert "re:w3" in reasons["w3"]
    assert {r.name for r in made.removed if r.removed} == {"w0", "w4"}
    with pytest.raises(RecipeError, match=r"structure.ignore: selector 'w9' matches none"):
        shrink(residual(), channels="50%", ignore="w9")


def test_global_shares_differ_between_layers() -> None:
    made = shrink(transformer(), feeds(transformer(), 6), channels="50%", scope="global")
    counts = [r.removed for r in made.removed if r.kind == "channels" and r.units]
    assert sum(counts) == pytest.approx(13, abs=1)


def test_depth_counts_what_it_finds() -> None:
    model = transformer()
    made = shrink(model, feeds(model, 6), depth=3, branches="attention")
    found = [(r.kind, r.name, r.removed) for r in made.removed]
    assert sorted(found[:2]) == [("branch", "qw0", 1), ("branch", "qw1", 1)]
    assert "asked for 3; the model has 2 branches of the kind attention" in made.removed[2].reason
    one = shrink(model, feeds(model, 6), depth=1, ignore="vw0", branches="attention")
    assert [r.name for r in one.removed] == ["qw1"]


def test_layers_behind_a_bypass_are_fitted() -> None:
    model = transformer(tied=False)
    samples, others = feeds(model, 40), feeds(model, 10, seed=9)
    errors = [
        error(shrink(model, samples, depth=1, compensate=how).model, model, others) for how in ("none", "weights")
    ]
    assert errors[1] < 0.9 * errors[0]


def test_exact_removal_alone_fits_nothing() -> None:
    model = residual()
    value = model.graph.initializers["w2"]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array[:, 3] = 0
    value.const_value = ir.tensor(array, name="w2")
    made = shrink(model, feeds(model, 4), zero_channels=True)
    assert [(r.name, r.removed) for r in made.removed] == [("w1", 1)]
    assert error(made.model, model, feeds(model, 3)) < 1e-10


def test_nothing_to_remove_is_said() -> None:
    made = shrink(residual(), heads="50%", score="magnitude")
    assert [(r.kind, r.removed, r.reason) for r in made.removed] == [("heads", 0, "the model has no heads that can go")]


@pytest.mark.parametrize(
    ("structure", "said"),
    [
        ({"channels": "100%"}, "structure.channels: '100%' is no share"),
        ({"channels": 30}, "structure.channels: 30 is no share"),
        ({"heads": -0.1}, "structure.heads: -0.1 is no share"),
        ({"heads": "x%"}, "structure.heads: 'x%' is no share"),
        ({"depth": -1}, "structure.depth"),
        ({"depth": 1}, "'depth' needs calibration inputs"),
        ({"chanels": 0.1}, "did you mean 'channels'"),
        ({"channels": 0.1, "score": "flap"}, "'score: flap' needs calibration inputs"),
        ({"channels": 0.1, "compensate": "weights"}, "'compensate: weights' needs calibration inputs"),
    ],
)
def test_bad_recipes(structure: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        shrink(residual(), **structure)
    assert said in str(caught.value)


def test_a_trained_network_keeps_its_accuracy() -> None:
    """A fifth of all channels of the digits network (residual, depthwise), 4-bit codebooks on the rest, compiled."""
    images, labels = held_out()
    train, _ = digits()[0]
    samples = [{"x": image[None].reshape(1, 1, 8, 8)} for image in train[:60]]
    recipe = {
        "structure": {"channels": "20%", "zero_channels": True},
        "rules": [{"targets": "*", "scheme": "cb4"}],
        "min_elements": 32,
    }
    shapes = {"x": [1, 1, 8, 8]}
    compiled = sparsec.compile(DIGITS, recipe=recipe, calibration=samples, input_shapes=shapes, jobs=1)
    found = np.concatenate([next(iter(compiled.run({"x": image.reshape(1, 1, 8, 8)}).values())) for image in images])
    assert sum(r.removed for r in compiled.report.removed) >= 8
    assert accuracy(found, labels) > 0.93
    whole = sparsec.compile(
        DIGITS, recipe={"rules": recipe["rules"], "min_elements": 32}, input_shapes=shapes, verify=False, jobs=1
    )
    assert compiled.weights_bytes < 0.9 * whole.weights_bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kws", "resnet20", "squeezenet", "mobilenet_v2", "stories_prefill", "minilm"])
def test_zoo_models_compile_smaller(name: str) -> None:
    """What is left of real models is verified against its portable ONNX."""
    try:
        zoo = get(name)
    except MissingData as missing:
        pytest.skip(str(missing))
    recipe = {"structure": {"channels": "25%", "heads": "25%", "zero_channels": True, "score": "magnitude"}}
    program = zoo.compile(recipe, verify=True, inputs=zoo.random_inputs(1), jobs=2)
    assert sum(r.removed for r in program.report.removed) > 20
