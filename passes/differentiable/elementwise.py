"""Elementwise operators of ONNX in torch, with their broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F

from sparsec.passes.differentiable.node import Builder, NodeView, Refused, Run, torch_dtype

__all__ = ["ELEMENTWISE"]

Tensor = torch.Tensor


def _plain(function: Any) -> Builder:
    return lambda view: function


def _div(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


def _gelu(view: NodeView) -> Run:
    approximate = view.string("approximate", "none")
    return lambda x: F.gelu(x, approximate=approximate)


def _leaky_relu(view: NodeView) -> Run:
    alpha = view.number("alpha", 0.01)
    return lambda x: F.leaky_relu(x, alpha)


def _elu(view: NodeView) -> Run:
    alpha = view.number("alpha", 1.0)
    return lambda x: F.elu(x, alpha)


def _hard_sigmoid(view: NodeView) -> Run:
    alpha, beta = view.number("alpha", 0.2), view.number("beta", 0.5)
    return lambda x: torch.clamp(alpha * x + beta, 0.0, 1.0)


def _clip(view: NodeView) -> Run:
    low, high = (
        None if (limit := view.constant(i)) is None or not limit.size else limit.reshape(()).item() for i in (1, 2)
    )
    if low is None and high is None:
        return lambda x, *_: x
    return lambda x, *_: torch.clamp(x, low, high)


def _cast(view: NodeView) -> Run:
    dtype = torch_dtype(ir.DataType(view.integer("to", 0)))
    return lambda x: x.to(dtype)


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Builder:
    return lambda view: lambda *given: reduce(function, given)


def _dropout(view: NodeView) -> Run:
    if len(view.node.outputs) > 1:
        raise Refused("its mask is read")
    return lambda x, *_: x


ELEMENTWISE: dict[str, Builder] = {
    **{
        name: _plain(function)
        for name, function in {
            "Abs": torch.abs, "Neg": torch.neg, "Sqrt": torch.sqrt, "Exp": torch.exp, "Log": torch.log,
            "Reciprocal": torch.reciprocal, "Sin": torch.sin, "Cos": torch.cos, "Erf": torch.erf, "Tanh": torch.tanh,
            "Relu": torch.relu, "Sigmoid": torch.sigmoid, "Softplus": F.softplus, "Softsign": F.softsign,
            "HardSwish": F.hardswish, "Mish": F.mish, "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round,
            "Sign": torch.sign, "Identity": lambda x: x, "Not": torch.logical_not,
            "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": _div, "Pow": torch.pow, "PRelu": _prelu,
            "Equal": torch.eq, "Less": torch.lt, "LessOrEqual": torch.le, "Greater": torch.gt,
            "GreaterOrEqual": torch.ge, "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor,
            "Where": torch.where,
        }.items()
    },
    "Cast": _cast,
    "Clip": _clip,
    "Dropout": _dropout,
    "Elu": _elu,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "LeakyRelu": _leaky_relu,
    "Max": _variadic(torch.maximum),
    "Min": _variadic(torch.minimum),
    "Sum": _variadic(torch.add),
}  # fmt: skip
"""By operator."""
