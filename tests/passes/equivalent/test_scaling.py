"""Factors of channels through the whole pipeline: AWQ on outlier activations, equalised ranges; the model computes what it did."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import sparsec
from sparsec.errors import RecipeError
from sparsec.passes.calibrate.groups import survey
from sparsec.passes.equivalent.scaling import equalise_ranges, scale_inputs
from sparsec.recipe import Calibrate
from tests.passes.calibrate.networks import chain, choices, distance, samples
from tests.passes.equivalent.networks import block, made, mobile


def outliers(seed: int = 0) -> ir.Model:
    """A norm that makes two channels thirty times larger than the others, read by two products, and a third after a Relu."""
    model = made(
        """net (float[1, 16, 24] x) => (float[1, 16, 9] y) {
            n = LayerNormalization <axis = -1> (x, scale)
            a = MatMul (n, wa)
            b = MatMul (n, wb)
            s = Add (a, b)
            r = Relu (s)
            y = MatMul (r, wc)
        }""",
        {"scale": (24,), "wa": (24, 32), "wb": (24, 32), "wc": (32, 9)},
        seed,
    )
    scale = model.graph.initializers["scale"]
    assert scale.const_value is not None
    scale.const_value = ir.tensor(
        scale.const_value.numpy() * np.where(np.arange(24) % 12 == 5, 30, 1).astype(np.float32)
    )
    return model


def rounded(network: Callable[[], ir.Model], scheme: str, scaling: str, algorithm: str, feeds: Any) -> Any:
    quantize = {"algorithm": algorithm, "scaling": scaling}
    recipe = {"version": 1, "rules": [{"scheme": scheme, "quantize": quantize}], "min_elements": 0}
    return sparsec.compress(network(), recipe, calibration=feeds, verify=False)


@pytest.mark.parametrize(
    ("scheme", "algorithm", "bound"),
    [("int3-g8", "nearest", 0.9), ("int4", "nearest", 0.8), ("uint3-g24", "nearest", 0.8), ("int4", "descent", 0.95)],
)
def test_awq_beats_rounding_on_outlier_activations(scheme: str, algorithm: str, bound: float) -> None:
    """On average over four networks: codes that make up for each other need it less, and not in each."""
    off = np.zeros(2)
    for seed in range(4):
        network = partial(outliers, seed)
        feeds, others = samples(network(), 12, seed=3 * seed), samples(network(), 6, seed=50 + seed)
        scaled, plain = (rounded(network, scheme, s, algorithm, feeds) for s in ("awq", "none"))
        off += [distance(made.model, network(), others) for made in (scaled, plain)]
        assert scaled.report.after.file_bytes == plain.report.after.file_bytes
    assert off[0] < bound * off[1]
    again = sparsec.compress(network(), scaled.recipe, calibration=feeds, verify=False)
    assert again.to_bytes() == scaled.to_bytes()


def test_readers_of_one_value_share_their_factors() -> None:
    model, feeds = outliers(), samples(outliers(), 8)
    found = choices(model, "int3", quantize={"scaling": "awq"})
    before = {choice.weight.name: choice.weight.matrix() for choice in found}

    def ask(members: Any, visit: Any) -> None:
        survey(model, members, feeds, visit, settings=Calibrate())

    assert scale_inputs(model, found, ask)
    ratios = {choice.weight.name: choice.weight.matrix() / before[choice.weight.name] for choice in found}
    np.testing.assert_allclose(ratios["wa"], ratios["wb"], rtol=1e-5)
    assert ratios["wa"][0, 5] > 1.5 * ratios["wa"][0, 0]
    assert distance(model, outliers(), feeds) < 1e-9
    assert [choice.notes[0][:16] for choice in found[:2]] == ["inputs scaled by"] * 2


def test_what_cannot_be_scaled_says_so() -> None:
    model, feeds = block(), samples(block(), 4)
    found = {choice.weight.name: choice for choice in choices(model, "int4", quantize={"scaling": "awq"})}
    scale_inputs(
        model, list(found.values()), lambda members, visit: survey(model, members, feeds, visit, settings=Calibrate())
    )
    assert found["table"].notes == ["inputs not scaled: the weight is looked up or read by several nodes"]
    assert "Gelu" in found["wf"].notes[0]
    assert all(choice.notes for choice in found.values())
    assert distance(model, block(), feeds) < 1e-9


def uneven(seed: int = 0) -> ir.Model:
    """Rows of very different size, which the columns that read them undo."""
    rng = np.random.default_rng(seed)
    size = np.exp(2 * rng.standard_normal(20))
    first, second = rng.standard_normal((20, 11)) * size[:, None], rng.standard_normal((14, 20)) / size
    return chain(first, second, rng.standard_normal((6, 14)))


@pytest.mark.parametrize("network", [uneven, mobile, block])
def test_equalised_ranges_leave_the_model_as_it_is(network: Callable[[], ir.Model]) -> None:
    model = network()
    found = choices(model, "int8-t", quantize={"scaling": "equalize"})
    assert equalise_ranges(model, found)
    assert all(len(choice.notes) == 2 for choice in found)
    assert distance(model, network(), samples(network(), 3)) < 1e-9


def badly_scaled() -> ir.Model:
    """`mobile` with channels of the first two convolutions scaled badly, undone by the next."""
    model, rng = mobile(), np.random.default_rng(0)
    factors = np.exp(2 * rng.standard_normal(12)).astype(np.float32)
    for name, change in {
        "w1": factors[:, None, None, None],
        "b1": factors,
        "w3": 1 / factors[:, None, None],
        "b2": factors,
    }.items():
        value = model.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() * change)
    return model


@pytest.mark.parametrize("network", [uneven, badly_scaled])
def test_equalised_beats_per_tensor_rounding_as_it_is(network: Callable[[], ir.Model]) -> None:
    others = samples(network(), 6, seed=4)
    equal, plain = (rounded(network, "int8-t", s, "nearest", None) for s in ("equalize", "none"))
    assert distance(equal.model, network(), others) < 0.1 * distance(plain.model, network(), others)
    again = sparsec.compress(network(), equal.recipe, verify=False)
    assert again.to_bytes() == equal.to_bytes()


def test_awq_needs_inputs() -> None:
    with pytest.raises(RecipeError, match=r"rules\[0\].quantize.scaling: 'awq' needs calibration inputs"):
        rounded(outliers, "int4", "awq", "nearest", None)
