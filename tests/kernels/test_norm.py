"""Layer, RMS and instance normalisation against onnxruntime and numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.target import NAMED, Target, host_target
from tests.kernels.harness import run_kernel
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


@pytest.mark.parametrize("target", [host_target(), NAMED["x86-avx2"], NAMED["arm"]], ids=lambda t: f"{t.name}-{t.arch}")
@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize(
    ("images", "n", "pixels"), [(1, 384, 128), (2, 7, 37), (3, 1, 5), (1, 66, 16), (2, 30, 129)], ids=str
)
def test_columns(images: int, n: int, pixels: int, centre: bool, target: Target) -> None:
    x, scale, bias = _normal(images, n, pixels) + np.float32(3), _normal(n), _normal(n, 1)[:, 0]
    p = {
        "images": images, "n": n, "pixels": pixels, "centre": centre, "epsilon": 1e-5, "scale": True, "bias": centre,
    }  # fmt: skip
    (found,) = run_kernel("norm_columns", p, [x, scale, bias][: 3 if centre else 2], target=target)
    wide = x.astype(np.float64)
    if centre:
        wide = wide - wide.mean(1, keepdims=True)
    wanted = wide / np.sqrt((wide * wide).mean(1, keepdims=True) + 1e-5) * scale[:, None]
    wanted += bias[:, None] if centre else 0
    np.testing.assert_allclose(found.reshape(x.shape), wanted, rtol=1e-4, atol=5e-6)
