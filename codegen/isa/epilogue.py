"""The fused epilogue of every kernel: activation(accumulator + bias + residual), on vectors.

One list of activations serves the fused operators (`activation` and `act_params` of sparsec::MatMul and sparsec::Conv)
and the elementwise kernels. Definitions are ONNX's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from sparsec.codegen.isa import gelu, vecmath

# Cost of an activation in floating-point operations an element, for the estimate of a kernel's work.
ACTIVATIONS: dict[str, int] = {
    "": 0, "relu": 1, "relu6": 2, "clip": 2, "leakyrelu": 3, "hardsigmoid": 4, "hardswish": 5,
    "sigmoid": 20, "silu": 21, "tanh": 22, "gelu_tanh": 28, "gelu": 30,
}  # fmt: skip


def activation_cost(name: str) -> int:
    """Floating-point operations an element."""
    return ACTIVATIONS[name]


def apply_activation(k: Any, name: str, params: Sequence[float], value: Any, lanes: int) -> Any:
    """Activation `name` of `value`, a float32 vector of `lanes` (a scalar when lanes is 1).

    `params`: clip lo, hi (either may be infinite: no bound); leakyrelu alpha; hardsigmoid alpha, beta; else empty.
    Writes statements (a value used more than once is bound to a variable): call it where a statement may stand.
    """
    if name == "":
        return value
    return _TABLE[name](k, tuple(params), value, lanes)


def bound(k: Any, value: Any, lo: float, hi: float, lanes: int) -> Any:
    """min(max(value, lo), hi); an infinite bound costs nothing. NaN stays: T.max(a, b) is a > b ? a : b, so the bound comes first."""
    if not math.isinf(lo):
        value = k.T.max(k.f32(lo, lanes), value)
    if not math.isinf(hi):
        value = k.T.min(k.f32(hi, lanes), value)
    return value


def _relu(k: Any, _: Sequence[float], x: Any, lanes: int) -> Any:
    return bound(k, x, 0.0, math.inf, lanes)


def _relu6(k: Any, _: Sequence[float], x: Any, lanes: int) -> Any:
    return bound(k, x, 0.0, 6.0, lanes)


def _clip(k: Any, params: Sequence[float], x: Any, lanes: int) -> Any:
    lo, hi = params
    return bound(k, x, lo, hi, lanes)


def _leakyrelu(k: Any, params: Sequence[float], x: Any, lanes: int) -> Any:
    (alpha,) = params
    x = k.T.bind(x)
    scaled = x * k.f32(alpha, lanes)
    if 0.0 <= alpha <= 1.0:  # one max instead of a compare and a blend
        return k.T.max(x, scaled)
    return k.T.Select(x < k.f32(0.0, lanes), scaled, x)


def _hardsigmoid(k: Any, params: Sequence[float], x: Any, lanes: int) -> Any:
    alpha, beta = params
    return bound(k, x * k.f32(alpha, lanes) + k.f32(beta, lanes), 0.0, 1.0, lanes)


def _hardswish(k: Any, _: Sequence[float], x: Any, lanes: int) -> Any:
    x = k.T.bind(x)
    return x * _hardsigmoid(k, (1.0 / 6.0, 0.5), x, lanes)


def _sigmoid(k: Any, _: Sequence[float], x: Any, lanes: int) -> Any:
    return vecmath.sigmoid(k, x, lanes)


def _silu(k: Any, _: Sequence[float], x: Any, lanes: int) -> Any:
    x = k.T.bind(x)
    return x * vecmath.sigmoid(k, x, lanes)


def _tanh(k: Any, _: Sequence[float], x: Any, lanes: int) -> Any:
    return vecmath.tanh(k, x, lanes)


def _gelu(k: Any, _: Sequence[float], x: Any, lanes: int) -> Any:
    return gelu.gelu(k, x, lanes)


def _gelu_tanh(k: Any, _: Sequence[float], x: Any, lanes: int) -> Any:
    # 0.5 x (1 + tanh(u)) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3): no cancellation for negative x
    x = k.T.bind(x)
    root = 2.0 * math.sqrt(2.0 / math.pi)
    twice_u = x * (k.f32(root, lanes) + x * x * k.f32(root * 0.044715, lanes))
    return x * vecmath.sigmoid(k, twice_u, lanes)


_TABLE: dict[str, Callable[[Any, Sequence[float], Any, int], Any]] = {
    "relu": _relu,
    "relu6": _relu6,
    "clip": _clip,
    "leakyrelu": _leakyrelu,
    "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
    "sigmoid": _sigmoid,
    "silu": _silu,
    "tanh": _tanh,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
}
