"""Every operator of the elementwise table against its ONNX definition in numpy, on each kind of element it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from sparsec.codegen.isa.scalar_ops import BOOL_RESULT, EMIT, FLOAT_ONLY, constant
from sparsec.target import Target
from tests.codegen.isa.harness import Array, Snippet, run

SIZE = 512
erf = np.vectorize(math.erf)


@dataclass(frozen=True)
class Case:
    """Operator on `count` operands of `dtype`; `define` computes in float64 (floats) or the type itself."""

    op: str
    define: Callable[..., Array]
    dtype: str = "float32"
    count: int = 1
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("bool", self.dtype, self.dtype) if self.op == "Where" else (self.dtype,) * self.count

    @property
    def name(self) -> str:
        attributes = "_".join(f"{k}{v}" for k, v in self.attributes.items())
        return f"{self.op}_{self.dtype}_{attributes}".replace(".", "p").replace("-", "m").strip("_")


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _elu(x: Array, alpha: float = 1.0) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


UNARY: dict[str, Callable[[Array], Array]] = {
    "Abs": np.abs, "Ceil": np.ceil, "Cos": np.cos, "Erf": erf, "Exp": np.exp, "Floor": np.floor,
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1), "Log": lambda x: np.log(x),
    "Mish": lambda x: x * np.tanh(np.log1p(np.exp(x))), "Neg": np.negative, "Reciprocal": lambda x: 1 / x,
    "Relu": lambda x: np.maximum(x, 0), "Round": np.round, "Sigmoid": _sigmoid, "Sign": np.sign, "Sin": np.sin,
    "Softplus": lambda x: np.log1p(np.exp(x)), "Softsign": lambda x: x / (1 + np.abs(x)), "Sqrt": np.sqrt,
    "Swish": lambda x: x * _sigmoid(x), "Tanh": np.tanh,
}  # fmt: skip
COMPARE = {
    "Equal": np.equal, "Greater": np.greater, "GreaterOrEqual": np.greater_equal, "Less": np.less,
    "LessOrEqual": np.less_equal,
}  # fmt: skip
LOGIC = {"And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor}
ARITHMETIC = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Max": np.maximum, "Min": np.minimum}
INTEGERS = ("int8", "uint8", "int32", "int64")

CASES = [
    *(Case(op, f) for op, f in UNARY.items()),
    *(Case(op, f, kind) for op, f in (("Abs", np.abs), ("Neg", np.negative), ("Sign", np.sign)) for kind in ("int32", "int64")),
    *(Case("Relu", lambda x: np.maximum(x, 0), kind) for kind in ("int8", "int32")),
    *(Case(op, f, kind, 2) for op, f in ARITHMETIC.items() for kind in ("float32", "float64", *INTEGERS)),
    *(Case(op, f, kind, 2) for op, f in COMPARE.items() for kind in ("float32", "int32", "int64", "uint8")),
    Case("Equal", np.equal, "bool", 2),
    *(Case(op, f, "bool", 2) for op, f in LOGIC.items()),
    Case("Not", np.logical_not, "bool"),
    Case("IsNaN", np.isnan),
    Case("Div", np.divide, "float32", 2),
    *(Case("Div", lambda a, b: np.trunc(a / b), kind, 2) for kind in ("int32", "int64")),
    *(Case("Mod", lambda a, b: a - b * np.floor(a / b), kind, 2) for kind in ("int32", "int64")),
    Case("Mod", np.fmod, "int32", 2, {"fmod": 1}),
    *(Case("Where", np.where, kind, 3) for kind in ("float32", "int64", "bool")),
    Case("PRelu", lambda x, slope: np.where(x < 0, x * slope, x), "float32", 2),
    Case("Pow", lambda a, b: np.abs(a) ** b, "float32", 2),
    *(
        Case("Pow", lambda x, e=e: np.abs(x) ** e, "float32", 1, {"exponent": e})
        for e in (2.0, 3.0, 0.5, -0.5, 1.0)
    ),
    Case("Celu", lambda x: _elu(x / 0.5) * 0.5, attributes={"alpha": 0.5}),
    Case("Clip", lambda x: np.clip(x, -0.5, 0.75), attributes={"lo": -0.5, "hi": 0.75}),
    Case("Clip", lambda x: np.minimum(x, 3), "int64", attributes={"hi": 3}),
    Case("Elu", lambda x: _elu(x, 0.75), attributes={"alpha": 0.75}),
    Case("Elu", _elu),
    Case("Gelu", lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2)))),
    Case("Gelu", _gelu_tanh, attributes={"approximate": "tanh"}),
    Case("HardSigmoid", lambda x: np.clip(0.2 * x + 0.5, 0, 1)),
    Case("HardSigmoid", lambda x: np.clip(0.5 * x + 0.25, 0, 1), attributes={"alpha": 0.5, "beta": 0.25}),
    Case("LeakyRelu", lambda x: np.where(x < 0, 0.01 * x, x)),
    Case("LeakyRelu", lambda x: np.where(x < 0, 0.5 * x, x), attributes={"alpha": 0.5}),
    Case("Selu", lambda x: 1.05070102214813232 * _elu(x, 1.67326319217681885)),
    Case("Selu", lambda x: 1.5 * _elu(x, 2.0), attributes={"alpha": 2.0, "gamma": 1.5}),
]  # fmt: skip
POSITIVE = {"Log", "Sqrt", "Pow"}


pytestmark = pytest.mark.xdist_group("isa_scalar_ops")  # one process compiles them all


def SNIPPETS(target: Target) -> dict[str, Snippet]:
    def emit(case: Case) -> Any:
        def write(k: Any, lanes: int, x: Sequence[Any]) -> Any:
            return EMIT[case.op](k, lanes, case.kinds[-1], x, case.attributes)

        return write

    made = {}
    for case in CASES:
        output = "bool" if case.op in BOOL_RESULT else case.dtype
        made[case.name] = Snippet(case.kinds, output, SIZE, emit(case))
    for dtype in ("float32", "float64", "int64", "uint8", "bool"):
        made[f"constant_{dtype}"] = Snippet(
            (dtype,), dtype, SIZE, lambda k, lanes, _, dtype=dtype: constant(k, dtype, 1, lanes)
        )
    return made


def operand(case: Case, position: int) -> Array:
    rng = np.random.default_rng([len(case.op), position])
    dtype = case.kinds[position]
    if dtype == "bool":
        return rng.integers(0, 2, SIZE).astype(bool)
    if not dtype.startswith("float"):
        values = rng.integers(0 if dtype.startswith("u") else -9, 10, SIZE)
        return np.where((values == 0) & (position > 0), 1, values).astype(dtype)  # the second may divide
    values = rng.normal(size=SIZE) * 2
    values[:9] = [0.5, -0.5, 1.5, -1.5, 2.5, 1, -1, 8, -8]  # halves: rounding goes to even
    if case.op in POSITIVE and position == 0:
        values = np.abs(values)
    if case.op == "IsNaN":
        values[::7] = np.nan
    if case.op in ("Equal", "GreaterOrEqual", "LessOrEqual"):
        values = np.round(values)
    return values.astype(dtype)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_operator(case: Case) -> None:
    operands = [operand(case, i) for i in range(len(case.kinds))]
    exact = case.define(*(a.astype(np.float64) if a.dtype == np.float32 else a for a in operands))
    found = run(__name__, case.name, *operands)
    if case.dtype.startswith("float") and case.op not in BOOL_RESULT:
        np.testing.assert_allclose(found, exact.astype(case.dtype), rtol=1e-6, atol=1e-6)
    else:
        np.testing.assert_array_equal(found, exact.astype(found.dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool"])
def test_constant(dtype: str) -> None:
    np.testing.assert_array_equal(run(__name__, f"constant_{dtype}", np.zeros(SIZE, dtype)), np.ones(SIZE, dtype))


def test_every_operator_is_tested() -> None:
    assert {case.op for case in CASES} == set(EMIT)
    assert set(EMIT) > FLOAT_ONLY
    assert set(EMIT) > BOOL_RESULT
    assert len({case.name for case in CASES}) == len(CASES)
