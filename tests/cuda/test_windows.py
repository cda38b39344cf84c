"""Depthwise convolution and pooling on a GPU: runs of channels and single ones, every kind of window."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from sparsec.codegen.lower import lower
from sparsec.passes import compress
from sparsec.recipe import load_recipe
from sparsec.target import resolve_target
from tests.cuda.programs import lower_and_simulate
from tests.kernels.nodes import node_model
from tests.kernels.programs import reference

Array = np.ndarray[Any, Any]


def normal(*shape: int) -> Array:
    return np.random.default_rng().normal(size=shape).astype(np.float32)


def depthwise(
    shape: tuple[int, ...], kernel: tuple[int, ...], recipe: str | None, **attributes: Any
) -> tuple[Any, Array]:
    inputs = {"x": normal(*shape), "w": normal(shape[1], 1, *kernel), "b": normal(shape[1])}
    model = node_model("Conv", inputs, ("w", "b"), group=shape[1], **attributes)
    return compress(model, load_recipe(recipe)).model, inputs["x"]


@pytest.mark.parametrize("target", ["cuda", "cuda:bf16"])
@pytest.mark.parametrize(
    ("shape", "kernel", "attributes"),
    [
        ((2, 16, 7, 9), (3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 1]}),
        ((1, 5, 8, 6), (2, 3), {"pads": [0, 2, 1, 0], "dilations": [2, 1]}),
        ((3, 8, 20), (5,), {"pads": [4, 0]}),
    ],
)
def test_depthwise(shape: tuple[int, ...], kernel: tuple[int, ...], attributes: dict[str, Any], target: str) -> None:
    model, x = depthwise(shape, kernel, None, **attributes)
    assert Counter(s.spec.family for s in lower(model, resolve_target(target), "m").steps)["cuda.depthwise"] == 1
    wanted, found = reference(model, {"x": x})[0], lower_and_simulate(model, {"x": x}, target)[0]
    assert np.abs(found - wanted).max() <= (2e-3 if target == "cuda" else 1.2e-2) * np.abs(wanted).max()


def test_a_coded_depthwise_weight_is_decoded() -> None:
    model, x = depthwise((1, 128, 6, 6), (3, 3), "int8", pads=[1, 1, 1, 1])
    program = lower(model, resolve_target("cuda"), "m")
    (decision,) = program.decisions.values()
    assert decision.decoded
    assert str(decision) == "GPU kernels of depthwise convolutions multiply float32, not int8"
    wanted, found = reference(model, {"x": x})[0], lower_and_simulate(model, {"x": x})[0]
    assert np.abs(found - wanted).max() <= 2e-3 * np.abs(wanted).max()


@pytest.mark.parametrize("channels", [16, 3])
@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("MaxPool", {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
        ("MaxPool", {"kernel_shape": [2, 2], "dilations": [2, 3], "ceil_mode": 1, "strides": [2, 2]}),
        ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        (
            "AveragePool",
            {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 0, 0], "ceil_mode": 1, "count_include_pad": 1},
        ),
        ("AveragePool", {"kernel_shape": [7, 8]}),
        ("GlobalMaxPool", {}),
        ("GlobalAveragePool", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pool(op: str, attributes: dict[str, Any], channels: int) -> None:
    inputs = {"x": normal(2, channels, 7, 8)}
    model = node_model(op, inputs, **attributes)
    wanted, found = reference(model, inputs)[0], lower_and_simulate(model, inputs)[0]
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1e-3 * np.abs(wanted).max()  # the image is turned channels last in halves


def test_nan_stays_in_a_maximum() -> None:
    x = normal(1, 8, 4, 4)
    x[0, 3, 2, 2] = np.nan
    found = lower_and_simulate(node_model("MaxPool", {"x": x}, kernel_shape=[2, 2], strides=[2, 2]), {"x": x})[0]
    assert np.isnan(found[0, 3, 1, 1])
    assert np.isnan(found).sum() == 1
