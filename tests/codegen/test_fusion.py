"""Which elementwise nodes are computed inside their reader's kernel, and that the result is the same either way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper, shape_inference

from sparsec.codegen.context import Lowering
from sparsec.codegen.fusion import deferred_nodes
from sparsec.codegen.lower import lower
from sparsec.target import host_target
from tests.kernels.programs import Array, reference, run_program

node = helper.make_node


def graph(
    nodes: Sequence[Any], feed: dict[str, Array], outputs: Sequence[str] = ("y",), **constants: Array
) -> ir.Model:
    """float32 outputs; every node is named after its output."""
    for n in nodes:
        n.name = n.output[0]
    infos = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in feed.items()
    ]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    weights = [numpy_helper.from_array(v, k) for k, v in constants.items()]
    made = helper.make_graph(nodes, "chain", infos, results, weights)
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ir.from_proto(shape_inference.infer_shapes(proto, strict_mode=True))


def deferred(model: ir.Model) -> set[str]:
    low = Lowering(model, host_target(), "test")
    return {n.name or "" for n in deferred_nodes(low)}


def check(model: ir.Model, feed: dict[str, Array], inside: set[str], steps: int) -> None:
    """`inside` are deferred, `steps` kernels are left, and onnxruntime agrees."""
    assert deferred(model) == inside
    program = lower(model, host_target(), "test")
    assert len(program.steps) == steps, [s.note for s in program.steps]
    for found, wanted in zip(run_program(program, feed), reference(model, feed), strict=True):
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=3e-6, atol=2e-6)


def x(*shape: int) -> Array:
    return np.random.default_rng([*shape, 5]).normal(size=shape).astype(np.float32)


def test_a_chain_becomes_one_kernel() -> None:
    feed = {"x": x(3, 37)}
    nodes = [node("Neg", ["x"], ["a"]), node("Exp", ["a"], ["b"]), node("Add", ["b", "x"], ["y"])]
    check(graph(nodes, feed), feed, {"a", "b"}, 1)


def test_both_operands_of_a_reader_are_computed_in_it() -> None:
    feed = {"x": x(3, 37)}
    nodes = [node("Neg", ["x"], ["a"]), node("Exp", ["x"], ["b"]), node("Add", ["a", "b"], ["y"])]
    check(graph(nodes, feed), feed, {"a", "b"}, 1)


def test_a_node_read_twice_by_the_same_reader_is_computed_once() -> None:
    feed = {"x": x(3, 37)}
    model = graph([node("Exp", ["x"], ["a"]), node("Mul", ["a", "a"], ["y"])], feed)
    check(model, feed, {"a"}, 1)
    (step,) = lower(model, host_target(), "test").steps
    assert [op["op"] for op in step.spec.params["ops"]] == ["Exp", "Mul"]


def test_a_value_with_two_readers_gets_a_kernel() -> None:
    feed = {"x": x(3, 37)}
    nodes = [node("Exp", ["x"], ["a"]), node("Neg", ["a"], ["y"]), node("Sqrt", ["a"], ["z"])]
    check(graph(nodes, feed, ["y", "z"]), feed, set(), 3)


def test_an_output_of_the_graph_gets_a_kernel() -> None:
    feed = {"x": x(3, 37)}
    nodes = [node("Exp", ["x"], ["a"]), node("Neg", ["a"], ["y"])]
    check(graph(nodes, feed, ["a", "y"]), feed, set(), 2)


def test_a_broadcast_value_is_not_recomputed_for_every_element() -> None:
    feed = {"x": x(1, 37), "w": x(5, 37)}
    nodes = [node("Exp", ["x"], ["a"]), node("Add", ["a", "w"], ["y"])]
    check(graph(nodes, feed), feed, set(), 2)


def test_a_reader_of_another_kind_ends_the_chain() -> None:
    feed = {"x": x(3, 37)}
    nodes = [
        node("Neg", ["x"], ["a"]),
        node("Exp", ["a"], ["b"]),
        node("Softmax", ["b"], ["c"]),
        node("Neg", ["c"], ["y"]),
    ]
    check(graph(nodes, feed), feed, {"a"}, 3)


def test_an_unread_node_is_not_deferred() -> None:
    feed = {"x": x(3, 37)}
    assert deferred(graph([node("Exp", ["x"], ["dead"]), node("Neg", ["x"], ["y"])], feed)) == set()


def test_clip_takes_its_value_in() -> None:
    feed = {"x": x(3, 37)}
    model = graph([node("Neg", ["x"], ["a"]), node("Clip", ["a", "lo"], ["y"])], feed, lo=np.array(-0.25, np.float32))
    check(model, feed, {"a"}, 1)


def test_a_computed_bound_of_clip_is_read_from_memory() -> None:
    feed = {"x": np.array(0.5, np.float32)}
    check(graph([node("Neg", ["x"], ["a"]), node("Clip", ["x", "a"], ["y"])], feed), feed, set(), 2)


def test_where_takes_its_condition_in() -> None:
    feed = {"x": x(3, 37), "w": x(3, 37)}
    nodes = [node("Less", ["x", "w"], ["a"]), node("Where", ["a", "x", "w"], ["y"])]
    check(graph(nodes, feed), feed, {"a"}, 1)


def test_what_no_chain_takes_is_left_to_its_own_rule() -> None:
    feed = {"x": x(3, 37).astype(np.float64)}  # a sine of float64 is not computed by chains
    nodes = [node("Sin", ["x"], ["a"]), node("Cast", ["a"], ["y"], to=TensorProto.FLOAT)]
    assert deferred(graph(nodes, feed)) == set()


def test_a_long_chain_of_channels_last_images() -> None:
    feed = {"x": x(1, 3, 5, 7), "w": x(3, 1, 1)}
    nodes = [node("Mul", ["x", "w"], ["a0"])]
    nodes += [node(("Tanh", "Neg", "Abs")[i % 3], [f"a{i}"], [f"a{i + 1}"]) for i in range(9)]
    nodes += [node("Add", ["a9", "x"], ["y"])]
    check(graph(nodes, feed), feed, {f"a{i}" for i in range(10)}, 1)
