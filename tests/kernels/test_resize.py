"""Resize against onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.programs import lower_and_run, one_node_model, reference, refusals

TRANSFORMS = ["align_corners", "asymmetric", "half_pixel", "pytorch_half_pixel"]


def _check(shape: tuple[int, ...], spatial: tuple[float, ...], by_size: bool = False, **attributes: str) -> None:
    feed = {"x": np.random.default_rng().normal(size=shape).astype(np.float32), "roi": np.zeros(0, np.float32)}
    if by_size:
        feed |= {"scales": np.zeros(0, np.float32), "sizes": np.array([*shape[:2], *spatial], np.int64)}
    else:
        feed["scales"] = np.array([1, 1, *spatial], np.float32)
    model = one_node_model("Resize", feed, ["roi", "scales", "sizes"], attributes, opset=18)
    (wanted,) = reference(model, feed)
    (found,) = lower_and_run(model, feed)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_scales(mode: str, transform: str) -> None:
    _check((2, 17, 6, 5), (2.0, 1.5), mode=mode, coordinate_transformation_mode=transform)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 3, 7, 9), (1, 24, 4, 11)])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_sizes(mode: str, shape: tuple[int, ...]) -> None:
    _check(shape, (5, 13), by_size=True, mode=mode)


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_nearest_rounding(rounding: str) -> None:
    _check((1, 5, 9, 8), (1.5, 0.5), mode="nearest", nearest_mode=rounding, coordinate_transformation_mode="asymmetric")


def test_one_dimension() -> None:
    _check((2, 6, 10), (3.0,), mode="nearest")


def test_refuses_cubic() -> None:
    feed = {
        "x": np.zeros((1, 2, 4, 4), np.float32),
        "roi": np.zeros(0, np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    assert "cubic" in refusals(one_node_model("Resize", feed, ["roi", "scales"], {"mode": "cubic"}))[0]
