"""GELU, x Phi(x), as x/2 + |x| h(|x|) with h = Phi - 1/2, which is 1/2 exactly from some |x| on: gelu(x) is x or 0 there.

On AVX-512 h is a polynomial in each of 16 segments whose coefficients a permutation of a register looks up: half the multiplications
of a rational function, and no division. Elsewhere h is |x| times a rational function of x^2 of least absolute error. Errors of h are
below 2.5e-7, so results are as exact as with erf.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from sparsec.codegen.isa.vecmath import bind, fma, horner

_SEGMENTS = 16
_DEGREE = 4
# 1/2 - h is below half an ulp of 1/2 from here on.
_CONSTANT_FROM = 5.4
_WIDTH = _CONSTANT_FROM / (_SEGMENTS - 1.5)
_MAGIC = 8388608.0
"""Added to a small number it leaves the nearest whole number in the low bits."""

# h(x) = x P(x^2) / Q(x^2) up to here, where it is 1/2 in float32; highest coefficients first.
_HALF_FROM = 5.28
_P = (11.96984577178955, 658.9896240234375, 10538.6162109375, 97627.96875, 716927.1875)
_Q = (1.0, 236.4371795654297, 5408.2021484375, 72220.2109375, 544213.5, 1797072.5)


def gelu(k: Any, x: Any, lanes: int) -> Any:
    """x Phi(x) (Hendrycks and Gimpel, 2016) of a float32 vector; NaN stays. Writes statements."""
    x = bind(k, x)
    size = bind(k, k.T.fabs(x))
    looked_up = "avx512" in k.target.features and lanes == 16
    h = (_by_segments if looked_up else _rational)(k, size, lanes)
    return fma(k, size, h, x * k.f32(0.5, lanes), lanes)


def _rational(k: Any, size: Any, lanes: int) -> Any:
    """h of a bound |x|."""
    u = bind(k, k.T.min(k.f32(_HALF_FROM, lanes), size))  # in this order NaN stays
    z = bind(k, u * u)
    above, below = horner(k, z, _P, lanes), horner(k, z, _Q, lanes)
    return bind(k, u * above / bind(k, below))


def _by_segments(k: Any, size: Any, lanes: int) -> Any:
    """h of a bound |x|."""
    T = k.T
    held = bind(k, T.min(k.f32(_WIDTH * (_SEGMENTS - 1), lanes), size))  # in this order NaN stays
    y = bind(k, fma(k, held, k.f32(1.0 / _WIDTH, lanes), k.f32(_MAGIC, lanes), lanes))
    # fma hides the subtraction from TVM's simplifier, which would cancel it
    segment = bind(k, fma(k, y, k.f32(1.0, lanes), k.f32(-_MAGIC, lanes), lanes))
    t = bind(k, fma(k, segment, k.f32(-_WIDTH, lanes), held, lanes))
    number = T.reinterpret(f"int32x{lanes}", y)  # a permutation reads the low four bits
    order = [T.int32(i) for i in range(_SEGMENTS)]
    h = None
    for row in reversed(_coefficients()):
        table = T.Shuffle([T.float32(c) for c in row], order)
        found = T.call_llvm_pure_intrin(f"float32x{lanes}", "llvm.x86.avx512.permvar.sf.512", table, number)
        h = found if h is None else fma(k, h, t, found, lanes)
    return h


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
