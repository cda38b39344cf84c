"""Layer, RMS and instance normalisation against onnxruntime and numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.programs import lower_and_run, one_node_model, reference


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng([*shape, 9]).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 17), -1), ((2, 5, 384), -1), ((2, 3, 4, 5), 2), ((7, 1), -1)], ids=str
)
def test_layer_norm(shape: tuple[int, ...], axis: int, bias: bool) -> None:
    wide = shape[axis:]
    feed = {"x": _normal(*shape), "s": _normal(*wide), **({"b": _normal(*wide)} if bias else {})}
    model = one_node_model("LayerNormalization", feed, list(feed)[1:], {"axis": axis, "epsilon": 1e-5})
    (found,), (wanted,) = lower_and_run(model, feed), reference(model, feed)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=3e-6)


def test_layer_norm_of_a_large_mean_is_stable() -> None:
    feed = {"x": _normal(4, 96) + np.float32(1000), "s": np.ones(96, np.float32)}
    (found,) = lower_and_run(one_node_model("LayerNormalization", feed, ["s"]), feed)
    x = feed["x"].astype(np.float64)
    wanted = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_rms_norm() -> None:
    feed = {"x": _normal(5, 67), "s": _normal(67)}
    (found,) = lower_and_run(one_node_model("RMSNormalization", feed, ["s"], {"epsilon": 1e-6}, opset=23), feed)
    x = feed["x"].astype(np.float64)
    wanted = x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-6) * feed["s"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_instance_norm() -> None:
    feed = {"x": _normal(2, 3, 7, 5), "s": _normal(3), "b": _normal(3)}
    model = one_node_model("InstanceNormalization", feed, ["s", "b"])
    (found,), (wanted,) = lower_and_run(model, feed), reference(model, feed)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=3e-6)
