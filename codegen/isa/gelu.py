"""GELU on AVX-512: x/2 + |x| h(|x|), where h = Phi - 1/2 is a polynomial in each of 16 segments whose coefficients a permutation of a
register looks up. Half the multiplications of the rational erf of vecmath.py, and no division.

Errors of h are below 2e-7, so results are as exact as with erf. From the last segment on h is 1/2 exactly: gelu(x) is x or 0.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from sparsec.codegen.isa.vecmath import bind

_SEGMENTS = 16
_DEGREE = 4
# 1/2 - h is below half an ulp of 1/2 from here on.
_CONSTANT_FROM = 5.4
_WIDTH = _CONSTANT_FROM / (_SEGMENTS - 1.5)
_MAGIC = 8388608.0
"""Added to a small number it leaves the nearest whole number in the low bits."""


def supported(k: Any, lanes: int) -> bool:
    """Whether `gelu` can be written for the target."""
    return "avx512" in k.target.features and lanes == 16


def gelu(k: Any, x: Any, lanes: int) -> Any:
    """x Phi(x), of a bound x."""
    T = k.T

    def fma(a: Any, b: Any, c: Any) -> Any:
        return T.call_llvm_pure_intrin(f"float32x{lanes}", "llvm.fma", a, b, c)

    size = bind(k, T.fabs(x))
    held = bind(k, T.min(k.f32(_WIDTH * (_SEGMENTS - 1), lanes), size))  # in this order NaN stays
    y = bind(k, fma(held, k.f32(1.0 / _WIDTH, lanes), k.f32(_MAGIC, lanes)))
    # fma hides the subtraction from TVM's simplifier, which would cancel it
    segment = bind(k, fma(y, k.f32(1.0, lanes), k.f32(-_MAGIC, lanes)))
    t = bind(k, fma(segment, k.f32(-_WIDTH, lanes), held))
    number = T.reinterpret(f"int32x{lanes}", y)  # a permutation reads the low four bits
    order = [T.int32(i) for i in range(_SEGMENTS)]
    h = None
    for row in reversed(_coefficients()):
        table = T.Shuffle([T.float32(c) for c in row], order)
        found = T.call_llvm_pure_intrin(f"float32x{lanes}", "llvm.x86.avx512.permvar.sf.512", table, number)
        h = found if h is None else fma(h, t, found)
    return fma(size, h, x * k.f32(0.5, lanes))


@cache
def _coefficients() -> tuple[tuple[float, ...], ...]:
    """[power][segment]: polynomials in the distance from the middle of a segment, through Chebyshev nodes."""
    nodes = np.cos((np.arange(_DEGREE + 1) + 0.5) * np.pi / (_DEGREE + 1)) * (_WIDTH / 2)
    found = np.zeros((_DEGREE + 1, _SEGMENTS))
    for segment in range(_SEGMENTS - 1):
        values = [0.5 * math.erf((segment * _WIDTH + t) * math.sqrt(0.5)) for t in nodes]
        found[:, segment] = np.polynomial.polynomial.polyfit(nodes, values, _DEGREE)
    found[0, 0] = 0.0  # where it is odd
    found[0, -1] = 0.5
    return tuple(tuple(float(np.float32(c)) for c in row) for row in found)
