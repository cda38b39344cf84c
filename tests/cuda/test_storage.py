"""Which values a GPU program keeps in halves, and where they lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper, shape_inference

from sparsec.codegen.lower import lower
from sparsec.codegen.plan import check_plan, make_plan
from sparsec.codegen.program import Program
from sparsec.target import resolve_target
from tests.cuda.programs import run_gpu_program
from tests.kernels.programs import reference

Array = np.ndarray[Any, Any]


def model(nodes: list[tuple[str, str, str, dict[str, Any]]], shape: list[int], constants: dict[str, Array]) -> ir.Model:
    """Nodes "op, inputs, output, attributes" from `x` float32 to `y`."""
    made = [
        helper.make_node(op, ins.split(), outs.split(), name=f"{op}{i}", **attributes)
        for i, (op, ins, outs, attributes) in enumerate(nodes)
    ]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return ir.from_proto(shape_inference.infer_shapes(proto, data_prop=True))


def arena_types(program: Program) -> dict[str, str]:
    return {buffer.name: buffer.dtype for buffer in program.buffers if buffer.kind == "arena"}


def lowered(source: ir.Model, target: str = "cuda") -> Program:
    program = lower(source, resolve_target(target), "test")
    check_plan(program, make_plan(program))
    return program


SOFTMAX_TWICE = [("Softmax", "x", "a", {}), ("Softmax", "a", "y", {})]


@pytest.mark.parametrize(("target", "stored"), [("cuda", "float16"), ("cuda:bf16", "bfloat16")])
def test_between_kernels_values_are_halves(target: str, stored: str) -> None:
    source = model(SOFTMAX_TWICE, [3, 40], {})
    program = lowered(source, target)
    assert arena_types(program) == {"a": stored}
    assert [step.spec.storage for step in program.steps] == [("float32", stored), (stored, "float32")]
    x = np.random.default_rng().normal(size=(3, 40)).astype(np.float32)
    np.testing.assert_allclose(run_gpu_program(program, {"x": x})["y"], reference(source, {"x": x})[0], rtol=4e-3)


def test_views_are_found_again() -> None:
    nodes = [
        ("Softmax", "x", "a", {}),
        ("Split", "a sizes", "b c", {"axis": 0}),
        ("Softmax", "c", "y", {}),
    ]
    source = model(nodes, [5, 8], {"sizes": np.array([2, 3])})
    program = lowered(source)
    assert program.steps[-1].refs[0].byte_offset == 2 * 8 * 2
    x = np.random.default_rng().normal(size=(5, 8)).astype(np.float32)
    np.testing.assert_allclose(run_gpu_program(program, {"x": x})["y"], reference(source, {"x": x})[0], rtol=4e-3)


def test_angles_stay_float32() -> None:
    nodes = [("Mul", "x f", "a", {}), ("Sin", "a", "b", {}), ("Cos", "a", "c", {}), ("Add", "b c", "d", {})]
    program = lowered(model([*nodes, ("Softmax", "d", "y", {})], [1, 70], {"f": np.array([900.0], np.float32)}))
    types = arena_types(program)
    assert types.pop("a") == "float32"
    assert set(types.values()) == {"float16"}


def test_sums_of_squares_stay_float32() -> None:
    nodes = [
        ("Softmax", "x", "s", {}), ("Pow", "s two", "a", {}), ("ReduceSum", "a axes", "b", {}), ("Sqrt", "b", "c", {}),
        ("Div", "s c", "d", {}), ("Softmax", "d", "y", {}),
    ]  # fmt: skip
    source = model(nodes, [3, 50], {"two": np.array(2.0, np.float32), "axes": np.array([1])})
    assert {k: v for k, v in arena_types(lowered(source)).items() if v == "float32"} == {
        "a": "float32",
        "b": "float32",
    }
    assert set(arena_types(lowered(source, "cuda:bf16")).values()) == {"bfloat16"}


def test_values_that_float16_cannot_hold_stay_float32() -> None:
    nodes = [
        ("Mul", "x low", "mask", {}), ("Transpose", "mask", "turned", {"perm": [1, 0]}), ("Transpose", "turned", "back", {"perm": [1, 0]}),
        ("Add", "x back", "scores", {}), ("Softmax", "scores", "y", {}),
    ]  # fmt: skip
    source = model(nodes, [4, 9], {"low": np.array(-3.4e38, np.float32)})
    program = lowered(source)
    types = arena_types(program)
    assert types["mask"] == "float32"
    assert types.get("turned", "float32") == "float32"
    x = (np.random.default_rng().random((4, 9)) < 0.3).astype(np.float32)
    np.testing.assert_allclose(run_gpu_program(program, {"x": x})["y"], reference(source, {"x": x})[0], rtol=4e-3)


@pytest.mark.parametrize(("target", "stored"), [("cuda", "float16"), ("cuda:bf16", "bfloat16")])
def test_what_relax_reads_and_writes_is_float32(target: str, stored: str) -> None:
    nodes = [
        ("Softmax", "x", "a", {}), ("Softmax", "a", "b", {}), ("LRN", "b", "c", {"size": 3}), ("Softmax", "c", "y", {}),
    ]  # fmt: skip
    source = model(nodes, [1, 5, 3, 7], {})
    program = lowered(source, target)
    found = arena_types(program)
    assert found.pop("a") == stored
    assert {"b", "c"} < set(found)
    assert set(found.values()) == {"float32"}
    x = np.random.default_rng().normal(size=(1, 5, 3, 7)).astype(np.float32)
    tolerance = 0.03 if stored == "bfloat16" else 4e-3
    np.testing.assert_allclose(run_gpu_program(program, {"x": x})["y"], reference(source, {"x": x})[0], rtol=tolerance)
