"""The vector functions against numpy in float64: random arguments, every special value, whole vectors and single elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from sparsec.codegen.build import build_kernels
from sparsec.codegen.isa.vecmath import exp2_negative, exp_negative
from sparsec.codegen.program import KernelSpec
from sparsec.target import NAMED, Target, host_target
from tests.codegen.isa.harness import Snippet, run
from tests.kernels.harness import run_kernel

Array = np.ndarray[Any, Any]

SPECIAL = np.array(
    [
        *(0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1e-40, 3.4e38, -3.4e38, 2, 3, -2, -3, 0.5, -0.5, 7),
        *(88.7, 88.8, -87, -100, -103.9, -104.5, 1e-20, 1e10, 1e20, -1e30, 2.0**24 + 2),
    ],
    np.float32,
)
# Function, scale of its random arguments, largest relative error (1 ulp is 6e-8 to 1.2e-7).
UNARY: dict[str, tuple[Callable[[Array], Array], float, float]] = {
    "Cos": (np.cos, 1e4, 2e-7),
    "Erf": (np.vectorize(math.erf), 2.0, 5e-7),
    "Exp": (np.exp, 40.0, 2e-7),
    "Log": (np.log, 40.0, 2e-7),
    "Sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 20.0, 4e-7),
    "Sin": (np.sin, 1e4, 2e-7),
    "Sqrt": (np.sqrt, 40.0, 1e-7),
    "Tanh": (np.tanh, 3.0, 4e-7),
}


NEGATIVE = 1008


def SNIPPETS(target: Target) -> dict[str, Snippet]:
    def negative(k: Any, lanes: int, x: Sequence[Any]) -> Any:
        return exp_negative(k, x[0], lanes)

    def power(k: Any, lanes: int, x: Sequence[Any]) -> Any:
        return exp2_negative(k, x[0], lanes)

    return {
        "exp_negative": Snippet(("float32",), "float32", NEGATIVE, negative),
        "exp2_negative": Snippet(("float32",), "float32", NEGATIVE, power),
    }


def test_exp_of_what_is_not_positive() -> None:
    rng = np.random.default_rng(13)
    x = np.concatenate(
        [[0.0, -0.0, -np.inf, np.nan, -87.2, -88, -1e30, -3.4e38], -np.abs(rng.normal(size=NEGATIVE - 8)) * 30]
    )
    found = run(__name__, "exp_negative", x.astype(np.float32))
    _close(found, np.exp(x.astype(np.float32).astype(np.float64)), 2e-7)


def test_power_of_two_of_what_is_not_positive() -> None:
    rng = np.random.default_rng(14)
    fixed = [0.0, -0.0, -np.inf, np.nan, -125.9, -127, -1e30, -3.4e38]
    x = np.concatenate([fixed, -np.abs(rng.normal(size=NEGATIVE - 8)) * 40]).astype(np.float32)
    found = run(__name__, "exp2_negative", x)
    _close(found, np.exp2(np.maximum(x.astype(np.float64), -126)), 2e-7)
    assert (found[:2] == 1).all()


def _params(op: str, inputs: int, count: int) -> dict[str, Any]:
    return {
        "dtype": "float32",
        "shape": [count],
        "inputs": [{"dtype": "float32", "size": count, "strides": [1]}] * inputs,
        "ops": [{"op": op, "args": list(range(inputs)), "dtype": "float32", "attr": {}}],
    }


def _close(found: Array, exact: Array, tolerance: float) -> None:
    """NaN and infinities agree; normal numbers within `tolerance`, the rest within the smallest normal number."""
    wanted = exact.astype(np.float32)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    np.testing.assert_array_equal(found[np.isinf(wanted)], wanted[np.isinf(wanted)])
    finite = np.isfinite(wanted)
    np.testing.assert_allclose(found[finite], exact[finite], rtol=tolerance, atol=1.2e-38)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("op", UNARY)
def test_unary(op: str) -> None:
    function, scale, tolerance = UNARY[op]
    rng = np.random.default_rng(11)
    x = np.concatenate([SPECIAL, rng.normal(size=4000) * scale, rng.normal(size=997) * 0.01]).astype(np.float32)
    (vector,) = run_kernel("elementwise", _params(op, 1, x.size), [x])
    _close(vector, function(x.astype(np.float64)), tolerance)
    for value in SPECIAL:  # one element: the scalar code
        (single,) = run_kernel("elementwise", _params(op, 1, 1), [value.reshape(1)], splits=1)
        _close(single, np.reshape(function(np.float64(value)), 1), tolerance)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_power() -> None:
    rng = np.random.default_rng(12)
    base, exponent = (a.reshape(-1) for a in np.meshgrid(SPECIAL, SPECIAL))
    base = np.concatenate([base, np.abs(rng.normal(size=3000)) * 10, rng.normal(size=1000) * 3]).astype(np.float32)
    exponent = np.concatenate([exponent, rng.normal(size=3000) * 8, rng.integers(-20, 20, 1000)]).astype(np.float32)
    (found,) = run_kernel("elementwise", _params("Pow", 2, base.size), [base, exponent])
    _close(found, base.astype(np.float64) ** exponent.astype(np.float64), 2e-7)


@pytest.mark.parametrize("target", [host_target(), NAMED["arm"], NAMED["x86-avx2"]], ids=lambda t: f"{t.name}-{t.arch}")
def test_no_library_is_called(target: Target) -> None:
    specs = [KernelSpec("elementwise", _params(op, 1, 1003)) for op in (*UNARY, "Softplus", "Gelu", "Mish", "Elu")]
    specs.append(KernelSpec("elementwise", _params("Pow", 2, 1003)))
    for kernel in build_kernels(specs, target, jobs=2).values():
        strings = kernel.object_path.read_bytes()
        for name in (b"expf", b"logf", b"erff", b"tanhf", b"sinf", b"cosf", b"powf", b"sqrtf", b"fmaf", b"rintf"):
            assert b"\0" + name + b"\0" not in strings, (kernel.symbol, name)
