"""The fused end of GPU products, as on the CPU (isa/epilogue.py): activation(accumulator + bias + residual)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sparsec.codegen.program import Arg

Expr = Any
_F32_MAX = 3.4028234663852886e38


def arguments(p: Mapping[str, Any], n: int, size: int) -> list[Arg]:
    """bias? [N] and residual? [size], as p["bias"] and p["residual"] say."""
    args = [Arg("bias", "float32", n, "in")] if p["bias"] else []
    return [*args, Arg("residual", "float32", size, "in")] if p["residual"] else args


def finish(k: Any, p: Mapping[str, Any], value: Expr, column: Expr, index: Expr) -> Expr:
    """float32: what is stored at element `index`, in output `column`, for the accumulator `value`."""
    if p["bias"]:
        value = value + k.load(k.arg("bias"), column)
    if p["residual"]:
        value = value + k.load(k.arg("residual"), index)
    return activation(k, p["act"], p["act_params"], value)


def activation(k: Any, name: str, params: Sequence[float], value: Expr) -> Expr:
    """Activation `name` of a float32 scalar, by its function in device.cuh."""
    if not name:
        return value
    # C has no literal for infinity
    finite = [math.copysign(_F32_MAX, v) if math.isinf(v) else v for v in params]
    return k.device("float32", f"spc_{name}", value, *(k.f32(v) for v in finite))
