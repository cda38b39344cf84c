"""Activations that operators fuse: one table with the numpy reference and the ONNX body of each.

Every use of an activation name (passes, ops, tests) goes through `ACTIVATIONS`; the empty name is the identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparsec.errors import ModelError

if TYPE_CHECKING:
    import onnx_ir as ir

    from sparsec.onnx_body import Body

__all__ = ["ACTIVATIONS", "Activation", "activation"]

Array = np.ndarray
_GELU_TANH = math.sqrt(2.0 / math.pi)


@dataclass(frozen=True)
class Activation:
    """One activation: its parameter names, y = reference(x, *params) in float64, and the same in ONNX operators."""

    name: str
    params: tuple[str, ...]
    reference: Callable[..., Array]
    body: Callable[..., ir.Value]

    def __call__(self, x: Array, params: Sequence[float] = ()) -> Array:
        """float64 reference of the same shape as x."""
        return np.asarray(self.reference(np.asarray(x, np.float64), *params))

    def check(self, params: Sequence[float]) -> None:
        """Raise ModelError unless the number of parameters is right."""
        if len(params) != len(self.params):
            raise ModelError(
                f"activation '{self.name}' takes {len(self.params)} parameters {list(self.params)}, "
                f"found {len(params)}: {list(params)}"
            )


def _sigmoid(x: Array) -> Array:
    # Both branches keep the exponent nonpositive, so nothing overflows.
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0, small) / (1 + small))


def _gelu(x: Array) -> Array:
    from scipy.special import erf

    return np.asarray(0.5 * x * (1 + erf(x / math.sqrt(2))))


def _gelu_tanh(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(_GELU_TANH * (x + 0.044715 * x**3))))


def _gelu_body(b: Body, x: ir.Value) -> ir.Value:
    erf = b.op("Erf", b.op("Mul", x, b.float_const(math.sqrt(0.5))))
    return b.op("Mul", b.op("Mul", x, b.float_const(0.5)), b.op("Add", erf, b.float_const(1)))


def _gelu_tanh_body(b: Body, x: ir.Value) -> ir.Value:
    cube = b.op("Mul", b.op("Mul", x, b.op("Mul", x, x)), b.float_const(0.044715))
    inner = b.op("Mul", b.op("Add", x, cube), b.float_const(_GELU_TANH))
    return b.op("Mul", b.op("Mul", x, b.float_const(0.5)), b.op("Add", b.op("Tanh", inner), b.float_const(1)))


def _clip_body(b: Body, x: ir.Value, low: float, high: float) -> ir.Value:
    return b.op("Clip", x, b.float_const(low), b.float_const(high))


_TABLE = (
    Activation("", (), lambda x: x, lambda b, x: x),
    Activation("relu", (), lambda x: np.maximum(x, 0), lambda b, x: b.op("Relu", x)),
    Activation("relu6", (), lambda x: np.clip(x, 0, 6), lambda b, x: _clip_body(b, x, 0, 6)),
    Activation("clip", ("low", "high"), lambda x, low, high: np.clip(x, low, high), _clip_body),
    Activation("gelu", (), _gelu, _gelu_body),
    Activation("gelu_tanh", (), _gelu_tanh, _gelu_tanh_body),
    Activation("sigmoid", (), _sigmoid, lambda b, x: b.op("Sigmoid", x)),
    Activation("tanh", (), np.tanh, lambda b, x: b.op("Tanh", x)),
    Activation("silu", (), lambda x: x * _sigmoid(x), lambda b, x: b.op("Mul", x, b.op("Sigmoid", x))),
    Activation(
        "hardswish",
        (),
        lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
        lambda b, x: b.op("Mul", x, b.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)),
    ),
    Activation(
        "hardsigmoid",
        ("alpha", "beta"),
        lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
        lambda b, x, alpha, beta: b.op("HardSigmoid", x, alpha=float(alpha), beta=float(beta)),
    ),
    Activation(
        "leakyrelu",
        ("alpha",),
        lambda x, alpha: np.where(x < 0, alpha * x, x),
        lambda b, x, alpha: b.op("LeakyRelu", x, alpha=float(alpha)),
    ),
)

ACTIVATIONS: dict[str, Activation] = {entry.name: entry for entry in _TABLE}
"""Every activation by name."""


def activation(name: str, params: Sequence[float] = ()) -> Activation:
    """Look up an activation and check its parameters; raises ModelError naming what is allowed."""
    if name not in ACTIVATIONS:
        raise ModelError(f"activation '{name}' is not known; known: {', '.join(sorted(filter(None, ACTIVATIONS)))}")
    entry = ACTIVATIONS[name]
    entry.check(params)
    return entry
