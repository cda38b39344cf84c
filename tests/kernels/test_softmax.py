"""Softmax and LogSoftmax along every axis against onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.programs import lower_and_run, one_node_model, reference


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 17), -1), ((2, 5, 128), 2), ((2, 5, 19), 1), ((4, 3, 2), 0), ((6, 1), 1)], ids=str
)
def test_axes(op: str, shape: tuple[int, ...], axis: int) -> None:
    feed = {"x": (np.random.default_rng(shape).normal(size=shape) * 20).astype(np.float32)}
    model = one_node_model(op, feed, attributes={"axis": axis})
    (found,), (wanted,) = lower_and_run(model, feed), reference(model, feed)
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-6)


def test_masked_positions_get_no_weight() -> None:
    x = np.random.default_rng(1).normal(size=(4, 33)).astype(np.float32)
    x[:, 20:] = -np.inf
    (found,) = lower_and_run(one_node_model("Softmax", {"x": x}), {"x": x})
    assert (found[:, 20:] == 0).all()
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)
