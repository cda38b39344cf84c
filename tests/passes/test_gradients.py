"""Gradients of a loss in the pipeline: gblm in a recipe keeps what the outputs feel, where Wanda cannot know."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import sparsec
from sparsec.errors import CalibrationError, RecipeError, UnsupportedOpError
from sparsec.passes.differentiable.squares import gradient_squares
from tests.passes.calibrate.networks import chain, distance, pixels_network, samples, with_tensors


def lopsided(seed: int) -> ir.Model:
    """x -> 16 hidden -> y, where y hardly reads the hidden values of rows with large weights."""
    rng = np.random.default_rng(seed)
    loud = np.where(np.arange(16) < 8, 4.0, 1.0)
    first = rng.standard_normal((16, 24)) * loud[:, None]
    second = rng.standard_normal((6, 16)) / 16 * np.where(np.arange(16) < 8, 0.01, 1.0)
    return chain(first, second)


def pruned(
    model: ir.Model, algorithm: str, feeds: list[dict[str, np.ndarray]], **options: object
) -> sparsec.CompressedModel:
    # Blocks of whole columns of rows: rows compete for what is kept.
    rule = {
        "targets": "w0", "scheme": "s16x1@50", "sparsify": {"algorithm": algorithm}, "quantize": {"algorithm": "nearest"},
    }  # fmt: skip
    recipe = {"version": 1, "rules": [rule], "min_elements": 1, "calibrate": {"biases": False}}
    return sparsec.compress(model, recipe, calibration=feeds, verify=False, jobs=1, **options)


def test_gblm_beats_wanda_where_gradients_matter() -> None:
    """The blocks of inputs to keep differ between loud rows, which nobody reads, and quiet ones, which count."""
    model = lopsided(3)
    feeds, unseen = samples(model, 24, 1), samples(model, 24, 2)
    wanda, gblm = (distance(pruned(model, name, feeds).model, model, unseen) for name in ("wanda", "gblm"))
    assert gblm < 0.8 * wanda


def test_squares_are_those_of_the_jacobian() -> None:
    """A linear network and independent directions: the mean square is |dy/dw|^2, here x^2 summed over tokens times the row of W2."""
    rng = np.random.default_rng()
    model = with_tensors(
        onnx.parser.parse_model(
            """<ir_version: 10, opset_import: ["" : 20]>
            net (float[1, 1, 5] x) => (float[1, 1, 3] y) { h = MatMul (x, a) y = MatMul (h, b) }"""
        ),
        {"a": rng.standard_normal((5, 4)), "b": rng.standard_normal((4, 3))},
    )
    x = rng.standard_normal((1, 1, 5)).astype(np.float32)
    found = gradient_squares(model, ["a"], [{"x": x}] * 3000)["a"]
    second = model.graph.initializers["b"].const_value
    assert second is not None
    wanted = np.outer(np.square(x), np.square(second.numpy().astype(np.float64)).sum(1))
    np.testing.assert_allclose(found, wanted, rtol=0.25)


def test_labels_make_the_loss() -> None:
    model = chain(np.random.default_rng(1).standard_normal((5, 6)), tokens=2)
    feeds = samples(model, 3)
    labels = np.array([[0, 4], [1, 1], [3, 2]])
    weight = model.graph.initializers["w0"].const_value
    assert weight is not None
    total = np.zeros((6, 5))
    for feed, chosen in zip(feeds, labels, strict=True):
        rows = feed["x"][0].astype(np.float64)
        scores = np.exp(rows @ weight.numpy())
        slope = (scores / scores.sum(1, keepdims=True) - np.eye(5)[chosen]) / 2
        total += np.square(rows.T @ slope) / 3
    np.testing.assert_allclose(gradient_squares(model, ["w0"], feeds, labels)["w0"], total, rtol=1e-3, atol=1e-7)
    with pytest.raises(CalibrationError, match="takes 2 whole numbers below 5"):
        gradient_squares(model, ["w0"], feeds, labels + 1)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lopsided(3)
    feeds = samples(model, 4)
    recipe = {"version": 1, "rules": [{"scheme": "s50", "sparsify": {"algorithm": "gblm"}}], "min_elements": 1}
    with pytest.raises(RecipeError, match="'gblm' needs calibration inputs"):
        sparsec.compress(model, recipe, verify=False)
    other = lopsided(3)
    next(node for node in other.graph if node.op_type == "Relu").op_type = "Hardmax"
    with pytest.raises(UnsupportedOpError, match="Hardmax"):
        sparsec.compress(other, recipe, calibration=feeds, verify=False)
    monkeypatch.setattr("sparsec.passes.gradients.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'sparsec\[torch\]'"):
        sparsec.compress(model, recipe, calibration=feeds, verify=False)


def test_flexround_in_a_recipe() -> None:
    ratios = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        model = chain(rng.standard_normal((24, 32)) / 5, rng.standard_normal((6, 24)) / 5)
        feeds, unseen = samples(model, 24, 2 * seed + 1), samples(model, 24, 2 * seed + 2)

        def off(algorithm: str, model: ir.Model = model, feeds: Any = feeds, unseen: Any = unseen) -> float:
            rule = {"scheme": "int3", "quantize": {"algorithm": algorithm}}
            recipe = {"version": 1, "rules": [rule], "min_elements": 1}
            return distance(
                sparsec.compress(model, recipe, calibration=feeds, verify=False, jobs=1).model, model, unseen
            )

        ratios.append(off("flexround") / off("nearest"))
    assert np.mean(ratios) < 0.75
    with pytest.raises(RecipeError, match="'flexround' rounds single values"):
        sparsec.recipe.load_recipe(
            {"version": 1, "rules": [{"scheme": "vq2d4", "quantize": {"algorithm": "flexround"}}]}
        )


def test_any_number_of_threads_gives_the_same_bytes() -> None:
    model = pixels_network(np.random.default_rng())
    feeds = samples(model, 8)
    found = [gradient_squares(model, ["w0", "w1"], feeds, threads=threads) for threads in (1, 3, 4)]
    for other in found[1:]:
        assert all(other[name].tobytes() == square.tobytes() for name, square in found[0].items())
