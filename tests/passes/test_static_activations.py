"""Static int8 activations: in the graph, against a plain model of them, in compiled programs, and without inputs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import sparsec
from sparsec import ops
from sparsec.errors import CalibrationError, ModelError, RecipeError
from sparsec.frontend import load_model
from sparsec.int8 import rounded_static
from sparsec.passes import Calibration, compress, float_activations
from sparsec.passes.static_activations import round_inputs
from sparsec.recipe import load_recipe
from sparsec.reference import Reference
from tests.models import DIGITS, DIGITS_MLP, accuracy, digits
from tests.passes.calibrate.networks import text_network

RECIPE = {"rules": [{"scheme": "int8", "activations": "int8-static"}], "min_elements": 0}


def images(count: int, shape: tuple[int, ...] = (1, 1, 8, 8)) -> list[dict[str, np.ndarray]]:
    x = digits()[0][0]
    start = np.random.default_rng().integers(0, len(x) - count)
    return [{"x": image.reshape(shape)} for image in x[start : start + count]]


def compressed(path: Any, samples: list[dict[str, np.ndarray]], recipe: Any = RECIPE) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return compress(
            load_model(path, None, {"N": 1} if isinstance(path, Path) else None),
            recipe,
            calibration=Calibration(samples, pool),
        )


def roundings(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "Quantise"]


def test_every_product_reads_numbers_of_a_byte() -> None:
    made = compressed(DIGITS, images(6))
    assert {layer.activations for layer in made.layers if layer.scheme == "int8"} == {"int8-static"}
    products = [node for node in made.model.graph if node.op_type in ("MatMul", "Conv")]
    assert len(products) == 5
    for node in products:
        assert node.inputs[0].producer().op_type == "Quantise"
    nodes = roundings(made.model)
    copy = made.model.clone()
    looked_at = {node.outputs[0].name for node in nodes}
    copy.graph.outputs.extend(o for node in copy.graph for o in node.outputs if o.name in looked_at)
    found = Reference(copy).run(images(1)[0])
    for node in nodes:
        scale, low, high = (node.attributes[key].as_float() for key in ("scale", "low", "high"))
        whole = found[node.outputs[0].name] / scale
        np.testing.assert_allclose(whole, np.rint(whole), atol=1e-3)
        assert low - 0.01 <= whole.min()
        assert whole.max() <= high + 0.01
        assert len(np.unique(np.rint(whole))) > 8


def test_equal_runs_give_equal_bytes_and_the_recipe_reproduces_them() -> None:
    samples = images(4)
    first, second = (sparsec.compress(DIGITS, RECIPE, input_shapes={"N": 1}, calibration=samples) for _ in range(2))
    assert first.to_bytes() == second.to_bytes()
    for jobs in (1, 2, 3):
        again = sparsec.compress(
            DIGITS, load_recipe(first.recipe), input_shapes={"N": 1}, calibration=samples, jobs=jobs
        )
        assert again.to_bytes() == first.to_bytes()


@pytest.mark.parametrize("ties", [False, True])
def test_meaning_in_onnx_and_numpy(ties: bool) -> None:
    """Ties with a power of two only: onnxruntime makes x * (1 / scale) a division, whose last bit may differ."""
    rng = np.random.default_rng()
    x = ir.Value(name="x", shape=ir.Shape([3, 37]), type=ir.TensorType(ir.DataType.FLOAT))
    scale, low = 2.0**-5 if ties else float(rng.uniform(0.01, 0.1)), -int(rng.integers(0, 256))
    built = ops.quantise(x, scale, low, low + 255)
    built.output.name = "y"
    graph = ir.Graph([x], [built.output], nodes=[built.node], opset_imports={"": 18}, name="g")
    model = ir.Model(graph, ir_version=10)
    built.register(model)
    array = rng.normal(0, 10, (3, 37)).astype(np.float32)
    if ties:
        array[0, :3] = (0, 0.5 * scale, 1.5 * scale)
    (found,) = Reference(model).run({"x": array}).values()
    np.testing.assert_array_equal(found, rounded_static(array, scale, low, low + 255))
    for arguments in ((0.0, 0, 255), (1.0, 1, 255), (1.0, -1, 255), (float("nan"), 0, 255)):
        with pytest.raises(ModelError, match="a byte's numbers"):
            ops.quantise(x, *arguments)


def test_programs_compute_what_the_portable_file_says() -> None:
    samples = images(32)
    program = sparsec.compile(DIGITS, "cpu", RECIPE, input_shapes={"N": 1}, calibration=samples)
    check = program.report.verification
    assert check.passed
    assert check.bound < 0.1  # values that the ranges cut off do not count as rounding
    x, labels = digits()[1]
    logits = np.concatenate([program.run({"x": image[None]})["logits"] for image in x])
    dense = np.concatenate([Reference(DIGITS).run({"x": image[None]})["logits"] for image in x])
    assert accuracy(logits, labels) >= accuracy(dense, labels) - 0.01
    assert 0 < np.linalg.norm(logits - dense) / np.linalg.norm(dense) < 0.05


def test_the_twin_without_rounding() -> None:
    samples = images(8)
    made = compressed(DIGITS, samples)
    plain = compressed(DIGITS, samples, {"rules": [{"scheme": "int8", "activations": "fp32"}], "min_elements": 0})
    twin = float_activations(made.model)
    assert not roundings(twin)
    assert float_activations(twin) is None
    (rounded,), (floating,), (wanted,) = (
        Reference(m).run(samples[0]).values() for m in (made.model, twin, plain.model)
    )
    gap = np.linalg.norm(floating - wanted)
    assert gap < np.linalg.norm(rounded - wanted) + 0.05 * np.linalg.norm(wanted)


def test_products_of_one_input_share_its_rounding() -> None:
    rng = np.random.default_rng()
    samples = [{"x": rng.normal(size=(1, 8, 12)).astype(np.float32)} for _ in range(3)]
    made = compressed(text_network(), samples)
    counts = sorted(len(list(node.outputs[0].uses())) for node in roundings(made.model))
    assert counts == [1, 3]
    x = np.stack([sample["x"] for sample in samples])
    shared = next(node for node in roundings(made.model) if node.inputs[0].name == "x")
    scale, low, high = (shared.attributes[key].as_float() for key in ("scale", "low", "high"))
    assert scale * 255 == pytest.approx(x.max() - x.min(), rel=0.35)
    assert low * scale < 0 < high * scale


def test_rules_that_do_not_ask_are_left_alone() -> None:
    recipe = {
        "rules": [{"scheme": "int8"}, {"targets": "@last", "scheme": "cb4", "activations": "int8-static"}],
        "min_elements": 0,
    }
    made = compressed(DIGITS_MLP, images(3, (1, 64)), recipe)
    assert [layer.activations for layer in made.layers] == ["", "int8-static"]
    (node,) = roundings(made.model)
    assert len(list(node.outputs[0].uses())) == 1


def test_without_inputs_and_with_odd_ones() -> None:
    with pytest.raises(
        RecipeError, match=r"rules\[0\].activations: 'int8-static' takes ranges from calibration inputs"
    ):
        sparsec.compress(DIGITS, "int8 x int8-static", input_shapes={"N": 1})
    assert load_recipe("int8 x int8-static").rules[0].activations == "int8-static"
    made = compressed(DIGITS_MLP, images(2, (1, 64)), {"rules": [{"scheme": "int8", "activations": "fp32"}]})
    wanted = {layer.name: (load_recipe("int8 x int8-static").rules[0], layer) for layer in made.layers}
    with pytest.raises(CalibrationError, match="sample 1: 'x' holds NaN"):
        round_inputs(made.model, wanted, [{"x": np.full((1, 64), v, np.float32)} for v in (1, np.nan)])
