"""Codebooks along the axis in which values differ, through the whole pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import sparsec
from sparsec.errors import RecipeError
from sparsec.formats import Scheme
from sparsec.passes.choose_axis import other_axis
from tests.passes.calibrate.networks import chain, distance, samples


def network() -> ir.Model:
    """Rows of the first weight differ in size, columns of the second."""
    rng = np.random.default_rng(0)
    size = np.repeat([0.05, 1.0, 4.0, 0.3], 8)
    return chain(rng.standard_normal((32, 32)) * size[:, None] / 6, rng.standard_normal((32, 32)) / size / 6)


def coded(scheme: str, calibration: Any = None, **quantize: Any) -> sparsec.CompressedModel:
    recipe = {"version": 1, "rules": [{"scheme": scheme, "quantize": quantize}], "min_elements": 0}
    return sparsec.compress(network(), recipe, calibration=calibration, verify=False)


@pytest.mark.parametrize("scheme", ["cb2.r8", "cb2.i8"])
def test_each_weight_gets_its_axis(scheme: str) -> None:
    found = coded(scheme, axis="auto")
    assert tuple(row.record.scheme for row in found.report.layers) == ("cb2.r8", "cb2.i8")
    assert all("axis" in row.record.notes for row in found.report.layers)
    others = samples(network(), 6)
    assert distance(found.model, network(), others) < 0.9 * distance(coded(scheme).model, network(), others)
    again = sparsec.compress(network(), found.recipe, verify=False)
    assert again.to_bytes() == found.to_bytes()


def test_inputs_that_matter_decide() -> None:
    """Columns differ where inputs are next to nothing; where inputs matter rows do."""
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((32, 32)) * np.repeat([0.1, 0.3, 1.0, 3.0], 8)[:, None]
    weight[:, 16:] = rng.standard_normal((32, 16)) * np.repeat([1.0, 30.0], 8)
    model = chain(weight, np.eye(32))
    feeds = samples(model, 8)
    for feed in feeds:
        feed["x"][..., 16:] *= 1e-4
    rules = [{"targets": "w0", "scheme": "cb2.i8", "quantize": {"axis": "auto"}}, {"targets": "w1", "scheme": "fp32"}]
    for given, scheme in ((None, "cb2.i8"), (feeds, "cb2.r8")):
        found = sparsec.compress(model, {"rules": rules, "min_elements": 0}, calibration=given, verify=False)
        assert next(row.record.scheme for row in found.report.layers if row.record.name == "w0") == scheme


@pytest.mark.parametrize(
    ("scheme", "wanted"),
    [
        ("cb3.r16", "cb3.i32"),
        ("s50-cb4.i10-g32", "s50-cb4.r5-g32"),
        ("vq2d4.r16", "vq2d4.i32"),
        ("vq2d8.r50-c", "vq2d8.i64-c"),
    ],
)
def test_schemes_of_the_other_axis(scheme: str, wanted: str) -> None:
    assert str(other_axis(Scheme.parse(scheme), 64, 128)) == wanted


def test_schemes_without_an_axis() -> None:
    for scheme in ("int4-g32", "cb4", "fp32"):
        with pytest.raises(RecipeError, match=r"cb3.r16, cb3.i32"):
            coded(scheme, axis="auto")
