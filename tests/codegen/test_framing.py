"""Zeros around images between a convolution of few channels and the depthwise convolution behind it, against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from sparsec import ops
from sparsec.codegen.lower import lower
from sparsec.codegen.plan import check_plan, make_plan
from sparsec.target import NAMED
from tests.kernels.programs import reference, run_program

Array = np.ndarray[Any, Any]


def model_of(
    shape: tuple[int, ...], filters: int, *, stride: int = 1, pad: int = 1, show: bool = False
) -> tuple[ir.Model, dict[str, Array]]:
    """x -> 3x3 convolution -> 3x3 depthwise convolution -> y; `show`: what lies between is an output, too."""
    rng = np.random.default_rng()
    feed = {"x": rng.normal(size=shape).astype(np.float32)}
    x = ir.Value(name="x", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
    first = ops.weight_inputs(rng.normal(size=(filters, shape[1] * 9)).astype(np.float32), "first")
    second = ops.weight_inputs(rng.normal(size=(filters, 9)).astype(np.float32), "second")
    fields: dict[str, Any] = {"kernel_shape": (3, 3), "activation": "relu"}
    a = ops.conv(x, first, name="stem", strides=(2, 2), pads=(1, 1, 1, 1), **fields)
    b = ops.conv(
        a.output, second, name="filter", group=filters, strides=(stride, stride), pads=(pad, pad, pad, pad), **fields
    )
    graph = ir.Graph([x], [b.output, a.output] if show else [b.output], nodes=[a.node, b.node], opset_imports={"": 18})
    model = ir.Model(graph, ir_version=10)
    a.register(model)
    b.register(model)
    return model, feed


def framed(shape: tuple[int, ...], filters: int, **options: Any) -> bool:
    """Whether the image between the convolutions has a frame; both give what onnxruntime gives."""
    model, feed = model_of(shape, filters, **options)
    program = lower(model, NAMED["x86-avx2"], "test", dict.fromkeys(model.graph, "row"))
    check_plan(program, make_plan(program))
    assert [step.spec.family for step in program.steps] == ["planar", "depthwise"]
    for found, wanted in zip(run_program(program, feed), reference(model, feed), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * max(1.0, float(np.abs(wanted).max())))
    has = ["frame" in step.spec.params for step in program.steps]
    assert has[0] == has[1]
    return has[0]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pad", [0, 1, 2])
def test_depthwise_convolutions_read_images_with_zeros_around_them(stride: int, pad: int) -> None:
    assert framed((2, 3, 29, 64), 6, stride=stride, pad=pad)


def test_what_keeps_images_as_they_are() -> None:
    assert not framed((1, 3, 20, 30), 5)  # rows of 15
    assert not framed((1, 3, 20, 32), 5, show=True)  # an output
    assert not framed((1, 3, 20, 48), 5, stride=3)
