"""Convolution of every geometry against onnxruntime running the node's function body."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from sparsec import ops
from sparsec.formats import Scheme, encode
from sparsec.target import NAMED, Target, host_target
from tests.kernels.programs import lower_and_run, reference
from tests.kernels.test_decode import keep_mask

Array = np.ndarray[Any, Any]


def build(make: Any, feeds: dict[str, Array], outputs: tuple[int, ...]) -> ir.Model:
    """A model of one sparsec node made by `make(values)` on float32 inputs."""
    values = {
        name: ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.FLOAT))
        for name, array in feeds.items()
    }
    built = make(values)
    built.output.shape = ir.Shape(outputs)
    built.output.type = ir.TensorType(ir.DataType.FLOAT)
    built.output.name = "y"
    graph = ir.Graph(list(values.values()), [built.output], nodes=[built.node], opset_imports={"": 20}, name="one")
    model = ir.Model(graph, ir_version=10)
    built.register(model)
    return model


def constant(name: str, array: Array) -> ir.Value:
    """An initializer."""
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)


def check_conv(
    scheme: str,
    x: tuple[int, ...],
    filters: int,
    kernel: tuple[int, ...],
    *,
    residual: bool = False,
    act: str = "",
    target: Target | None = None,
    error: float = 3e-6,
    **geometry: Any,
) -> None:
    """Random image and weight in `scheme`, with bias; `error`: of the largest result, at most."""
    rng = np.random.default_rng([*x, filters, *kernel])
    group = geometry.get("group", 1)
    cols = x[1] // group * int(np.prod(kernel))
    parsed = Scheme.parse(scheme)
    weight: Any = rng.normal(size=(filters, cols)).astype(np.float32)
    if scheme != "fp32":
        weight = encode(weight, parsed, mask=keep_mask(parsed, filters, cols, rng))
    pads = geometry.get("pads", [0] * 2 * len(kernel))
    strides, dilations = geometry.get("strides", [1] * len(kernel)), geometry.get("dilations", [1] * len(kernel))
    spatial = tuple(
        (x[2 + d] + pads[d] + pads[d + len(kernel)] - dilations[d] * (kernel[d] - 1) - 1) // strides[d] + 1
        for d in range(len(kernel))
    )
    shape = (x[0], filters, *spatial)
    feeds = {"x": rng.normal(size=x).astype(np.float32)}
    if residual:
        feeds["r"] = rng.normal(size=shape).astype(np.float32)
    bias = constant("bias", rng.normal(size=filters).astype(np.float32))

    def make(values: dict[str, ir.Value]) -> Any:
        return ops.conv(
            values["x"], ops.weight_inputs(weight, "w"), kernel_shape=kernel, bias=bias, residual=values.get("r"),
            activation=act, name="conv", **geometry,
        )  # fmt: skip

    model = build(make, feeds, shape)
    if bias.name not in model.graph.initializers:
        model.graph.register_initializer(bias)
    (want,) = reference(model, feeds)
    (got,) = lower_and_run(model, feeds, target or host_target())
    assert np.abs(got - want).max() <= error * np.abs(want).max()


def test_geometries_fp32() -> None:
    check_conv("fp32", (1, 3, 17, 19), 5, (3, 3), pads=[1, 1, 1, 1])
    check_conv("fp32", (2, 7, 9, 8), 33, (1, 1))
    check_conv("fp32", (1, 16, 14, 14), 32, (3, 3), pads=[1, 1, 1, 1], residual=True, act="relu")
    check_conv("fp32", (1, 4, 15, 11), 6, (5, 2), strides=[2, 3], pads=[2, 0, 1, 3])
    check_conv("fp32", (1, 4, 12, 12), 6, (3, 3), dilations=[2, 3], pads=[2, 3, 2, 3])
    check_conv("fp32", (1, 8, 10, 10), 12, (1, 1), strides=[2, 2])
    check_conv("fp32", (1, 1, 1, 1), 1, (1, 1))


@pytest.mark.parametrize("target", ["x86-avx2", "x86-avx512", "arm"])
def test_dense_of_every_shape(target: str) -> None:
    machine = NAMED[target]
    same = {"pads": [1, 1, 1, 1], "target": machine}
    check_conv("fp32", (1, 256, 7, 7), 100, (3, 3), residual=True, act="relu", **same)  # spaced pixels, chunks of a tap
    check_conv("fp32", (2, 130, 6, 9), 65, (3, 3), act="gelu", **same)  # several chunks, a costly activation
    check_conv("fp32", (1, 64, 15, 13), 48, (3, 3), strides=[2, 2], **same)
    check_conv("fp32", (1, 24, 20, 9), 40, (3, 3), dilations=[2, 2], pads=[2, 2, 2, 2], target=machine)
    check_conv(
        "fp32", (1, 3, 40, 37), 33, (7, 7), strides=[2, 2], pads=[3, 3, 3, 3], target=machine
    )  # a stem, from planes
    check_conv("fp32", (2, 1, 9, 5), 7, (5, 5), pads=[4, 0, 0, 4], target=machine)
    check_conv("fp32", (1, 40, 4, 4), 50, (3, 3), pads=[3, 3, 3, 3], strides=[3, 3], target=machine)
    check_conv("fp32", (1, 96, 14, 14), 33, (1, 1), strides=[2, 2], target=machine)
    check_conv("fp32", (1, 300, 7, 7), 20, (1, 1), residual=True, target=machine)
    check_conv("fp32", (3, 20, 2, 2), 20, (1, 1), target=machine)
    check_conv("fp32", (1, 20, 61, 16), 20, (1, 1), target=machine)


@pytest.mark.parametrize("scheme", ["fp32", "int8", "cb4-g32", "s50", "s16x1@50-cb4-g32"])
def test_images_of_one_pixel_are_matrix_products(scheme: str) -> None:
    check_conv(scheme, (1, 96, 1, 1), 35, (1, 1), act="relu")
    check_conv(scheme, (3, 64, 1, 1), 48, (1, 1), residual=True)


def test_groups() -> None:
    check_conv("fp32", (1, 12, 9, 9), 8, (3, 3), group=4, pads=[1, 1, 1, 1])
    check_conv("fp32", (1, 12, 9, 9), 24, (1, 1), group=3)
    check_conv("cb4-g32", (1, 64, 5, 5), 40, (3, 3), group=2, pads=[1, 1, 1, 1])
    check_conv("s16x1@50-int8", (1, 8, 5, 5), 64, (3, 3), group=2)
    check_conv("s50-uint4-g8", (1, 6, 5, 5), 9, (3, 3), group=3)
    check_conv("fp32", (1, 4, 9, 9), 8, (3, 3), group=4)  # channel multiplier 2


def test_one_dimension() -> None:
    check_conv("fp32", (2, 5, 37), 11, (7,), strides=[3], pads=[2, 4])
    check_conv("cb3", (1, 5, 37), 11, (3,), dilations=[2])


@pytest.mark.parametrize(
    "scheme", ["int8", "cb4-g32", "s50", "s2:4", "s16x1@50-cb4-g32", "s4x4@50-int4-g32", "vq2d4-c", "s4x4@50-vq3d4"]
)
def test_schemes_keep_the_order_of_taps(scheme: str) -> None:
    check_conv(scheme, (1, 13, 7, 9), 35, (3, 3), pads=[1, 1, 1, 1], act="relu6")
