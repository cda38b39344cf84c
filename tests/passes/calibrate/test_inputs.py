"""The rows of a layer's product, against onnxruntime's convolution and plain reshapes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from sparsec.passes.calibrate.inputs import layer_rows, output_rows
from sparsec.passes.weights import Use
from sparsec.reference import Reference


def convolution(
    channels: int, out: int, kernel: tuple[int, ...], size: tuple[int, ...], **attributes: object
) -> ir.Model:
    group = int(attributes.get("group", 1))  # type: ignore[call-overload]
    x = ir.Value(name="x", shape=ir.Shape((2, channels, *size)), type=ir.TensorType(ir.DataType.FLOAT))
    weight = np.random.default_rng(3).standard_normal((out, channels // group, *kernel)).astype(np.float32)
    w = ir.Value(
        name="w", const_value=ir.tensor(weight), shape=ir.Shape(weight.shape), type=ir.TensorType(ir.DataType.FLOAT)
    )
    node = ir.node("Conv", [x, w], attributes)
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 20}, name="g")
    node.outputs[0].name = "y"
    return ir.Model(graph, ir_version=10)


CASES = [
    (4, 6, (3, 3), (7, 5), {"pads": [1, 0, 2, 1]}),
    (6, 9, (3, 2), (9, 7), {"group": 3, "strides": [2, 1], "dilations": [2, 1], "pads": [1, 0, 2, 1]}),
    (5, 5, (3,), (11,), {"group": 5, "strides": [2]}),
    (2, 3, (1, 1), (4, 4), {}),
    (2, 4, (2, 1, 3), (4, 3, 5), {"group": 2, "dilations": [1, 1, 2]}),
]


@pytest.mark.parametrize(("channels", "out", "kernel", "size", "attributes"), CASES)
def test_patches_times_weights_are_the_convolution(
    channels: int, out: int, kernel: tuple[int, ...], size: tuple[int, ...], attributes: dict[str, object]
) -> None:
    model = convolution(channels, out, kernel, size, **attributes)
    node = next(iter(model.graph))
    x = np.random.default_rng(0).standard_normal((2, channels, *size)).astype(np.float32)
    parts = layer_rows(Use(node, 1, "Conv", False), x, 10**6, 0)
    weight = model.graph.initializers["w"].const_value
    assert weight is not None
    groups = len(parts)
    assert groups == attributes.get("group", 1)
    split = np.split(weight.numpy().reshape(out, -1), groups)
    found = np.concatenate([part @ w.T for part, w in zip(parts, split, strict=True)], axis=1)
    wanted = np.moveaxis(Reference(model).run({"x": x})["y"], 1, -1).reshape(-1, out)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_limit_takes_the_same_rows_for_the_same_seed() -> None:
    model = convolution(4, 6, (3, 3), (9, 9))
    use = Use(next(iter(model.graph)), 1, "Conv", False)
    x = np.random.default_rng(0).standard_normal((2, 4, 9, 9)).astype(np.float32)
    (every,) = layer_rows(use, x, 10**6, 0)
    (some,) = layer_rows(use, x, 20, 5)
    assert some.shape == (20, 36)
    assert {row.tobytes() for row in some} <= {row.tobytes() for row in every}
    assert np.array_equal(some, layer_rows(use, x, 20, 5)[0])
    assert not np.array_equal(some, layer_rows(use, x, 20, 6)[0])


def test_products_read_the_last_axis() -> None:
    node = ir.node("MatMul", [ir.Value(name="x"), ir.Value(name="w")])
    x = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
    (rows,) = layer_rows(Use(node, 1, "MatMul", True), x, 100, 0)
    assert np.array_equal(rows, x.reshape(6, 4))


def test_padding_does_not_count() -> None:
    node = ir.node("MatMul", [ir.Value(name="x"), ir.Value(name="w")])
    x = np.arange(24.0, dtype=np.float32).reshape(1, 6, 4)
    mask = np.array([[1, 1, 0, 1, 0, 0]])
    (rows,) = layer_rows(Use(node, 1, "MatMul", True), x, 100, 0, mask)
    assert np.array_equal(rows, x[0, [0, 1, 3]])
    (rows,) = layer_rows(Use(node, 1, "MatMul", True), x[:, 0], 100, 0, mask)  # one row a sample: pooled
    assert np.array_equal(rows, x[0, :1])


@pytest.mark.parametrize(("channels", "out", "kernel", "size", "attributes"), CASES)
def test_output_rows_lie_where_the_inputs_do(
    channels: int, out: int, kernel: tuple[int, ...], size: tuple[int, ...], attributes: dict[str, object]
) -> None:
    model = convolution(channels, out, kernel, size, **attributes)
    use = Use(next(iter(model.graph)), 1, "Conv", False)
    x = np.random.default_rng(0).standard_normal((2, channels, *size)).astype(np.float32)
    y = Reference(model).run({"x": x})["y"]
    weight = model.graph.initializers["w"].const_value
    assert weight is not None
    parts = layer_rows(use, x, 5, 3)
    split = np.split(weight.numpy().reshape(out, -1), len(parts))
    expected = np.concatenate([part @ w.T for part, w in zip(parts, split, strict=True)], 1)
    np.testing.assert_allclose(output_rows(use, y, 5, 3), expected, atol=1e-4)


def test_output_rows_without_padding() -> None:
    node = ir.node("MatMul", [ir.Value(name="x"), ir.Value(name="w")])
    y, mask = np.arange(24, dtype=np.float32).reshape(1, 6, 4), np.array([[1, 1, 0, 1, 0, 0]])
    assert np.array_equal(output_rows(Use(node, 1, "MatMul", True), y, 10, 0, mask), y[0, [0, 1, 3]])
