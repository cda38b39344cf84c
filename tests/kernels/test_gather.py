"""Gathers, scatters and OneHot against onnxruntime; out-of-range indices are errors, never clamped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec.codegen.kernels.indices import OUT_OF_RANGE
from tests.kernels.harness import run_kernel
from tests.kernels.nodes import node_check

INDEX = [np.int32, np.int64]


def _x(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return (np.random.default_rng(0).normal(size=shape) * 10).astype(dtype)


def _ids(n: int, *shape: int, dtype: Any = np.int64) -> np.ndarray:
    return np.random.default_rng(1).integers(-n, n, shape).astype(dtype)


@pytest.mark.parametrize("dtype", INDEX)
@pytest.mark.parametrize(("shape", "axis"), [((7, 13), 0), ((3, 5, 7), 1), ((3, 5, 7), -1), ((2, 3, 5, 40), -2)])
def test_gather(dtype: Any, shape: tuple[int, ...], axis: int) -> None:
    node_check("Gather", {"x": _x(*shape), "i": _ids(shape[axis], 4, 3, dtype=dtype)}, axis=axis)


def test_gather_of_a_scalar_index_and_of_other_types() -> None:
    node_check("Gather", {"x": _x(5, 3, dtype=np.int64), "i": np.array(-2)})
    node_check("Gather", {"x": _x(5, 3) > 0, "i": _ids(5, 6)}, channels_last=[])
    node_check("Gather", {"x": _x(2, 5, 3, 4), "i": _ids(5, 6)}, channels_last=["x"], axis=1)


@pytest.mark.parametrize(("indices", "steps"), [(2, 1), (-1, 1), ([0, 2, 4], 1), ([3, 2, 1], 1), ([1, 1], 1)])
@pytest.mark.parametrize("axis", [0, 1])
def test_constant_gather_is_a_slice(indices: Any, steps: int, axis: int) -> None:
    program = node_check("Gather", {"x": _x(5, 6, 3), "i": np.array(indices)}, ["i"], axis=axis, steps=steps)
    assert all(step.spec.family == "copy" for step in program.steps)
    node_check("Gather", {"x": _x(5, 6, 3, 2), "i": np.array(indices)}, ["i"], ["x"], axis=axis)


def test_constant_gather_of_uneven_indices() -> None:
    node_check("Gather", {"x": _x(5, 6), "i": np.array([0, 3, 1])}, ["i"], steps=1)


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("depth", [1, 2])
def test_gather_nd(batch: int, depth: int) -> None:
    indices = _ids(2, 2, 3, depth)
    node_check("GatherND", {"x": _x(2, 3, 4, 5), "i": indices}, batch_dims=batch)


@pytest.mark.parametrize("dtype", INDEX)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_and_scatter_elements(dtype: Any, axis: int) -> None:
    indices = _ids(3, 3, 2, 5, dtype=dtype)
    node_check("GatherElements", {"x": _x(3, 4, 5), "i": indices}, axis=axis)
    unique = np.argsort(np.random.default_rng(3).random((3, 4, 5)), axis=axis).astype(dtype)
    node_check("ScatterElements", {"x": _x(3, 4, 5), "i": unique, "u": _x(3, 4, 5) + 1}, axis=axis)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "min", "max"])
def test_scatter_reductions(reduction: str) -> None:
    inputs = {"x": _x(6, 5), "i": np.array([[0, 1, 0], [-1, 3, -1]]), "u": _x(2, 3)}
    if reduction != "none":
        node_check("ScatterElements", inputs, axis=0, reduction=reduction, rtol=1e-6)
    slices = {"x": _x(6, 5), "i": np.array([[4], [0], [-1]]), "u": _x(3, 5) * 2}
    node_check("ScatterND", slices, reduction=reduction, rtol=1e-6)
    points = {"x": _x(6, 5), "i": np.array([[4, 1], [0, -1]]), "u": _x(2)}
    node_check("ScatterND", points, reduction=reduction, rtol=1e-6)


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_onehot(axis: int) -> None:
    indices = np.array([[0, 4, -1], [-5, 7, 2]])
    node_check("OneHot", {"i": indices, "d": np.array(5), "v": np.array([-1, 3], np.float32)}, ["d"], axis=axis)


@pytest.mark.parametrize("dtype", INDEX)
@pytest.mark.parametrize("bad", [5, -6, 2**31 - 1])
def test_out_of_range_is_an_error(dtype: Any, bad: int) -> None:
    params = {"dtype": "float32", "index_dtype": np.dtype(dtype).name, "outer": 1, "count": 2, "batched": False,
              "dims": [5], "inner": 3}  # fmt: skip
    with pytest.raises(AssertionError, match=f"returned {OUT_OF_RANGE}"):
        run_kernel("gather", params, [_x(5, 3), np.array([0, bad], dtype)], splits=1)
    elements = {"mode": "gather", "dtype": "float32", "index_dtype": np.dtype(dtype).name, "shape": [5, 3],
                "index_shape": [1, 2], "axis": 0}  # fmt: skip
    with pytest.raises(AssertionError, match=f"returned {OUT_OF_RANGE}"):
        run_kernel("elements", elements, [_x(5, 3), np.array([0, bad], dtype)], splits=1)


def test_wide_index_is_not_cut_to_32_bits() -> None:
    params = {"dtype": "float32", "index_dtype": "int64", "outer": 1, "count": 1, "batched": False,
              "dims": [5], "inner": 3}  # fmt: skip
    with pytest.raises(AssertionError, match="returned"):
        run_kernel("gather", params, [_x(5, 3), np.array([2**32 + 1])], splits=1)
