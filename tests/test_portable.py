"""Portable files: biases in halves where rounding them costs nothing that counts, and as they were elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import sparsec
from sparsec.portable import portable, saved_by_halves
from sparsec.reference import Reference
from tests.passes.calibrate.networks import chain, image_network, with_tensors

Array = np.ndarray[Any, Any]
WIDTH = 80


def layers(bias: Array, *, twice: bool = False) -> ir.Model:
    """x [1, 8, WIDTH] -> product + bias, once or (by the same bias) twice."""
    import onnx

    second = "c = MatMul (b, w) d = Add (c, bias)" if twice else "d = Identity (b)"
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        net (float[1, 8, {WIDTH}] x) => (float[1, 8, {WIDTH}] y)
        {{ a = MatMul (x, w) b = Add (a, bias) {second} y = Relu (d) }}"""
    )
    rng = np.random.default_rng()
    return with_tensors(model, {"w": rng.standard_normal((WIDTH, WIDTH)) / 9, "bias": bias})


def halves(model: ir.Model) -> list[str]:
    return [
        name
        for name, value in model.graph.initializers.items()
        if name.endswith(".half") and value.dtype == ir.DataType.FLOAT16
    ]


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("scheme", ["int4", "cb3-c", "s2:4-int8", "fp16", "vq2d4-c"])
def test_biases_are_halves(scheme: str, twice: bool) -> None:
    rng = np.random.default_rng()
    model = layers(rng.standard_normal(WIDTH), twice=twice)
    made = sparsec.compress(model, scheme, verify=False)
    assert halves(made.model) == ["bias.half"]
    assert set(saved_by_halves(made.model).values()) == {2 * WIDTH}
    feed = {"x": rng.standard_normal((1, 8, WIDTH)).astype(np.float32)}
    wide = {
        value.name: value.const_value.numpy().astype(np.float32)
        for value in made.model.graph.initializers.values()
        if value.name == "bias.half" and value.const_value is not None
    }
    exact = layers(wide["bias.half"], twice=twice)
    exact.graph.initializers["w"].const_value = model.graph.initializers["w"].const_value
    wanted = sparsec.compress(exact, scheme, verify=False)
    np.testing.assert_array_equal(
        Reference(made.to_bytes()).run(feed)["y"], Reference(wanted.to_bytes()).run(feed)["y"]
    )


def test_the_graph_itself_stays() -> None:
    model = layers(np.random.default_rng().standard_normal(WIDTH))
    compressed = sparsec.passes.compress(model, "int4").model
    before = {name: value.const_value for name, value in compressed.graph.initializers.items()}
    assert halves(portable(compressed)) == ["bias.half"]
    assert {name: value.const_value for name, value in compressed.graph.initializers.items()} == before


@pytest.mark.parametrize("scheme", ["s50", "fp32"])
def test_float32_weights_keep_float32_biases(scheme: str) -> None:
    model = layers(np.random.default_rng().standard_normal(WIDTH))
    assert not halves(sparsec.compress(model, scheme, verify=False).model)


@pytest.mark.parametrize("size", [1e6, 1e-9])
def test_what_halves_cannot_hold_stays(size: float) -> None:
    bias = np.random.default_rng().standard_normal(WIDTH)
    assert not halves(sparsec.compress(layers(size * bias), "int4", verify=False).model)


def test_small_biases_stay() -> None:
    assert not halves(
        sparsec.compress(image_network(), {"rules": [{"scheme": "int4"}], "min_elements": 0}, verify=False).model
    )


def test_no_bias_no_half() -> None:
    weight = np.random.default_rng().standard_normal((WIDTH, WIDTH))
    assert not halves(sparsec.compress(chain(weight, weight), "int4", verify=False).model)


def test_compiling_a_portable_file_folds_the_casts() -> None:
    rng = np.random.default_rng()
    made = sparsec.compress(layers(rng.standard_normal(WIDTH)), "int4", verify=False)
    feed = {"x": rng.standard_normal((1, 8, WIDTH)).astype(np.float32)}
    program = sparsec.compile(made.model, recipe=None)
    assert len(program.report.steps) == 1
    np.testing.assert_allclose(program.run(feed)["y"], Reference(made.to_bytes()).run(feed)["y"], atol=1e-5)
