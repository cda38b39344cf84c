"""Depthwise convolution against onnxruntime, fused epilogues against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from sparsec import ops
from sparsec.activations import ACTIVATIONS
from sparsec.codegen.context import Layout
from sparsec.codegen.kernels.depthwise import lower_depthwise
from sparsec.codegen.kernels.table import TABLE
from sparsec.formats import NM, Scheme, encode
from sparsec.target import NAMED
from tests.kernels.programs import lower_and_run, one_node_model, reference, refusals


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng().normal(size=shape).astype(np.float32)


def _conv(
    shape: tuple[int, ...], kernel: tuple[int, ...], bias: bool = True, **attributes: Any
) -> tuple[ir.Model, dict]:
    c = shape[1]
    feed = {"x": _normal(*shape), "w": _normal(c, 1, *kernel)}
    if bias:
        feed["b"] = _normal(c)
    return one_node_model("Conv", feed, ["w", "b"], {"group": c, **attributes}), feed


CASES: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((1, 1, 1, 1), (3, 3), {"pads": [1, 1, 1, 1]}),
    ((2, 3, 5, 7), (3, 3), {"pads": [1, 1, 1, 1]}),
    ((1, 17, 9, 14), (3, 3), {"pads": [0, 1, 1, 0], "strides": [2, 2]}),
    ((1, 24, 16, 16), (5, 5), {"pads": [2, 2, 2, 2], "strides": [2, 1]}),
    ((1, 130, 7, 7), (3, 3), {"pads": [1, 1, 1, 1]}),
    ((1, 33, 13, 40), (3, 3), {"pads": [2, 2, 2, 2], "dilations": [2, 2]}),
    ((1, 16, 8, 8), (8, 8), {}),
    ((1, 8, 6, 5), (3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ((1, 8, 6, 5), (2, 2), {"auto_pad": "SAME_LOWER"}),
    ((2, 20, 101), (9,), {"pads": [4, 4]}),
    ((1, 5, 50), (4,), {"pads": [3, 0], "strides": [3], "dilations": [2]}),
    ((1, 17, 90), (71,), {"pads": [35, 35]}),
    ((1, 18, 40, 3), (3, 3), {"pads": [4, 4, 4, 4], "dilations": [3, 1]}),
    ((1, 2, 112, 113), (3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),  # strips, an odd width in phases
    ((2, 3, 70, 100), (5, 5), {"pads": [2, 2, 2, 2]}),
    ((1, 3, 31, 7), (3, 3), {"pads": [1, 1, 1, 1], "strides": [1, 3]}),
    ((1, 3, 23, 2), (3, 2), {"pads": [1, 1, 1, 1], "strides": [1, 2], "dilations": [2, 1]}),
]


LAYOUTS = pytest.mark.parametrize("layout", ["cl", "row"])


@LAYOUTS
@pytest.mark.parametrize(("shape", "kernel", "attributes"), CASES)
def test_against_onnxruntime(
    shape: tuple[int, ...], kernel: tuple[int, ...], attributes: dict[str, Any], layout: Layout
) -> None:
    model, feed = _conv(shape, kernel, **attributes)
    (wanted,) = reference(model, feed)
    (found,) = lower_and_run(model, feed, layout=layout)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-5)


@LAYOUTS
@pytest.mark.parametrize("size", [(9, 30), (7, 7), (14, 5)])
@pytest.mark.parametrize("target", ["x86-avx2", "x86-avx512", "arm"])
def test_every_target(target: str, size: tuple[int, int], layout: Layout) -> None:
    model, feed = _conv((1, 40, *size), (3, 3), bias=False, pads=[1, 1, 1, 1])
    (found,) = lower_and_run(model, feed, NAMED[target], layout)
    np.testing.assert_allclose(found, reference(model, feed)[0], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("activation", "layout"), [*((a, "cl") for a in sorted(ACTIVATIONS)), ("clip", "row"), ("gelu", "row")]
)
def test_fused_epilogue(activation: str, layout: Layout) -> None:
    params = {"clip": (-0.5, 1.25), "leakyrelu": (0.1,), "hardsigmoid": (0.25, 0.4)}.get(activation, ())
    plain, feed = _conv((1, 19, 6, 10), (3, 3), pads=[1, 1, 1, 1])
    skip = _normal(1, 19, 6, 10)
    wanted = ACTIVATIONS[activation](reference(plain, feed)[0].astype(np.float64) + skip, params)

    model = _fused(feed, {"pads": [1, 1, 1, 1]}, activation=activation, act_params=params)
    (found,) = lower_and_run(model, {"x": feed["x"], "residual": skip}, layout=layout)
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


def _value(name: str, array: np.ndarray, constant: bool = False) -> ir.Value:
    data = ir.tensor(array, name=name) if constant else None
    kind = ir.TensorType(ir.DataType.FLOAT)
    return ir.Value(name=name, shape=ir.Shape(array.shape), type=kind, const_value=data)


def _fused(
    feed: dict[str, np.ndarray], geometry: dict[str, Any], scheme: str = "fp32", residual: bool = True, **fields: Any
) -> ir.Model:
    """A model of one sparsec::Conv with bias and residual over the arrays of `_conv`."""
    c, _, *kernel = feed["w"].shape
    matrix = feed["w"].reshape(c, -1)
    weight = ops.weight_inputs(matrix if scheme == "fp32" else encode(matrix, Scheme.parse(scheme)), "w")
    x, bias = _value("x", feed["x"]), _value("b", feed["b"], constant=True)
    probe = ops.conv(x, weight, kernel_shape=kernel, group=c, **geometry)
    skip = ir.Value(name="residual", shape=probe.output.shape, type=ir.TensorType(ir.DataType.FLOAT))
    built = ops.conv(
        x,
        weight,
        kernel_shape=kernel,
        group=c,
        bias=bias,
        residual=skip if residual else None,
        name="conv",
        **geometry,
        **fields,
    )
    inputs = [x, skip] if residual else [x]
    graph = ir.Graph(inputs, [built.output], nodes=[built.node], opset_imports={"": 18}, initializers=[bias])
    model = ir.Model(graph, ir_version=10)
    built.register(model)
    return model


SCHEMES = [
    "int8", "vq2d2", "vq2d4-c", "nf4", "uint4-g3", "cb4", "cb3.r4", "ternary", "fp16", "s50", "s2:4-int8", "s16x1@50-cb4", "s4x3@50-cb4-g9",
]  # fmt: skip


def _prune(weight: np.ndarray, scheme: Scheme) -> None:
    """Zero blocks in place at random, or all but the first N of each M."""
    matrix = weight.reshape(weight.shape[0], -1)
    if isinstance(scheme.structure, NM):
        for at in range(scheme.structure.n):
            matrix[:, at :: scheme.structure.m] = 0
        return
    r, c = scheme.block
    for row in range(0, matrix.shape[0], r):
        for col in range(0, matrix.shape[1], c):
            if np.random.default_rng().random() < 0.5:
                matrix[row : row + r, col : col + c] = 0


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("channels", "layout"), [(5, "cl"), (150, "cl"), (150, "row")])
def test_coded_weights(scheme: str, channels: int, layout: Layout) -> None:
    shape, geometry = (2, channels, 6, 9), {"pads": [1, 1, 1, 1], "strides": [1, 2]}
    _, feed = _conv(shape, (3, 3), **geometry)
    if not Scheme.parse(scheme).structure.is_dense:
        _prune(feed["w"], Scheme.parse(scheme))
    model = _fused(feed, geometry, scheme, residual=False, activation="relu")
    model.graph.outputs[0].name = "y"
    (wanted,) = reference(model, feed)
    (found,) = lower_and_run(model, feed, layout=layout)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_refusals_name_the_reason() -> None:
    def reasons(model: ir.Model) -> str:
        kept, TABLE["", "Conv"] = TABLE["", "Conv"], (lower_depthwise,)
        try:
            return " ".join(refusals(model))
        finally:
            TABLE["", "Conv"] = kept

    feed = {"x": _normal(1, 4, 5, 5), "w": _normal(8, 1, 3, 3)}
    assert "8 filters for 4 channels" in reasons(one_node_model("Conv", feed, ["w"], {"group": 4}))
    feed["w"] = _normal(4, 2, 3, 3)
    assert "group 2, 4 channels" in reasons(one_node_model("Conv", feed, ["w"], {"group": 2}))
    feed["w"] = _normal(4, 1, 3, 3)
    assert "not constant" in reasons(one_node_model("Conv", feed, [], {"group": 4}))
    feed = {"x": _normal(1, 4, 5, 5, 5), "w": _normal(4, 1, 3, 3, 3)}
    assert "3-D" in reasons(one_node_model("Conv", feed, ["w"], {"group": 4}))
