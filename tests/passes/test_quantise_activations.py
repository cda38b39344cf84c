"""Which products read int8, and the float twin that bounds their verification."""

from __future__ import annotations

import numpy as np
import pytest

import sparsec
from sparsec import samples
from sparsec.errors import RecipeError
from sparsec.formats import Scheme
from sparsec.frontend import load_model
from sparsec.passes import compress, float_activations
from sparsec.passes.quantise_activations import choose_activations
from sparsec.recipe import Rule, load_recipe
from sparsec.reference import Reference
from tests.models import DIGITS_MLP as MLP

SHAPES = {"N": 3}
RECIPE = {"rules": [{"targets": "*", "scheme": "cb4-g32", "activations": "int8"}], "min_elements": 0}


@pytest.mark.parametrize(
    ("scheme", "cols", "wanted"),
    [
        ("cb4-g32", 64, "int8-g32"), ("cb4-g32", 65, "int8"), ("cb4", 64, "int8"), ("int4-g256", 512, "int8"),
        ("s16x1@50-cb4-g32", 64, "int8"), ("fp16", 64, ""), ("cb6-g32", 64, ""),
    ],
)  # fmt: skip
def test_int8_follows_the_groups_of_the_weight(scheme: str, cols: int, wanted: str) -> None:
    found, why = choose_activations(Rule(scheme=scheme, activations="int8"), Scheme.parse(scheme), cols)
    assert found == wanted
    assert bool(why) == (wanted == "")


def test_auto_stays_within_its_error_budget() -> None:
    scheme = Scheme.parse("cb4-g32")
    choose = lambda error, cols: choose_activations(Rule(scheme="cb4-g32", activation_error=error), scheme, cols)[0]  # noqa: E731
    assert choose_activations(Rule(scheme="cb4-g32"), scheme, 64)[0] == ""
    assert [choose(0.01, 64), choose(0.01, 65), choose(0.1, 65)] == ["int8-g32", "", "int8"]


def test_expected_error_is_that_of_normal_activations() -> None:
    """The budget's estimate against what rounding groups of 32 does."""
    from sparsec import int8
    from sparsec.passes import quantise_activations as module

    x = np.random.default_rng(0).standard_normal((4096, 32)).astype(np.float32)
    error = float(np.sqrt(((int8.quantised(x, 32) - x) ** 2).mean()))
    assert error == pytest.approx(module._ERROR_OF_GROUP, rel=0.1)


def test_auto_admits_int16_for_sparse_floats() -> None:
    choose = lambda error: choose_activations(Rule(scheme="s90", activation_error=error), Scheme.parse("s90"), 64)  # noqa: E731
    assert [choose(error)[0] for error in (0.001, 0.002, 0.003, 0.01)] == ["", "", "int16", "int16"]


def test_expected_error_of_int16_is_that_of_rows_with_outliers() -> None:
    from sparsec import fixed
    from sparsec.passes import quantise_activations as module

    rng, n = np.random.default_rng(0), fixed.MOST_WEIGHTS
    x, w = rng.standard_normal((2000, n)), rng.standard_normal((50, n))
    x[:, 0] = 10.0  # of the chunk, but no input of these weights
    w[:, 0] = 0.0
    step, steps = 10.0 / fixed.LARGEST, fixed.weight_steps(np.abs(w).sum(1)[None], np.full((1, 50), n))
    products = np.rint(x / step)[:, None] * np.rint(w / steps[:, None]) / 2**15
    found = np.floor(products + 0.5).sum(2) * 2**15 * step * steps
    exact = x @ w.T
    error = float(np.sqrt(((found - exact) ** 2).mean() / (exact**2).mean()))
    assert error == pytest.approx(module._ERROR_OF_FIXED, rel=0.1)


def test_recipe_word() -> None:
    assert [r.activations for r in load_recipe("cb4-g32 x int8").rules] == ["int8"]
    assert [r.activations for r in load_recipe("cb4-g32 x fp32").rules] == ["fp32"]
    assert [r.activations for r in load_recipe("cb4-g32").rules] == ["auto"]
    assert [r.activations for r in load_recipe("s90 x int16").rules] == ["int16"]
    with pytest.raises(RecipeError, match="activations are fp32, int8, int8-static or int16"):
        load_recipe("cb4-g32 x int4")


def test_graph_and_its_float_twin() -> None:
    source = load_model(MLP, None, SHAPES)
    made = compress(source, RECIPE)
    products = [node for node in made.model.graph if node.op_type == "MatMul" and node.domain == "sparsec"]
    assert products
    assert all(node.attributes.get_string("activations", "") for node in products)
    assert all(layer.activations for layer in made.layers if layer.op in ("MatMul", "Gemm"))
    twin = float_activations(made.model)
    assert twin is not None
    assert float_activations(twin) is None
    feed = samples.random_inputs(source)
    plain = compress(source, {**RECIPE, "rules": [{"targets": "*", "scheme": "cb4-g32", "activations": "fp32"}]})
    (rounded,), (floating,), (wanted,) = (Reference(m).run(feed).values() for m in (made.model, twin, plain.model))
    np.testing.assert_array_equal(floating, wanted)
    assert 0 < np.abs(rounded - floating).max() < 0.1 * np.abs(floating).max()


@pytest.mark.parametrize(
    ("scheme", "wanted"),
    [("s50", "int16"), ("s2x1@60", "int16"), ("s2:4-int8", ""), ("s50-fp16", "int16"), ("s90-cb4", ""), ("fp16", "")],
)
def test_int16_is_for_sparse_floats(scheme: str, wanted: str) -> None:
    found, why = choose_activations(Rule(scheme=scheme, activations="int16"), Scheme.parse(scheme), 64)
    assert found == wanted
    assert bool(why) == (wanted == "")


def test_compiles_and_verifies() -> None:
    compiled = sparsec.compile(MLP, "cpu", RECIPE, input_shapes=SHAPES)
    assert compiled.report.steps["gemv"] >= 1
    check = compiled.report.verification
    assert check is not None
    assert check.passed
    assert check.bound is not None
    assert check.bound >= 1e-3
    assert "cb4-g32 x int8" in str(compiled.report)


def test_what_cannot_be_int8_says_why() -> None:
    rules = [{"targets": "*", "scheme": "cb6-g32", "activations": "int8"}]
    made = compress(load_model(MLP, None, SHAPES), {"rules": rules, "min_elements": 0})
    assert all("float32 activations: cb6" in layer.reason for layer in made.layers)
