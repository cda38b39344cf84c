"""Calibration layer by layer: what it gathers, what it changes, and that it pays."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from sparsec.formats import decode, encode
from sparsec.passes.calibrate import layers as calibration
from sparsec.passes.calibrate.groups import why_not
from sparsec.passes.calibrate.inputs import layer_rows
from sparsec.passes.calibrate.layers import calibrate
from sparsec.passes.calibrate.solve import Layer, Solved, solve
from sparsec.recipe import Calibrate
from sparsec.reference import Reference
from tests.passes.calibrate.networks import chain, choices, distance, image_network, samples, text_network
from tests.passes.calibrate.test_segments import with_outputs

NETWORKS = [image_network, text_network]


def run(
    model: ir.Model, scheme: str, feeds: list[dict[str, np.ndarray]], workers: int = 1, **settings: Any
) -> list[Solved]:
    chosen = choices(model, scheme)
    with ThreadPoolExecutor(workers) as executor:
        found = calibrate(model, chosen, feeds, executor, settings=Calibrate(**settings))
    for choice, solved in zip(chosen, found, strict=True):
        assert solved is not None
        value, array = choice.weight.value, solved.decoded()
        array = array.T if choice.weight.flipped else array
        value.const_value = ir.tensor(np.ascontiguousarray(array).reshape(choice.weight.shape))
    return [solved for solved in found if solved is not None]


@pytest.mark.parametrize("network", NETWORKS)
def test_statistics_are_those_of_the_uncompressed_model(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = network(), {}

    def record(layer: Layer) -> Solved:
        seen[layer.name] = layer
        return solve(layer)

    monkeypatch.setattr(calibration, "solve", record)
    monkeypatch.setenv("SPARSEC_CACHE", "off")  # what the cache has is not solved
    feeds = samples(model, 5)
    original = model.clone()
    run(model, "int8", feeds, sequential=False)
    for choice in choices(original, "int8"):
        use = choice.weight.uses[0]
        name = use.node.inputs[0].name  # type: ignore[union-attr]
        inner = Reference(with_outputs(original, [name])) if name != "x" else None
        values = [feed["x"] if inner is None else inner.run(feed)[name] for feed in feeds]
        parts = [layer_rows(use, value, 10**6, 0) for value in values]
        statistics = seen[choice.weight.name].statistics
        assert len(statistics) == len(parts[0])
        for group, found in enumerate(statistics):
            rows = np.concatenate([part[group] for part in parts]).astype(np.float64)
            assert found.samples == len(rows)
            np.testing.assert_allclose(found.mean, rows.mean(0), atol=1e-5)
            np.testing.assert_allclose(
                found.second_moment, np.cov(rows.T, bias=True).reshape(found.second_moment.shape), atol=1e-4
            )
            assert found.cross is None


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("scheme", ["cb2-c", "int3"])
def test_calibrated_beats_data_free(network: Any, scheme: str) -> None:
    original, feeds, others = network(), samples(network(), 24), samples(network(), 8, seed=9)
    free = network()
    for choice in choices(free, scheme):
        array = decode(encode(choice.weight.matrix(), choice.scheme))
        array = array.T if choice.weight.flipped else array
        choice.weight.value.const_value = ir.tensor(np.ascontiguousarray(array).reshape(choice.weight.shape))
    calibrated = network()
    run(calibrated, scheme, feeds)
    assert distance(calibrated, original, others) < 0.9 * distance(free, original, others)


@pytest.mark.parametrize("settings", [{}, {"sequential": False}, {"correction": 0.0}], ids=str)
def test_workers_change_nothing(settings: dict[str, Any]) -> None:
    feeds = samples(text_network(), 6)
    one, three = (run(text_network(), "cb3-c", feeds, workers, **settings) for workers in (1, 3))
    for a, b in zip(one, three, strict=True):
        assert a.encoded.arrays().keys() == b.encoded.arrays().keys()
        assert all(np.array_equal(x, b.encoded.arrays()[k]) for k, x in a.encoded.arrays().items())
        assert np.array_equal(a.shift, b.shift)  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["int3", "s50"])
def test_making_up_for_the_layers_before_pays(scheme: str) -> None:
    """Six layers, outputs on inputs that were held back: one layer after the other on what it really reads beats all of them on the
    uncompressed model's activations, and aiming for that model's outputs (`correction`) beats aiming for the layer's own."""
    rng, errors = np.random.default_rng(), []
    for _ in range(4):
        weights = [rng.standard_normal((24, 24)) * (2 / 24) ** 0.5 for _ in range(6)]
        feeds, others = samples(chain(*weights), 64), samples(chain(*weights), 32, seed=9)
        errors.append([])
        for settings in ({}, {"sequential": False}, {"correction": 0.0}):
            model = chain(*weights)
            run(model, scheme, feeds, **settings)
            errors[-1].append(distance(model, chain(*weights), others))
    sequential, apart, without = np.log(errors).mean(0)
    assert sequential < apart + np.log(0.9)
    assert sequential < without + np.log(0.9)


def test_mean_of_the_outputs_is_kept() -> None:
    original, model = text_network(), text_network()
    feeds = samples(model, 40)
    run(model, "int2", feeds)
    mean = [np.mean([next(iter(Reference(m).run(f).values())) for f in feeds], (0, 1, 2)) for m in (original, model)]
    np.testing.assert_allclose(mean[0], mean[1], atol=1e-3)


def test_weights_left_alone_say_why() -> None:
    model = text_network()
    chosen = choices(model, "int8", quantize={"algorithm": "nearest"})
    assert {why_not(choice) for choice in chosen} == {"its rule asks for data-free algorithms"}
    with ThreadPoolExecutor(1) as executor:
        assert calibrate(model, chosen, samples(model, 1), executor, settings=Calibrate()) == [None] * 4
