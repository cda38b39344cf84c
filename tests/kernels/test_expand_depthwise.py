"""A sparse 1x1 convolution joined with the depthwise convolution behind it, against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from sparsec import ops
from sparsec.codegen import expansions
from sparsec.codegen.kernels import spmm_fixed, spmm_rules
from sparsec.codegen.lower import lower
from sparsec.codegen.plan import check_plan, make_plan
from sparsec.formats import Scheme, encode
from sparsec.target import NAMED, Target, host_target
from tests.kernels.programs import reference, run_program
from tests.kernels.test_decode import keep_mask

Array = np.ndarray[Any, Any]

TARGETS = {t.name: t for t in (host_target(), NAMED["x86-avx2"], NAMED["arm"])}
EACH = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


def model_of(
    first: str,
    second: str = "fp32",
    shape: tuple[int, ...] = (1, 5, 12, 13),
    channels: int = 24,
    *,
    share: float = 0.1,
    act: str = "relu",
    skip: bool = False,
    show: bool = False,
    activations: str = "",
    kernel: tuple[int, int] = (3, 3),
    **geometry: Any,
) -> tuple[ir.Model, dict[str, Array]]:
    """x -> 1x1 convolution -> depthwise convolution (+ residual if `skip`) -> y; `show`: what lies between is an output, too."""
    rng, k = np.random.default_rng(), shape[1]
    scheme, matrix = Scheme.parse(first), rng.normal(size=(channels, k)).astype(np.float32)
    wide = ops.weight_inputs(encode(matrix, scheme, mask=keep_mask(scheme, channels, k, rng, share)), "wide")
    filters = rng.normal(size=(channels, kernel[0] * kernel[1])).astype(np.float32)
    deep = ops.weight_inputs(filters if second == "fp32" else encode(filters, Scheme.parse(second)), "deep")

    def value(name: str, array: Array, constant: bool = False) -> ir.Value:
        made = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.FLOAT))
        made.const_value = ir.tensor(array, name=name) if constant else None
        return made

    feed = {"x": rng.normal(size=shape).astype(np.float32)}
    x = value("x", feed["x"])
    biases = [value(f"bias{i}", rng.normal(size=channels).astype(np.float32), True) for i in range(2)]
    a = ops.conv(x, wide, kernel_shape=(1, 1), bias=biases[0], name="expand", activation=act, activations=activations)
    fields: dict[str, Any] = {
        "kernel_shape": kernel,
        "group": channels,
        "bias": biases[1],
        "activation": act,
    } | geometry
    b = ops.conv(a.output, deep, name="filter", **fields)
    inputs = [x]
    if skip:
        assert b.output.shape is not None
        feed["skip"] = rng.normal(size=[int(d) for d in b.output.shape]).astype(np.float32)  # type: ignore[call-overload]
        inputs.append(value("skip", feed["skip"]))
        b = ops.conv(a.output, deep, name="filter", residual=inputs[1], **fields)
    outputs = [b.output, a.output] if show else [b.output]
    graph = ir.Graph(inputs, outputs, nodes=[a.node, b.node], opset_imports={"": 18}, initializers=biases)
    model = ir.Model(graph, ir_version=10)
    a.register(model)
    b.register(model)
    return model, feed


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of tests are joined, too, and multiplied sparse."""
    monkeypatch.setattr(spmm_rules, "dense_wins", lambda *_: None)
    monkeypatch.setattr(expansions, "_LEAST", 1)
    monkeypatch.setattr(expansions, "_BLOCK", 8000)


def check(target: Target, *args: Any, joined: bool = True, tolerance: float = 2e-5, **options: Any) -> None:
    model, feed = model_of(*args, **options)
    program = lower(model, target, "test", dict.fromkeys(model.graph, "row"))
    check_plan(program, make_plan(program))
    families = [step.spec.family for step in program.steps]
    assert ("expand_depthwise" in families) == joined, families
    for found, wanted in zip(run_program(program, feed), reference(model, feed), strict=True):
        scale = max(1.0, float(np.abs(wanted).max()))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * scale)


PADS: dict[str, Any] = {"pads": [1, 1, 1, 1]}
SHAPES: list[tuple[tuple[int, ...], int, dict[str, Any]]] = [
    ((1, 5, 12, 13), 24, PADS),
    ((1, 1, 9, 31), 2, PADS),
    ((1, 7, 16, 16), 34, PADS | {"strides": [2, 2]}),
    ((1, 16, 8, 8), 96, {"kernel": (5, 5), "pads": [2, 2, 2, 2]}),
    ((1, 33, 28, 28), 40, {"pads": [0, 1, 1, 0], "strides": [2, 1]}),
    ((1, 3, 40, 41), 15, {"kernel": (3, 3), "pads": [2, 2, 2, 2], "dilations": [2, 2]}),
]


@EACH
@pytest.mark.parametrize(("shape", "channels", "geometry"), SHAPES)
def test_against_onnxruntime(shape: tuple[int, ...], channels: int, geometry: dict[str, Any], target: Target) -> None:
    check(target, "s90", shape=shape, channels=channels, **geometry)


FRAMED: list[tuple[tuple[int, ...], int, dict[str, Any]]] = [
    ((1, 16, 24, 32), 24, PADS),
    ((1, 16, 24, 48), 24, PADS | {"strides": [2, 2]}),
    ((1, 5, 12, 16), 6, {"kernel": (5, 5), "pads": [2, 2, 2, 2], "strides": [2, 2]}),
    ((1, 7, 13, 112), 12, PADS | {"strides": [2, 1]}),
    ((1, 4, 30, 16), 10, {"kernel": (2, 2), "strides": [2, 2]}),
    ((1, 3, 21, 32), 6, {"kernel": (3, 3), "pads": [2, 2, 2, 2], "dilations": [2, 2]}),
    ((1, 3, 16, 16), 4, {"kernel": (1, 1), "pads": [2, 0, 3, 0]}),
    ((1, 9, 12, 16), 8, {"kernel": (3, 3), "pads": [0, 0, 0, 0]}),
]


@EACH
@pytest.mark.parametrize("lines", [1, 6, 1000])
@pytest.mark.parametrize(("shape", "channels", "geometry"), FRAMED)
def test_images_with_zeros_around_them(
    shape: tuple[int, ...], channels: int, geometry: dict[str, Any], lines: int, target: Target,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(expansions, "_LINES", lines)
    monkeypatch.setattr(expansions, "_STRIP", 8000)
    model, _ = model_of("s90", shape=shape, channels=channels, **geometry)
    (step,) = lower(model, target, "test", dict.fromkeys(model.graph, "row")).steps
    assert ("frame" in step.spec.params["first"]) == (shape[-1] % target.lanes == 0)
    if "frame" in step.spec.params["first"]:
        assert "second_scratch" not in [arg.name for arg in step.signature.args]
    check(target, "s90", shape=shape, channels=channels, **geometry)


@pytest.mark.parametrize(
    ("first", "second"),
    [("s90", "cb4"), ("s90-cb4-g32", "fp32"), ("s2x1@90", "int8-c"), ("s4x1@80", "s50"), ("s90-int8-t", "cb3-g4")],
)
def test_schemes_with_zeros_around_images(first: str, second: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expansions, "_STRIP", 16000)
    monkeypatch.setattr(expansions, "_BLOCK", 20000)
    check(NAMED["x86-avx2"], first, second, shape=(1, 16, 20, 56), share=0.3, **PADS)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
@pytest.mark.parametrize(
    ("first", "second"), [("s90", "cb4"), ("s90-cb4-g32", "fp32"), ("s2x1@90", "int8-c"), ("s4x1@80", "s50")]
)
def test_schemes_and_shares(first: str, second: str, share: float) -> None:
    check(host_target(), first, second, share=share, **PADS)


def test_residual_of_the_second() -> None:
    check(host_target(), "s90", skip=True, **PADS)


@pytest.mark.parametrize(("channels", "is_fixed"), [(256, True), (64, False)])
def test_fixed_point_where_a_block_uses_its_inputs_often(channels: int, is_fixed: bool) -> None:
    options: dict[str, Any] = {
        "shape": (1, 40, 8, 8),
        "channels": channels,
        "share": 0.9,
        "activations": "int16",
        **PADS,
    }
    model, _ = model_of("s50", **options)
    (step,) = lower(model, host_target(), "test", dict.fromkeys(model.graph, "row")).steps
    assert spmm_fixed.is_fixed(step.spec.params["first"]["values"]) == is_fixed
    check(host_target(), "s50", tolerance=5e-3 if is_fixed else 2e-5, **options)


@EACH
@pytest.mark.parametrize("channels", [64, 256])
@pytest.mark.parametrize("image", [(9, 24), (9, 40), (8, 8), (7, 8), (8, 40), (6, 56), (5, 16)])
def test_fixed_point_on_images_of_every_number_of_vectors(
    image: tuple[int, int], channels: int, target: Target
) -> None:
    check(
        target, "s50", tolerance=5e-3, shape=(1, 40, *image), channels=channels, share=0.9, activations="int16", **PADS
    )


@EACH
@pytest.mark.parametrize(
    ("first", "share", "in_place"),
    [
        ("s90", 0.02, True), ("s90", 0.9, False), ("s2x1@90", 0.1, True), ("s90-cb4", 0.1, True), ("s90-int8-t", 0.1, True),
        ("s90-cb4-g32", 0.1, False),
    ],
)  # fmt: skip
def test_inputs_that_are_seldom_used_are_read_in_place(
    first: str, share: float, in_place: bool, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expansions, "_BLOCK", 20000)
    options: dict[str, Any] = {"shape": (1, 48, 16, 24), "channels": 64, "share": share, **PADS}
    model, _ = model_of(first, **options)
    (step,) = lower(model, target, "test", dict.fromkeys(model.graph, "row")).steps
    assert bool(step.spec.params["first"].get("in_place")) == in_place
    assert ("first_panel" in [arg.name for arg in step.signature.args]) != in_place
    check(target, first, **options)
