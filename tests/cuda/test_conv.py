"""Convolution as implicit matrix multiplication on tensor cores: windows, channels, schemes, residual and activation."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from sparsec.codegen.build import build_kernels
from sparsec.codegen.lower import lower
from sparsec.codegen.program import Program
from sparsec.formats import Scheme
from sparsec.op_view import is_sparsec, view
from sparsec.passes import compress
from sparsec.recipe import load_recipe
from sparsec.target import resolve_target
from tests.cuda.compiler import ARCHITECTURES, needs_compiler
from tests.cuda.programs import run_gpu_program
from tests.kernels.nodes import node_model
from tests.kernels.programs import reference

Array = np.ndarray[Any, Any]


def normal(*shape: int) -> Array:
    return np.random.default_rng().normal(size=shape).astype(np.float32)


def convolution(
    shape: tuple[int, ...], filters: int, kernel: tuple[int, ...], **attributes: Any
) -> tuple[ir.Model, Array]:
    channels = shape[1] // attributes.get("group", 1)
    inputs = {"x": normal(*shape), "w": normal(filters, channels, *kernel), "b": normal(filters)}
    return node_model("Conv", inputs, ("w", "b"), **attributes), inputs["x"]


def recipe_of(scheme: str | None) -> dict[str, Any] | None:
    """That scheme for weights of any size."""
    return None if scheme is None else {"rules": [{"targets": "*", "scheme": scheme}], "min_elements": 0}


def check(model: ir.Model, x: Array, scheme: str | None, target: str = "cuda") -> Program:
    graph = compress(model, load_recipe(recipe_of(scheme))).model
    assert {view(n).scheme for n in graph.graph if is_sparsec(n)} == {Scheme.parse(scheme or "fp32")}
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
    assert families(check(*convolution((1, 10, 9, 9), 20, (1, 1)), None)) == ["cuda.gemm"]


@pytest.mark.parametrize("scheme", ["int8", "cb4", "uint4", "ternary"])
def test_codes_stay(scheme: str) -> None:
    model, x = convolution((1, 20, 7, 7), 24, (3, 3), pads=[1, 1, 1, 1])
    program = check(model, x, scheme)
    assert families(program) == ["cuda.conv"]
    assert not program.decisions
    (step,) = [s for s in program.steps if s.op == "Conv"]
    assert step.spec.params["weight"]["bits"] <= 8


def product_of(program: Program) -> dict[str, Any]:
    """Parameters of the convolution; its weight is stored as it is."""
    assert not program.decisions
    (step,) = [s for s in program.steps if s.spec.family == "cuda.conv"]
    return dict(step.spec.params)


CODED = [
    ("cb4-g32", "channel", ""), ("int4-g48", "channel", ""), ("vq2d4", "channel", ""), ("vq1d8.x2", "channel", ""),
    ("s2:4", "channel", "pairs"), ("s2:4-cb4", "channel", "pairs"), ("s2:4-int4-g64", "channel", "pairs"),
    ("s2:4-cb4-g32", "channel", "scattered"), ("s16x1@50-cb4-g32", "channel", "scattered"), ("s4x4@60-vq2d4", "channel", "scattered"),
    ("s70", "tap", "scattered"), ("s1:4-int8", "tap", "scattered"), ("s16x1@50-cb4", "tap", "scattered"),
    ("sf80-uint4", "tap", "scattered"), ("s32x8@60-int4-g32", "channel", "blocks"), ("s32x8@60-int4", "tap", "scattered"),
]  # fmt: skip


@pytest.mark.parametrize(("scheme", "order", "form"), CODED)
def test_every_scheme_is_multiplied_as_it_is_stored(scheme: str, order: str, form: str) -> None:
    model, x = convolution((1, 16, 7, 6), 40, (3, 3), pads=[1, 1, 0, 1])
    params = product_of(check(model, x, scheme))
    assert params["order"] == order
    assert {"pairs", "scattered", "blocks"} & set(params["weight"]) == {form} - {""}


@pytest.mark.parametrize("scheme", ["cb4-g32", "s2:4-int4-g64", "s16x1@50-cb4-g32", "s70"])
@pytest.mark.parametrize(
    ("shape", "filters", "kernel", "attributes"),
    [
        ((2, 13, 9, 7), 17, (3, 3), {"pads": [1, 0, 1, 2], "strides": [2, 1]}),
        ((1, 24, 8, 9), 70, (2, 3), {"dilations": [2, 1]}),
        ((2, 8, 30), 16, (5,), {"pads": [4, 0]}),
    ],
)
def test_windows_of_coded_weights(
    scheme: str, shape: tuple[int, ...], filters: int, kernel: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    model, x = convolution(shape, filters, kernel, **attributes)
    product_of(check(model, x, scheme))


@pytest.mark.parametrize("scheme", ["cb4-g32", "s2:4-int4-g64"])
def test_coded_weights_in_bfloat16(scheme: str) -> None:
    product_of(check(*convolution((1, 16, 6, 5), 24, (3, 3)), scheme, "cuda:bf16"))


@pytest.mark.parametrize("scheme", ["cb4-g32", "vq2d4", "s2:4-cb4-g64", "s16x1@50-cb4-g32"])
@pytest.mark.parametrize(
    ("pixels", "strides", "family"), [((3, 4), 1, "gemv"), ((5, 7), 1, "gemm"), ((6, 6), 2, "conv")]
)
def test_pointwise_of_coded_weights(scheme: str, pixels: tuple[int, int], strides: int, family: str) -> None:
    model, x = convolution((1, 128, *pixels), 32, (1, 1), strides=[strides, strides])
    program = check(model, x, scheme)
    assert not program.decisions
    assert families(program)[0] == f"cuda.{family}"


@pytest.mark.parametrize("scheme", [None, "int8", "cb4-g32", "s2:4", "s16x1@50-cb4", "s70-int4-g16"])
@pytest.mark.parametrize(
    ("shape", "filters", "groups", "attributes"),
    [
        ((2, 32, 7, 5), 48, 2, {"pads": [1, 1, 1, 1]}),  # 24 filters and 16 channels each: panels of 32
        ((1, 36, 6, 7), 27, 3, {"strides": [2, 1]}),
        ((1, 64, 5, 5), 128, 2, {"pads": [0, 1, 1, 0]}),
    ],
)
def test_groups(
    scheme: str | None, shape: tuple[int, ...], filters: int, groups: int, attributes: dict[str, Any]
) -> None:
    model, x = convolution(shape, filters, (3, 3), group=groups, **attributes)
    assert product_of(check(model, x, scheme))["groups"] == groups


def test_groups_in_parts() -> None:
    model, x = convolution((1, 256, 5, 5), 32, (3, 3), group=2)
    assert families(check(model, x, "int8")) == ["cuda.conv", "cuda.join"]


def test_what_is_decoded_says_why() -> None:
    model, x = convolution((1, 16, 7, 7), 32, (3, 3), pads=[1, 1, 1, 1])
    (decision,) = check(model, x, "int4-g8").decisions.values()
    assert (decision.decoded, decision.stored) == (True, "float16")
    assert str(decision).startswith("no GPU kernel takes int4-g8: groups of 8 values are no multiple of 16; ")


def test_codebooks_of_filters_that_share_a_panel_with_another_group() -> None:
    model, x = convolution((1, 32, 5, 5), 48, (3, 3), group=2)
    (decision,) = check(model, x, "cb4.r8").decisions.values()
    assert "groups of 24 filters end within a panel of 32, and codebooks of 'cb4.r8' go by filters" in str(decision)


@needs_compiler
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("scheme", [None, "s16x1@50-cb4-g32", "s2:4", "cb4-g32", "s70"])
def test_they_compile_without_spills(scheme: str | None, arch: str) -> None:
    model, _ = convolution((1, 128, 28, 28), 128, (3, 3), group=2, pads=[1, 1, 1, 1])
    program = lower(compress(model, load_recipe(scheme)).model, resolve_target(f"cuda:{arch}"), "test")
    specs = [s.spec for s in program.steps if s.spec.family == "cuda.conv"]
    built = build_kernels(specs, program.target)
    assert [built[spec.canonical()].meta["spills"] for spec in specs] == [0]


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
