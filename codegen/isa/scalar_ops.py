"""The elementwise operators of ONNX as TIR expressions on vectors: one table, name -> emitter.

An emitter takes (k, lanes, dtype of the operands, operands, attributes) and returns the result expression. Booleans are TIR
vectors of bool in registers; memory holds bytes (see kernels/elementwise.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparsec.codegen.isa import vecmath
from sparsec.codegen.isa.epilogue import apply_activation

Expr = Any
Emit = Callable[[Any, int, str, Sequence[Expr], Mapping[str, Any]], Expr]

# Operators that need float32 polynomials or float constants: refused on other element types.
FLOAT_ONLY = frozenset(
    [
        *(
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
            "IsNaN",
            "LeakyRelu",
            "Log",
        ),
        *(
            "Mish",
            "PRelu",
            "Reciprocal",
            "Round",
            "Selu",
            "Sigmoid",
            "Sin",
            "Softplus",
            "Softsign",
            "Sqrt",
            "Swish",
            "Tanh",
        ),
    ]
)
BOOL_RESULT = frozenset(
    ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor", "Not", "IsNaN"]
)


def constant(k: Any, dtype: str, value: float, lanes: int) -> Expr:
    """`value` of element type `dtype` in every lane."""
    if dtype == "float32":
        return k.f32(value, lanes)
    if dtype == "bool":
        return k.splat(k.T.bool(bool(value)) if hasattr(k.T, "bool") else k.T.int32(int(value)) > k.T.int32(0), lanes)
    make = k.T.FloatImm if dtype.startswith("float") else k.T.IntImm
    return k.splat(make(dtype, float(value) if dtype.startswith("float") else int(value)), lanes)


def _activation(name: str) -> Emit:
    return lambda k, n, t, a, attr: apply_activation(k, name, tuple(attr.get("params", ())), a[0], n)


def _math(function: Callable[[Any, Expr, int], Expr]) -> Emit:
    return lambda k, n, t, a, attr: function(k, vecmath.bind(k, a[0]), n)


def _intrinsic(name: str) -> Emit:
    def emit(k: Any, n: int, t: str, a: Sequence[Expr], attr: Mapping[str, Any]) -> Expr:
        return k.T.call_llvm_pure_intrin(vecmath.typed(k, t, n), name, a[0])

    return emit


def _clip(k: Any, n: int, t: str, a: Sequence[Expr], attr: Mapping[str, Any]) -> Expr:
    value = a[0]  # the bound comes first: that way NaN stays
    if attr.get("lo") is not None:
        value = k.T.max(constant(k, t, attr["lo"], n), value)
    if attr.get("hi") is not None:
        value = k.T.min(constant(k, t, attr["hi"], n), value)
    return value


def _extreme(name: str) -> Emit:
    """Maximum or minimum; NaN when either operand is."""
    integer = {"maximum": "max", "minimum": "min"}[name]

    def emit(k: Any, n: int, t: str, a: Sequence[Expr], attr: Mapping[str, Any]) -> Expr:
        if not t.startswith("float"):
            return getattr(k.T, integer)(a[0], a[1])
        return k.T.call_llvm_pure_intrin(vecmath.typed(k, t, n), f"llvm.{name}", a[0], a[1])

    return emit


def _pow(k: Any, n: int, t: str, a: Sequence[Expr], attr: Mapping[str, Any]) -> Expr:
    exponent = attr.get("exponent")
    base = vecmath.bind(k, a[0])
    if exponent == 2.0:
        return base * base
    if exponent == 3.0:
        return base * base * base
    if exponent == 0.5:
        return vecmath.sqrt(k, base, n)
    if exponent == -0.5:
        return k.f32(1.0, n) / vecmath.sqrt(k, base, n)
    if exponent == 1.0:
        return base
    return vecmath.pow(k, base, vecmath.bind(k, a[1]), n)


def _exponential_unit(k: Any, n: int, x: Expr, alpha: float, gamma: float, scale: float) -> Expr:
    """gamma * (x if x > 0 else alpha * (exp(x / scale) - 1))."""
    x = vecmath.bind(k, x)
    low = (vecmath.exp(k, k.T.min(k.f32(0.0, n), x) * k.f32(1.0 / scale, n), n) - k.f32(1.0, n)) * k.f32(alpha, n)
    return k.T.Select(x > k.f32(0.0, n), x, low) * k.f32(gamma, n)


def _softplus(k: Any, n: int, x: Expr) -> Expr:
    x = vecmath.bind(k, x)
    magnitude = k.T.max(x, k.f32(0.0, n) - x)
    tail = vecmath.log1p(k, vecmath.exp(k, k.f32(0.0, n) - magnitude, n), n)
    return k.T.max(x, k.f32(0.0, n)) + tail


def _mish(k: Any, n: int, t: str, a: Sequence[Expr], attr: Mapping[str, Any]) -> Expr:
    x = vecmath.bind(k, a[0])
    return x * vecmath.tanh(k, vecmath.bind(k, _softplus(k, n, x)), n)


def _softsign(k: Any, n: int, t: str, a: Sequence[Expr], attr: Mapping[str, Any]) -> Expr:
    x = vecmath.bind(k, a[0])
    return x / (k.f32(1.0, n) + k.T.max(x, k.f32(0.0, n) - x))


def _divide(k: Any, n: int, t: str, a: Sequence[Expr], attr: Mapping[str, Any]) -> Expr:
    return a[0] / a[1] if t.startswith("float") else k.T.truncdiv(a[0], a[1])


def _modulo(k: Any, n: int, t: str, a: Sequence[Expr], attr: Mapping[str, Any]) -> Expr:
    return k.T.truncmod(a[0], a[1]) if attr.get("fmod") else k.T.floormod(a[0], a[1])


def _absolute(k: Any, n: int, t: str, a: Sequence[Expr], attr: Mapping[str, Any]) -> Expr:
    x = vecmath.bind(k, a[0])
    return k.T.max(x, constant(k, t, 0, n) - x)


def _sign(k: Any, n: int, t: str, a: Sequence[Expr], attr: Mapping[str, Any]) -> Expr:
    x, zero, one = vecmath.bind(k, a[0]), constant(k, t, 0, n), constant(k, t, 1, n)
    positive = k.T.Select(x > zero, one, zero)
    if t.startswith("float"):  # the zero of x itself, so that NaN stays
        positive = k.T.Select(x > zero, one, x)
    return k.T.Select(x < zero, zero - one, positive)


def _leaky(k: Any, n: int, t: str, a: Sequence[Expr], attr: Mapping[str, Any]) -> Expr:
    x = vecmath.bind(k, a[0])
    slope = a[1] if len(a) > 1 else k.f32(attr.get("alpha", 0.01), n)
    return k.T.Select(x < k.f32(0.0, n), x * slope, x)


def _isnan(k: Any, n: int, t: str, a: Sequence[Expr], attr: Mapping[str, Any]) -> Expr:
    # on the bits: comparisons with itself are folded away
    bits = k.T.reinterpret(vecmath.typed(k, "int32", n), vecmath.bind(k, a[0])) & k.i32(0x7FFFFFFF, n)
    return bits > k.i32(0x7F800000, n)


def _differ(k: Any, n: int, t: str, a: Sequence[Expr], attr: Mapping[str, Any]) -> Expr:
    if t != "bool":
        return k.T.NE(a[0], a[1])
    x, y = (vecmath.bind(k, value) for value in a)  # TVM compares bools as floats, which LLVM refuses
    return k.T.And(k.T.Or(x, y), k.T.Not(k.T.And(x, y)))


def _equal(k: Any, n: int, t: str, a: Sequence[Expr], attr: Mapping[str, Any]) -> Expr:
    return k.T.EQ(a[0], a[1]) if t != "bool" else k.T.Not(_differ(k, n, t, a, attr))


EMIT: dict[str, Emit] = {
    "Abs": _absolute,
    "Add": lambda k, n, t, a, attr: a[0] + a[1],
    "And": lambda k, n, t, a, attr: k.T.And(a[0], a[1]),
    "Ceil": _intrinsic("llvm.ceil"),
    "Celu": lambda k, n, t, a, attr: _exponential_unit(k, n, a[0], attr.get("alpha", 1.0), 1.0, attr.get("alpha", 1.0)),
    "Clip": _clip,
    "Cos": _math(vecmath.cos),
    "Div": _divide,
    "Elu": lambda k, n, t, a, attr: _exponential_unit(k, n, a[0], attr.get("alpha", 1.0), 1.0, 1.0),
    "Equal": _equal,
    "Erf": _math(vecmath.erf),
    "Exp": _math(vecmath.exp),
    "Floor": _intrinsic("llvm.floor"),
    "Gelu": lambda k, n, t, a, attr: apply_activation(
        k, "gelu_tanh" if attr.get("approximate") == "tanh" else "gelu", (), a[0], n
    ),
    "Greater": lambda k, n, t, a, attr: a[0] > a[1],
    "GreaterOrEqual": lambda k, n, t, a, attr: a[0] >= a[1],
    "HardSigmoid": lambda k, n, t, a, attr: apply_activation(
        k, "hardsigmoid", (attr.get("alpha", 0.2), attr.get("beta", 0.5)), a[0], n
    ),
    "HardSwish": _activation("hardswish"),
    "IsNaN": _isnan,
    "LeakyRelu": _leaky,
    "Less": lambda k, n, t, a, attr: a[0] < a[1],
    "LessOrEqual": lambda k, n, t, a, attr: a[0] <= a[1],
    "Log": _math(vecmath.log),
    "Max": _extreme("maximum"),
    "Min": _extreme("minimum"),
    "Mish": _mish,
    "Mod": _modulo,
    "Mul": lambda k, n, t, a, attr: a[0] * a[1],
    "Neg": lambda k, n, t, a, attr: a[0] * constant(k, t, -1, n),
    "Not": lambda k, n, t, a, attr: k.T.Not(a[0]),
    "Or": lambda k, n, t, a, attr: k.T.Or(a[0], a[1]),
    "PRelu": _leaky,
    "Pow": _pow,
    "Reciprocal": lambda k, n, t, a, attr: k.f32(1.0, n) / a[0],
    "Relu": lambda k, n, t, a, attr: k.T.max(constant(k, t, 0, n), a[0]),
    "Round": _intrinsic("llvm.rint"),
    "Selu": lambda k, n, t, a, attr: _exponential_unit(
        k, n, a[0], attr.get("alpha", 1.67326319217681884765625), attr.get("gamma", 1.05070102214813232421875), 1.0
    ),
    "Sigmoid": _math(vecmath.sigmoid),
    "Sign": _sign,
    "Sin": _math(vecmath.sin),
    "Softplus": lambda k, n, t, a, attr: _softplus(k, n, a[0]),
    "Softsign": _softsign,
    "Sqrt": _math(vecmath.sqrt),
    "Sub": lambda k, n, t, a, attr: a[0] - a[1],
    "Swish": lambda k, n, t, a, attr: apply_activation(k, "silu", (), a[0], n),
    "Tanh": _math(vecmath.tanh),
    "Where": lambda k, n, t, a, attr: k.T.Select(a[0], a[1], a[2]),
    "Xor": _differ,
}
