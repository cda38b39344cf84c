"""Convolution as implicit matrix multiplication on tensor cores: windows, channels, schemes, residual and activation."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from sparsec.codegen.lower import lower
from sparsec.codegen.program import Program
from sparsec.passes import compress
from sparsec.recipe import load_recipe
from sparsec.target import resolve_target
from tests.cuda.programs import run_gpu_program
from tests.kernels.nodes import node_model
from tests.kernels.programs import reference

Array = np.ndarray[Any, Any]
GENERATOR = np.random.default_rng()


def normal(*shape: int) -> Array:
    return GENERATOR.normal(size=shape).astype(np.float32)


def convolution(
    shape: tuple[int, ...], filters: int, kernel: tuple[int, ...], **attributes: Any
) -> tuple[ir.Model, Array]:
    inputs = {"x": normal(*shape), "w": normal(filters, shape[1], *kernel), "b": normal(filters)}
    return node_model("Conv", inputs, ("w", "b"), **attributes), inputs["x"]


def check(model: ir.Model, x: Array, recipe: str | None, target: str = "cuda") -> Program:
    graph = compress(model, load_recipe(recipe)).model
    program = lower(graph, resolve_target(target), "test")
    (found,) = run_gpu_program(program, {"x": x}).values()
    (wanted,) = reference(graph, {"x": x})
    assert found.shape == wanted.shape
    # a rounding of every input, of every weight (with its scale), of the sum, of the result; K terms of random sign
    bound = (4e-3 if target == "cuda" else 3e-2) * np.abs(wanted).max()
    assert np.abs(found - wanted).max() <= bound
    return program


def families(program: Program) -> list[str]:
    return [s.spec.family for s in program.steps if s.op == "Conv"]


@pytest.mark.parametrize("target", ["cuda", "cuda:bf16"])
@pytest.mark.parametrize(
    ("shape", "filters", "kernel", "attributes"),
    [
        ((2, 16, 9, 7), 24, (3, 3), {"pads": [1, 0, 1, 2], "strides": [2, 1]}),
        ((1, 3, 20, 20), 8, (7, 7), {"pads": [3, 3, 3, 3], "strides": [2, 2]}),
        ((1, 12, 8, 9), 70, (2, 3), {"dilations": [2, 1]}),
        ((2, 8, 30), 16, (5,), {"pads": [4, 0]}),
        ((1, 16, 6, 6), 16, (1, 1), {"strides": [2, 2]}),
        ((1, 10, 9, 9), 20, (1, 1), {}),
    ],
)
def test_windows(
    shape: tuple[int, ...], filters: int, kernel: tuple[int, ...], attributes: dict[str, Any], target: str
) -> None:
    model, x = convolution(shape, filters, kernel, **attributes)
    assert families(check(model, x, None, target)) == ["cuda.conv"]


def test_pointwise_is_a_product() -> None:
    assert families(check(*convolution((2, 16, 5, 7), 24, (1, 1)), None)) == ["cuda.gemm"]
    assert families(check(*convolution((1, 16, 3, 4), 24, (1, 1)), None)) == ["cuda.gemv"]


@pytest.mark.parametrize("scheme", ["int8", "cb4", "uint4", "ternary"])
def test_codes_stay(scheme: str) -> None:
    model, x = convolution((1, 20, 7, 7), 24, (3, 3), pads=[1, 1, 1, 1])
    program = check(model, x, scheme)
    assert families(program) == ["cuda.conv"]
    assert not program.decisions
    (step,) = [s for s in program.steps if s.op == "Conv"]
    assert step.spec.params["weight"]["bits"] <= 8


@pytest.mark.parametrize(
    ("scheme", "why"),
    [
        ("cb4-g32", "groups of scales run over taps"),
        ("vq2d4", "a code stands for several taps"),
        ("s16x1@50-cb4", "weights of structure 's16x1@50'"),
    ],
)
def test_what_is_decoded_says_why(scheme: str, why: str) -> None:
    model, x = convolution((1, 16, 7, 7), 32, (3, 3), pads=[1, 1, 1, 1])
    (decision,) = check(model, x, scheme).decisions.values()
    assert (decision.decoded, decision.stored) == (True, "float16")
    assert str(decision) == f"no GPU kernel of convolutions takes {scheme}: {why}"


def test_inputs_in_parts() -> None:
    model, x = convolution((1, 128, 6, 6), 16, (3, 3), pads=[1, 1, 1, 1])
    assert families(check(model, x, None)) == ["cuda.conv", "cuda.join"]


def test_residual_and_activation() -> None:
    text = """<ir_version: 10, opset_import: ["" : 18]>
    block (float[1, 16, 6, 5] x) => (float[1, 16, 6, 5] y) {
        a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w, b)
        s = Add (a, x)
        y = Relu (s)
    }"""
    tensors = {"w": normal(16, 16, 3, 3), "b": normal(16)}
    model = ir.from_onnx_text(text, initializers=[ir.tensor(v, name=k) for k, v in tensors.items()])
    program = check(model, normal(1, 16, 6, 5), None)
    (step,) = [s for s in program.steps if s.op == "Conv"]
    assert (step.spec.params["residual"], step.spec.params["act"]) == (True, "relu")
