"""Elementwise operators and fused chains against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, shape_inference

from sparsec.codegen.lower import lower
from sparsec.target import host_target
from tests.kernels.programs import lower_and_run, one_node_model, reference

Array = np.ndarray[Any, Any]
FLOAT = (
    *(
        "Abs",
        "Ceil",
        "Celu",
        "Cos",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Mish",
    ),
    *("Neg", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Tanh"),
)
BINARY = ("Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu")


def _normal(*shape: int) -> Array:
    return np.random.default_rng([*shape, 3]).normal(size=shape).astype(np.float32)


def _graph(nodes: list[Any], feed: dict[str, Array], outputs: dict[str, int]) -> ir.Model:
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feed.items()
    ]
    results = [helper.make_tensor_value_info(n, kind, None) for n, kind in outputs.items()]
    graph = helper.make_graph(nodes, "chain", infos, results)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ir.from_proto(shape_inference.infer_shapes(proto, strict_mode=True))


def _agree(model: ir.Model, feed: dict[str, Array]) -> None:
    for found, wanted in zip(lower_and_run(model, feed), reference(model, feed), strict=True):
        assert found.shape == wanted.shape
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=3e-6, atol=2e-6)


@pytest.mark.parametrize("op", FLOAT)
def test_float_operators(op: str) -> None:
    x = np.concatenate([_normal(1, 70), np.array([[0.0, -0.5, 30.0, -30.0, 1e-3]], np.float32)], 1)
    if op in ("Sqrt", "Reciprocal"):
        x = np.abs(x) + np.float32(0.1)
    opset = 20 if op in ("Gelu",) else 18
    _agree(one_node_model(op, {"x": x}, opset=opset), {"x": x})


SHAPES = [((3, 17), (3, 17)), ((2, 3, 5), (5,)), ((4, 1, 3), (4, 7, 1)), ((1,), (33,)), ((2, 5, 6), (5, 1))]


@pytest.mark.parametrize(
    ("op", "a", "b"),
    # PRelu broadcasts its slope only
    [(op, a, b) for op in BINARY for a, b in SHAPES if op != "PRelu" or np.broadcast_shapes(a, b) == a],
    ids=str,
)
def test_broadcasting(op: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    feed = {"a": _normal(*a), "b": _normal(*b) + np.float32(3)}
    _agree(one_node_model(op, feed), feed)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 4095, 4097, 9001])
def test_block_edges(n: int) -> None:
    feed = {"a": _normal(n), "b": _normal(n)}
    _agree(one_node_model("Add", feed), feed)


@pytest.mark.parametrize("kind", ["int64", "int32", "float32"])
def test_comparisons_and_where(kind: str) -> None:
    rng = np.random.default_rng(4)
    feed = {"a": rng.integers(0, 3, (5, 37)).astype(kind), "b": rng.integers(0, 3, (37,)).astype(kind)}
    nodes = [
        helper.make_node("Less", ["a", "b"], ["c"]),
        helper.make_node("Equal", ["a", "b"], ["d"]),
        helper.make_node("Or", ["c", "d"], ["e"]),
        helper.make_node("Not", ["e"], ["f"]),
        helper.make_node("Where", ["f", "a", "b"], ["y"]),
    ]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    _agree(_graph(nodes, feed, {"y": element, "f": TensorProto.BOOL}), feed)


@pytest.mark.parametrize("op", ["And", "Or", "Xor", "Equal"])
@pytest.mark.parametrize("n", [1, 37])
def test_logic(op: str, n: int) -> None:
    rng = np.random.default_rng(n)
    feed = {"a": rng.integers(0, 2, (5, n)).astype(bool), "b": rng.integers(0, 2, (5, n)).astype(bool)}
    nodes = [helper.make_node(op, ["a", "b"], ["y"])]
    _agree(_graph(nodes, feed, {"y": TensorProto.BOOL}), feed)


@pytest.mark.parametrize("source", ["float32", "int64", "int32", "bool", "uint8"])
@pytest.mark.parametrize("dest", ["float32", "int64", "int32", "bool"])
def test_cast(source: str, dest: str) -> None:
    feed = {"x": np.random.default_rng(5).integers(0, 3, 50).astype(source)}
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dest))
    _agree(_graph([helper.make_node("Cast", ["x"], ["y"], to=kind)], feed, {"y": kind}), feed)


def test_a_chain_is_one_kernel_and_shared_values_are_not_recomputed() -> None:
    feed = {"x": _normal(3, 50), "b": _normal(50)}
    chain = [
        helper.make_node("Add", ["x", "b"], ["a"]),
        helper.make_node("Sigmoid", ["a"], ["s"]),
        helper.make_node("Mul", ["s", "x"], ["y"]),
    ]
    model = _graph(chain, feed, {"y": TensorProto.FLOAT})
    assert len(lower(model, host_target(), "chain").steps) == 1
    _agree(model, feed)
    shared = [*chain, helper.make_node("Exp", ["a"], ["z"])]
    model = _graph(shared, feed, {"y": TensorProto.FLOAT, "z": TensorProto.FLOAT})
    assert len(lower(model, host_target(), "shared").steps) == 3
    _agree(model, feed)


def test_isnan_and_clip() -> None:
    feed = {"x": np.array([1, np.nan, -np.inf, np.inf, 5, -7] * 5, np.float32)}
    _agree(_graph([helper.make_node("IsNaN", ["x"], ["y"])], feed, {"y": TensorProto.BOOL}), feed)
    clip = {"x": _normal(41), "lo": np.float32(-0.5).reshape(()), "hi": np.float32(0.75).reshape(())}
    _agree(one_node_model("Clip", clip, ["lo", "hi"]), {"x": clip["x"]})


@pytest.mark.parametrize("op", ["Abs", "Celu", "Elu", "HardSigmoid", "LeakyRelu", "Relu", "Selu", "Sign", "Sqrt"])
def test_nan_and_infinity_pass_through(op: str) -> None:
    x = np.array([np.nan, np.inf, 0.0, 1.0, *[np.nan, 2.0] * 20], np.float32)
    _agree(one_node_model(op, {"x": x}, opset=18), {"x": x})


@pytest.mark.parametrize("op", ["Max", "Min"])
def test_nan_in_either_operand_of_an_extreme(op: str) -> None:
    a = np.array([np.nan, 1.0, np.nan, 2.0] * 9, np.float32)
    feed = {"a": a, "b": np.roll(a, 1)}
    _agree(one_node_model(op, feed), feed)


@pytest.mark.parametrize("constants", [(), ("lo",), ("hi",)], ids=str)
@pytest.mark.parametrize(("lo", "hi"), [(-0.5, 0.75), (0.75, -0.5)])
def test_clip_with_computed_bounds(constants: tuple[str, ...], lo: float, hi: float) -> None:
    feed = {"x": _normal(3, 41), "lo": np.asarray(lo, np.float32), "hi": np.asarray(hi, np.float32)}
    _agree(one_node_model("Clip", feed, constants), feed)


@pytest.mark.parametrize("kind", ["int64", "int32", "float32", "float16"])
@pytest.mark.parametrize("exponent", [1, 2, 3])
def test_small_constant_powers(kind: str, exponent: int) -> None:
    feed = {"x": np.arange(-16, 19).astype(kind), "e": np.asarray(exponent, np.int64)}
    _agree(one_node_model("Pow", feed, ["e"]), feed)


def test_power_of_whole_exponents() -> None:
    feed = {"x": np.abs(_normal(5, 21)), "e": np.random.default_rng(6).integers(-9, 9, (5, 21))}
    _agree(one_node_model("Pow", feed), feed)


@pytest.mark.parametrize("op", ["Add", "Mul", "Sub"])
def test_half_precision(op: str) -> None:
    feed = {"a": _normal(5, 37).astype(np.float16), "b": _normal(37).astype(np.float16)}
    _agree(one_node_model(op, feed), feed)


def test_half_precision_chains_are_computed_in_single_precision() -> None:
    feed = {"x": _normal(5, 37).astype(np.float16)}
    nodes = [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Mul", ["x", "s"], ["y"])]
    (found,) = lower_and_run(_graph(nodes, feed, {"y": TensorProto.FLOAT16}), feed)
    x = feed["x"].astype(np.float64)
    np.testing.assert_array_equal(found, (x / (1 + np.exp(-x))).astype(np.float16))


def test_a_cast_to_half_precision_inside_a_chain_rounds() -> None:
    feed = {"x": _normal(53)}
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["h"], ["y"], to=TensorProto.FLOAT),
    ]
    (found,) = lower_and_run(_graph(nodes, feed, {"y": TensorProto.FLOAT}), feed)
    np.testing.assert_array_equal(found, feed["x"].astype(np.float16).astype(np.float32))
