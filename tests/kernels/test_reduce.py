"""Reductions over every set of axes against onnxruntime."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from sparsec.codegen.kernels.reduce import REDUCTIONS
from tests.kernels.nodes import node_model
from tests.kernels.programs import lower_and_run, reference

AXES = [list(c) for r in (1, 2, 3) for c in combinations(range(3), r)]


def _check(op: str, feed: dict[str, Any], constants: list[str], **attributes: Any) -> None:
    model = node_model(op, feed, constants, opset=18, **attributes)
    (found,), (wanted,) = lower_and_run(model, feed), reference(model, feed)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("axes", AXES, ids=str)
def test_sum_over_every_set_of_axes(axes: list[int]) -> None:
    x = np.random.default_rng(1).normal(size=(3, 5, 37)).astype(np.float32)
    _check("ReduceSum", {"x": x, "axes": np.array(axes)}, ["axes"], keepdims=len(axes) % 2)


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize("axis", [1, -1])
def test_every_reduction(op: str, axis: int) -> None:
    x = np.random.default_rng(2).uniform(0.5, 1.5, (2, 7, 41)).astype(np.float32)
    _check(op, {"x": x, "axes": np.array([axis])}, ["axes"])


@pytest.mark.parametrize("kind", ["int32", "int64"])
@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMax", "ReduceMin"])
def test_integers(op: str, kind: str) -> None:
    x = np.random.default_rng(3).integers(-50, 50, (4, 23)).astype(kind)
    _check(op, {"x": x, "axes": np.array([1])}, ["axes"])


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_arg_with_ties(op: str, axis: int, last: int) -> None:
    x = np.random.default_rng(4).integers(0, 3, (3, 5, 6)).astype(np.float32)
    _check(op, {"x": x}, [], axis=axis, keepdims=0, select_last_index=last)


def test_negative_infinity_survives_a_maximum() -> None:
    x = np.full((2, 40), -np.inf, np.float32)
    _check("ReduceMax", {"x": x, "axes": np.array([1])}, ["axes"])
