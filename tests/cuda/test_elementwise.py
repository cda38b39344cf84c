"""Elementwise chains by runs of elements: whole runs, tails, broadcasts, addresses that are not aligned, every storage type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sparsec.codegen.program import KernelSpec
from sparsec.target import resolve_target
from tests.cuda.programs import lower_and_simulate, run_kernel, source_of
from tests.cuda.simulator import simulate
from tests.kernels.nodes import node_model
from tests.kernels.programs import reference

Array = np.ndarray[Any, Any]


def normal(*shape: int) -> Array:
    return np.random.default_rng().normal(size=shape).astype(np.float32)


def integers(*shape: int) -> Array:
    return np.random.default_rng().integers(0, 2**40, shape)


@pytest.mark.parametrize(
    ("op", "made"),
    [
        ("Add", lambda: {"a": normal(3, 5, 16), "b": normal(16)}),
        ("Add", lambda: {"a": normal(3, 5, 7), "b": normal(3, 1, 7)}),
        ("Mul", lambda: {"a": normal(2, 3, 8), "b": normal(2, 3, 1)}),
        ("Sub", lambda: {"a": normal(37), "b": normal(1)}),
        ("Greater", lambda: {"a": normal(5, 8), "b": normal(5, 8)}),
        ("Where", lambda: {"c": normal(3, 24) > 0, "a": normal(3, 24), "b": normal(24)}),
        ("Add", lambda: {"a": integers(29), "b": integers(29)}),
        ("Gelu", lambda: {"a": 3 * normal(1003)}),
        ("Sigmoid", lambda: {"a": 20 * normal(9)}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_operators(op: str, made: Callable[[], dict[str, Array]]) -> None:
    inputs = made()
    model = node_model(op, inputs)
    (wanted,), (found,) = reference(model, inputs), lower_and_simulate(model, inputs)
    assert found.dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-6)


def chain(shape: list[int], strides: list[int]) -> dict[str, Any]:
    """max(a * b, 0)"""
    size = int(np.prod(shape))
    ops = [
        {"op": "Mul", "args": [0, 1], "dtype": "float32", "attr": {}},
        {"op": "Relu", "args": [2], "dtype": "float32", "attr": {}},
    ]
    inputs = [
        {"dtype": "float32", "size": size, "strides": [shape[1], 1]},
        {"dtype": "float32", "size": shape[1], "strides": strides},
    ]
    return {"dtype": "float32", "shape": shape, "inputs": inputs, "ops": ops}


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("columns", [16, 13])
def test_storage(half: str, columns: int) -> None:
    a, b = normal(6, columns), normal(columns)
    (found,) = run_kernel(
        KernelSpec("cuda.elementwise", chain([6, columns], [0, 1]), (half, "float32", half)),
        [a, b],
        (half, "float32", half),
    )
    wanted = np.maximum(a.astype(found.dtype).astype(np.float32) * b, 0).astype(found.dtype)
    np.testing.assert_array_equal(found.reshape(a.shape), wanted)


def test_addresses_that_are_not_aligned() -> None:
    spec = KernelSpec("cuda.elementwise", chain([4, 16], [0, 1]), ("float16", "float32", "float16"))
    text, launch = source_of(spec, resolve_target("cuda"))
    a, b = normal(64).astype(np.float16), normal(16)
    found = simulate(text, "kernel", launch, [a, b, np.zeros(64, np.float16)], align=2)[2]
    np.testing.assert_array_equal(
        found, np.maximum(a.reshape(4, 16).astype(np.float32) * b, 0).astype(np.float16).reshape(-1)
    )
