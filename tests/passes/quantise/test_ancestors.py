"""Greedy path following and activation-aware scales: what they must beat, and what must beat them."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.formats import Scheme, decode, encode
from sparsec.passes.hessian import damped, error
from sparsec.passes.quantise import Part, compensate, follow_paths, input_scales, quantise
from tests.passes.quantise.problems import layer, loss, raw


@pytest.mark.parametrize("token", ["int4-g8", "int2", "uint3", "cb3-c", "ternary", "binary", "vq2d4"])
def test_paths_lie_between_rounding_and_quantise(token: str) -> None:
    weight, moment = layer(32, 96, np.random.default_rng(6))
    scheme = Scheme.parse(token)
    found = loss(weight, moment, follow_paths(weight, moment, scheme))
    assert found < loss(weight, moment, encode(weight, scheme))
    assert found > loss(weight, moment, quantise(weight, moment, scheme))


def test_paths_follow_the_papers_walk_over_samples() -> None:
    rng = np.random.default_rng()
    weight = rng.standard_normal((3, 12)).astype(np.float32)
    inputs = rng.standard_normal((40, 12))
    scheme = Scheme.parse("int4-t")
    found = follow_paths(weight, inputs.T @ inputs / 40, scheme, damping=0.0)
    assert found.scales is not None
    scale = float(found.scales[0, 0])
    for row, got in zip(weight.astype(np.float64), decode(found), strict=True):
        walk = np.zeros(40)
        for k, x in enumerate(inputs.T):
            wanted = x @ (walk + row[k] * x) / (x @ x)
            q = np.clip(np.rint(wanted / scale), -8, 7) * scale
            assert got[k] == pytest.approx(q, abs=1e-5)
            walk += (row[k] - q) * x


@pytest.mark.parametrize("token", ["int3-g16", "int4", "int3", "uint3-g16"])
def test_scaled_inputs_beat_plain_rounding_on_outlier_activations(token: str) -> None:
    rng = np.random.default_rng(8)
    weight = rng.standard_normal((48, 64)).astype(np.float32)
    inputs = rng.standard_normal((400, 64)) * np.where(np.arange(64) % 16 == 3, 30.0, 1.0)
    moment = inputs.T @ inputs / 400
    scheme, hessian = Scheme.parse(token), damped(moment)
    scales = input_scales([Part(weight, moment, scheme)])
    assert scales.dtype == np.float32
    assert scales.min() > 0
    counts, inside = hessian.diagonal(), moment / np.outer(scales, scales)
    scaled = decode(encode(weight * scales, scheme, None, counts / np.square(scales))) / scales
    assert error(weight, scaled, hessian) < 0.9 * error(weight, decode(encode(weight, scheme, None, counts)), hessian)
    # Scaled inputs help compensated rounding too.
    together = decode(quantise(weight * scales, inside, scheme)) / scales
    assert error(weight, together, hessian) < 0.9 * error(weight, decode(quantise(weight, moment, scheme)), hessian)


def test_scales_of_dead_and_equal_inputs_are_one() -> None:
    rng = np.random.default_rng()
    weight = rng.standard_normal((6, 16)).astype(np.float32)
    np.testing.assert_array_equal(input_scales([Part(weight, np.zeros((16, 16)), Scheme.parse("int4"))]), np.ones(16))
    np.testing.assert_array_equal(input_scales([Part(weight, np.eye(16), Scheme.parse("int4"))]), np.ones(16))
    moment = np.diag(np.where(np.arange(16) < 4, 0.0, np.exp(rng.standard_normal(16) * 4)))
    found = input_scales([Part(weight, moment, Scheme.parse("int3"))])
    np.testing.assert_array_equal(found[:4], np.ones(4))
    assert np.isfinite(found).all()


def test_same_bytes() -> None:
    weight, moment = layer(9, 31, np.random.default_rng())
    scheme = Scheme.parse("cb3-c")
    assert raw(follow_paths(weight, moment, scheme)) == raw(follow_paths(weight, moment, scheme))
    assert raw(compensate(weight, moment, scheme)) == raw(compensate(weight, moment, scheme))
    assert (
        input_scales([Part(weight, moment, scheme)]).tobytes() == input_scales([Part(weight, moment, scheme)]).tobytes()
    )


def test_weights_that_share_inputs_share_scales() -> None:
    rng = np.random.default_rng(3)
    weights = [rng.standard_normal((n, 24)).astype(np.float32) for n in (8, 20)]
    inputs = rng.standard_normal((300, 24)) * np.where(np.arange(24) % 12 == 5, 20.0, 1.0)
    moment, scheme = inputs.T @ inputs / 300, Scheme.parse("int3")
    both = input_scales([Part(weight, moment, scheme) for weight in weights])
    stacked = input_scales([Part(np.concatenate(weights), moment, scheme)])
    np.testing.assert_array_equal(both, stacked)
    # A convolution's kernel: three inputs of each channel have one scale.
    wide = [Part(np.repeat(w, 3, 1), np.kron(moment, np.eye(3)), scheme, span=3) for w in weights]
    assert input_scales(wide).shape == (24,)
    assert input_scales(wide)[[5, 17]].min() > np.delete(input_scales(wide), [5, 17]).max()
