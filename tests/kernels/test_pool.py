"""Pooling against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec.codegen.context import Layout
from sparsec.target import NAMED, Target
from tests.kernels.nodes import node_check
from tests.kernels.programs import lower_and_run, one_node_model, reference, refusals

LAYOUTS = pytest.mark.parametrize("layout", ["cl", "row"])


def _check(op: str, shape: tuple[int, ...], layout: Layout, target: Target | None = None, **attributes: Any) -> None:
    feed = {"x": np.random.default_rng().normal(size=shape).astype(np.float32)}
    model = one_node_model(op, feed, [], attributes)
    (wanted,) = reference(model, feed)
    (found,) = lower_and_run(model, feed, target, layout)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-6)


WINDOWS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((1, 1, 1, 1), {"kernel_shape": [1, 1]}),
    ((1, 3, 8, 8), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ((2, 17, 13, 21), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((1, 24, 10, 7), {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 0, 0, 1], "ceil_mode": 1}),
    ((1, 64, 7, 7), {"kernel_shape": [7, 7]}),
    ((1, 40, 9, 9), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "dilations": [2, 1]}),
    ((2, 5, 31), {"kernel_shape": [4], "strides": [3], "pads": [1, 2], "ceil_mode": 1}),
    ((1, 6, 112, 90), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((1, 20, 12, 12), {"kernel_shape": [3, 3], "auto_pad": "SAME_LOWER", "strides": [2, 2]}),
]


@LAYOUTS
@pytest.mark.parametrize(("shape", "attributes"), WINDOWS)
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "AveragePool+pads"])
def test_windows(op: str, shape: tuple[int, ...], attributes: dict[str, Any], layout: Layout) -> None:
    extra = {"count_include_pad": 1} if op.endswith("+pads") else {}
    _check(op.removesuffix("+pads"), shape, layout, **attributes, **extra)


@LAYOUTS
@pytest.mark.parametrize("target", ["x86-avx2", "arm"])
def test_other_targets(target: str, layout: Layout) -> None:
    _check("MaxPool", (1, 5, 13, 21), layout, NAMED[target], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    _check("AveragePool", (1, 9, 6, 7), layout, NAMED[target], kernel_shape=[2, 3], pads=[1, 1, 0, 0])


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 3, 5, 7), (1, 17, 4, 4), (3, 150, 7, 7), (2, 24, 33), (1, 9, 2, 3, 4)]
)
@pytest.mark.parametrize("op", ["GlobalMaxPool", "GlobalAveragePool"])
@pytest.mark.parametrize("channels_last", [["x"], []])
def test_global(op: str, shape: tuple[int, ...], channels_last: list[str]) -> None:
    feed = {"x": np.random.default_rng().normal(size=shape).astype(np.float32)}
    node_check(op, feed, (), channels_last, rtol=1e-5, atol=2e-6, steps=1)


def test_refuses_other_types() -> None:
    feed = {"x": np.zeros((1, 2, 4, 4), np.float64)}
    assert "float64" in refusals(one_node_model("MaxPool", feed, [], {"kernel_shape": [2, 2]}))[0]
