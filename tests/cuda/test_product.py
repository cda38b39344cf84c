"""Products without tensor cores, of every kind of operand, in the simulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from sparsec.passes import compress
from sparsec.recipe import load_recipe
from tests.cuda.programs import lower_and_simulate
from tests.kernels.nodes import node_model
from tests.kernels.programs import reference

Array = np.ndarray[Any, Any]


def normal(*shape: int) -> Array:
    return np.random.default_rng().normal(size=shape).astype(np.float32)


def compressed(model: ir.Model, recipe: str | None) -> ir.Model:
    return compress(model, load_recipe(recipe)).model


@pytest.mark.parametrize(
    "shapes", [((3, 5, 7), (3, 7, 4)), ((2, 1, 5, 7), (3, 7, 4)), ((5, 7), (2, 7, 9)), ((7,), (7, 3))]
)
def test_two_activations(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    inputs = {"a": normal(*shapes[0]), "b": normal(*shapes[1])}
    model = node_model("MatMul", inputs)
    np.testing.assert_allclose(lower_and_simulate(model, inputs)[0], reference(model, inputs)[0], rtol=0, atol=4e-3)


@pytest.mark.parametrize("target", ["cuda", "cuda:sm_80:bf16"])
@pytest.mark.parametrize(
    ("shape", "filters", "kernel", "attributes"),
    [
        ((2, 5, 9, 7), 6, (3, 3), {"pads": [1, 0, 1, 2], "strides": [2, 1]}),
        ((1, 4, 8, 8), 8, (2, 3), {"dilations": [2, 1], "group": 2}),
        ((1, 6, 11), 4, (3,), {"pads": [1, 1]}),
        ((3, 7, 1, 1), 5, (1, 1), {}),
    ],
)
def test_convolution(
    shape: tuple[int, ...], filters: int, kernel: tuple[int, ...], attributes: dict[str, Any], target: str
) -> None:
    channels = shape[1] // attributes.get("group", 1)
    inputs = {"x": normal(*shape), "w": normal(filters, channels, *kernel) / 4, "b": normal(filters)}
    model = node_model("Conv", inputs, ("w", "b"), **attributes)
    wanted = reference(model, inputs)[0]
    found = lower_and_simulate(compressed(model, None), {"x": inputs["x"]}, target)[0]
    bound = 1e-2 if "bf16" in target else 1.5e-3
    assert np.abs(found - wanted).max() <= bound * np.abs(wanted).max()


@pytest.mark.parametrize("scheme", ["cb4-g32", "int8", "vq2d4", "s2:4-nf4-g32", "s16x1@50-cb4-g32", "ternary"])
def test_any_scheme_is_decoded(scheme: str) -> None:
    rows, cols = 24, 64
    inputs = {"x": normal(3, cols), "w": normal(cols, rows)}
    graph = compressed(node_model("MatMul", inputs, ("w",)), scheme)
    feed = {"x": inputs["x"]}
    wanted = reference(graph, feed)[0]
    found = lower_and_simulate(graph, feed)[0]
    assert np.abs(found - wanted).max() <= 1.5e-3 * np.abs(wanted).max()
