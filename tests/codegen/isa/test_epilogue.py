"""Activations of the fused epilogue against their definitions in float64, as vectors and as single elements."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sparsec.activations import ACTIVATIONS as NAMED_ACTIVATIONS
from sparsec.codegen.isa.epilogue import ACTIVATIONS, activation_cost, apply_activation, bound
from sparsec.target import Target
from tests.codegen.isa.harness import Array, Snippet, run

SIZE = 1024
erf = np.vectorize(math.erf)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


# name -> parameters and definition
CASES: dict[str, list[tuple[tuple[float, ...], Callable[[Array], Array]]]] = {
    "": [((), lambda x: x)],
    "relu": [((), lambda x: np.maximum(x, 0))],
    "relu6": [((), lambda x: np.clip(x, 0, 6))],
    "clip": [
        ((-0.5, 0.75), lambda x: np.clip(x, np.float32(-0.5), np.float32(0.75))),
        ((-math.inf, 1.0), lambda x: np.minimum(x, 1)),
        ((-2.0, math.inf), lambda x: np.maximum(x, -2)),
        ((-math.inf, math.inf), lambda x: x),
    ],
    "leakyrelu": [
        ((0.25,), lambda x: np.where(x < 0, 0.25 * x, x)),
        ((1.5,), lambda x: np.where(x < 0, 1.5 * x, x)),
        ((-0.5,), lambda x: np.where(x < 0, -0.5 * x, x)),
    ],
    "hardsigmoid": [((0.25, 0.375), lambda x: np.clip(0.25 * x + 0.375, 0, 1))],
    "hardswish": [((), lambda x: x * np.clip(x / 6 + 0.5, 0, 1))],
    "sigmoid": [((), sigmoid)],
    "silu": [((), lambda x: x * sigmoid(x))],
    "tanh": [((), np.tanh)],
    "gelu": [((), lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))))],
    "gelu_tanh": [((), lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))],
}
FLAT = [(name, index) for name, cases in CASES.items() for index in range(len(cases))]


pytestmark = pytest.mark.xdist_group("isa_epilogue")  # one process compiles them all


def SNIPPETS(target: Target) -> dict[str, Snippet]:
    def emit(name: str, params: tuple[float, ...]) -> Any:
        return lambda k, lanes, x: apply_activation(k, name, params, x[0], lanes)

    made = {"bound": Snippet(("float32",), "float32", SIZE, lambda k, n, x: bound(k, x[0], -1.0, 1.0, n))}
    for name, index in FLAT:
        for lanes in (1, None):
            code = emit(name, CASES[name][index][0])
            made[f"act_{name}_{index}_{lanes}"] = Snippet(("float32",), "float32", SIZE, code, lanes)
    return made


def values() -> Array:
    fixed = [0.0, -0.0, 1, -1, 3, -3, 6, -6, 6.5, 20, -20, 88, -88, 1e-30, -1e-30, 1e30, -1e30]
    x = np.random.default_rng(7).normal(size=SIZE) * 4
    x[: len(fixed)] = fixed
    return x.astype(np.float32)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("lanes", [1, None], ids=["scalar", "vector"])
@pytest.mark.parametrize(("name", "index"), FLAT)
def test_activation(name: str, index: int, lanes: int | None) -> None:
    x = values()
    exact = CASES[name][index][1](x.astype(np.float64))
    found = run(__name__, f"act_{name}_{index}_{lanes}", x)
    # far in the negative tail gelu and its kin cancel to zero: absolute there
    np.testing.assert_allclose(found, exact.astype(np.float32), rtol=2e-6, atol=1e-6 if "gelu" in name else 2e-7)


@pytest.mark.parametrize("name", [n for n in CASES if n])
def test_nan_stays(name: str) -> None:
    x = values()
    x[::3] = np.nan
    np.testing.assert_array_equal(np.isnan(run(__name__, f"act_{name}_0_None", x)), np.isnan(x))


def test_bound() -> None:
    x = values()
    x[5] = np.nan
    np.testing.assert_array_equal(run(__name__, "bound", x), np.clip(x, -1, 1))


def test_every_activation_has_code_and_a_cost() -> None:
    assert set(CASES) == set(ACTIVATIONS) == {"", *NAMED_ACTIVATIONS}
    assert activation_cost("") == 0
    assert all(activation_cost(name) > 0 for name in CASES if name)
