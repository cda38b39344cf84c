"""Products without tensor cores, in float32: few inputs, every order of operands, panels of constant weights; in the simulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec.codegen.lower import lower
from sparsec.target import resolve_target
from tests.cuda.programs import run_gpu_program
from tests.kernels.nodes import node_model
from tests.kernels.programs import reference

Array = np.ndarray[Any, Any]


@pytest.mark.parametrize(
    "shapes", [((3, 5, 7), (3, 7, 4)), ((2, 1, 5, 1), (3, 1, 4)), ((5, 7), (2, 7, 9)), ((7,), (7, 3)), ((2, 1), (1, 3))]
)
def test_few_inputs(shapes: tuple[tuple[int, ...], tuple[int, ...]], rng: np.random.Generator) -> None:
    feed = {name: rng.normal(size=shape).astype(np.float32) for name, shape in zip("ab", shapes, strict=True)}
    program = lower(node_model("MatMul", feed), resolve_target("cuda"), "test")
    assert [step.spec.family for step in program.steps] == ["cuda.product"]
    (found,) = run_gpu_program(program, feed).values()
    wanted = np.matmul(feed["a"].astype(np.float64), feed["b"].astype(np.float64))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_orders(trans_a: int, trans_b: int, rng: np.random.Generator) -> None:
    shapes = {"a": (5, 6) if trans_a else (6, 5), "b": (11, 5) if trans_b else (5, 11), "c": (6, 11)}
    feed = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    program = lower(node_model("Gemm", feed, transA=trans_a, transB=trans_b), resolve_target("cuda"), "test")
    assert [step.spec.family for step in program.steps] == ["cuda.product"]
    (found,) = run_gpu_program(program, feed).values()
    left, right = feed["a"].T if trans_a else feed["a"], feed["b"].T if trans_b else feed["b"]
    np.testing.assert_allclose(found, left.astype(np.float64) @ right + feed["c"], rtol=0, atol=1e-5)


def test_panels_of_a_constant(rng: np.random.Generator) -> None:
    """The inputs of a recurrent layer."""
    shapes = {"x": (3, 2, 5), "w": (1, 7, 5), "r": (1, 7, 7)}
    feed = {name: rng.normal(size=shape).astype(np.float32) / 3 for name, shape in shapes.items()}
    model = node_model("RNN", feed, ("w", "r"), hidden_size=7)
    program = lower(model, resolve_target("cuda"), "test")
    assert "cuda.product" in [step.spec.family for step in program.steps]
    found = run_gpu_program(program, {"x": feed["x"]})
    np.testing.assert_allclose(next(iter(found.values())), reference(model, feed)[0], rtol=0, atol=4e-3)
