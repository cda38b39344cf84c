"""Moments of inputs against float64, with means far from 0; inputs that do not vary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sparsec
from sparsec.passes.statistics import Moments, Statistics
from tests.passes.calibrate.networks import distance, image_network, samples, text_network

Array = np.ndarray[Any, Any]


def gathered(batches: list[tuple[Array, Array, Array]], *, centred: bool) -> Statistics:
    moments = Moments(batches[0][0].shape[1], with_dense=True)
    for x, dense, residual in batches:
        moments.add(x, dense, residual)
    return moments.statistics(centred=centred)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("offset", [0.0, 3.0, 1000.0])
def test_moments(offset: float, centred: bool) -> None:
    rng = np.random.default_rng()
    batches = []
    for rows in (1, 0, 37, 5):
        x = (offset + rng.standard_normal((rows, 11))).astype(np.float32)
        dense = (x + 0.1 * rng.standard_normal(x.shape)).astype(np.float32)
        batches.append((x, dense, rng.standard_normal((rows, 4)).astype(np.float32)))
    found = gathered(batches, centred=centred)
    x, dense, residual = (np.concatenate(parts).astype(np.float64) for parts in zip(*batches, strict=True))
    off, missing = x - (x.mean(0) if centred else 0), dense - x
    if centred:
        missing, residual = missing - missing.mean(0), residual - residual.mean(0)
    for name, left in (("second_moment", off), ("cross", missing), ("residual", residual)):
        wanted = left.T @ off / len(x)
        np.testing.assert_allclose(getattr(found, name), wanted, rtol=0, atol=1e-5 * max(1.0, np.abs(wanted).max()))
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.mean_dense, dense.mean(0), rtol=1e-6, atol=1e-6)
    assert found.samples == len(x)


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_inputs_that_do_not_vary_have_no_variance(rows: int) -> None:
    constant = np.random.default_rng().standard_normal(9).astype(np.float32) * 100
    moments = Moments(9, with_dense=False)
    for _ in range(3):
        moments.add(np.tile(constant, (rows, 1)))
    found = moments.statistics(centred=True)
    assert not found.second_moment.any()
    np.testing.assert_array_equal(found.mean, constant)


@pytest.mark.parametrize("scheme", ["int3", "s50", "s2:4-cb3-c", "vq2d4-c", "s16x1@50-int4"])
@pytest.mark.parametrize("kind", ["one", "equal", "zero", "constant"])
@pytest.mark.parametrize("network", [image_network, text_network])
def test_calibration_inputs_that_say_little(network: Any, kind: str, scheme: str) -> None:
    """Whatever they are, a model comes out, and it is right about them."""
    model = network()
    feeds = samples(model, 1)
    if kind == "equal":
        feeds = feeds * 5
    elif kind in ("zero", "constant"):
        value = 0 if kind == "zero" else 1
        feeds = [{name: np.full_like(array, value) for name, array in feed.items()} for feed in feeds * 3]
    recipe = {"rules": [{"scheme": scheme, "optional": True}], "min_elements": 0}
    made = sparsec.compress(model, recipe, calibration=feeds).model
    assert distance(model, made, feeds) < 1
