"""TopK and CumSum against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.kernels.nodes import node_check, node_refusal


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize(("axis", "k"), [(-1, 1), (-1, 7), (1, 3), (0, 2)])
def test_topk(dtype: Any, largest: int, axis: int, k: int) -> None:
    x = (np.random.default_rng(k).normal(size=(3, 5, 7)) * 3).astype(dtype)  # integers: many equal elements
    node_check("TopK", {"x": x, "k": np.array([k])}, ["k"], outputs=2, axis=axis, largest=largest)


def test_topk_of_long_rows() -> None:
    x = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)
    node_check("TopK", {"x": x, "k": np.array([5])}, ["k"], outputs=["v", "i"])


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_cumsum(dtype: Any, exclusive: int, reverse: int, axis: int) -> None:
    x = (np.random.default_rng(1).normal(size=(3, 4, 17)) * 9).astype(dtype)
    inputs = {"x": x, "a": np.array(axis)}
    node_check("CumSum", inputs, ["a"], exclusive=exclusive, reverse=reverse, rtol=1e-5, atol=1e-5)


def test_cumsum_refusal() -> None:
    assert "run time" in node_refusal("CumSum", {"x": np.ones(3, np.float32), "a": np.array(0)})
