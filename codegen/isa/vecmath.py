"""Elementary functions on float32 TIR expressions, as range reduction and polynomials.

TVM turns a vector exp, log, erf or tanh into one libm call per lane; these functions stay in vector registers. Each takes
the KernelBuilder, a float32 expression of `lanes` lanes (1 = scalar) and returns an expression of the same type. Values used
more than once are bound to a variable (`bind`) in the current block, so expressions never grow exponentially; call the
functions where a statement may be emitted.

Sources: exp, log and the sine kernels follow Cephes (S. Moshier, expf.c, logf.c, sinf.c); tanh and erf are the rational
approximations of Eigen (MathFunctionsImpl.h). NaN propagates, infinities give the limits. Errors against float64 (relative,
measured by tests/kernels/test_vecmath.py): exp 2e-7, log 2e-7, tanh 4e-7, erf 5e-7, sigmoid 3e-7, sin/cos 2e-7, pow 1e-7.
"""

from __future__ import annotations

from typing import Any

Expr = Any  # TIR expression
_F32_MAX = 3.4028234663852886e38
# 2**r for |r| <= 1/2, highest coefficient first.
_POWER = (1.32534130e-3, 9.67238332e-3, 5.55080043e-2, 2.40222233e-1, 6.93146887e-1, 1.0)
# log2(e) as a float32 and what that leaves.
LOG2_E, _LOG2_E_REST = 1.44269502162933349609375, 1.92596299e-8

# 2/pi in pieces of 24 bits: the product of one with a float32 is exact in float64 (see _quarter_turns).
_TWO_OVER_PI = (
    0xA2F983, 0x6E4E44, 0x1529FC, 0x2757D1, 0xF534DD, 0xC0DB62, 0x95993C, 0x439041, 0xFE5163,
)  # fmt: skip


def bind(k: Any, value: Expr) -> Expr:
    """Compute `value` here, once, and return what stands for it.

    Floats pass through a local that LLVM keeps in a register: TVM's simplifier substitutes bound variables into their uses,
    and a chain of polynomials would grow exponentially.
    """
    dtype = str(value.ty.dtype) if hasattr(value, "ty") else str(value.dtype)
    base, _, lanes = dtype.partition("x")
    if base == "bool" and lanes:  # TVM cannot bind a vector of bool
        flags = k.local(int(lanes), "uint8")
        one, zero = k.splat(k.T.uint8(1), int(lanes)), k.splat(k.T.uint8(0), int(lanes))
        k.store(flags, 0, k.T.Select(value, one, zero), int(lanes))
        return k.load(flags, 0, int(lanes)) > zero
    if not base.startswith("float"):
        return k.T.Bind(value)
    held = k.local(int(lanes or 1), base)
    k.store(held, 0, value, int(lanes or 1))
    return k.load(held, 0, int(lanes or 1))


def hold(k: Any, index: Expr) -> Expr:
    """Like `bind` for an int32 index with constants to be added: TVM's simplifier would work them into every use, where LLVM finds
    one register and displacements if it is left alone."""
    held = k.local(1, "int32")
    k.store(held, 0, index)
    return k.load(held, 0)


def held(k: Any, value: Expr, lanes: int, dtype: str) -> Expr:
    """`value` by way of a local, which LLVM keeps in a register: whole numbers that TVM's simplifier must not work into their uses."""
    local = k.local(lanes, dtype)
    k.store(local, 0, value, lanes)
    return k.load(local, 0, lanes)


def unknown_count(k: Any, times: int) -> Expr:
    """`times`, for a loop that the compiler must not unroll: what it cannot know, and we do, is that no unit's number is negative."""
    return k.T.max(k.T.int32(times), k.T.int32(0) - k.lo)


def typed(k: Any, dtype: str, lanes: int) -> str:
    """TIR type name of a vector: ("float32", 8) -> "float32x8"."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def _cast(k: Any, value: Expr, dtype: str, lanes: int) -> Expr:
    return k.T.Cast(typed(k, dtype, lanes), value)


def _f64(k: Any, value: float, lanes: int) -> Expr:
    # not T.float64(value), which passes through a float32 literal
    return k.splat(k.T.FloatImm("float64", value), lanes)


def fma(k: Any, a: Expr, b: Expr, c: Expr, lanes: int, dtype: str = "float32") -> Expr:
    """a * b + c, rounded once."""
    return k.T.call_llvm_pure_intrin(typed(k, dtype, lanes), "llvm.fma", a, b, c)


def horner(k: Any, x: Expr, coefficients: tuple[float, ...], lanes: int, dtype: str = "float32") -> Expr:
    """Polynomial in x, highest coefficient first."""
    const = k.f32 if dtype == "float32" else (lambda v, n: _f64(k, v, n))
    result = const(coefficients[0], lanes)
    for c in coefficients[1:]:
        result = fma(k, result, x, const(c, lanes), lanes, dtype)
    return result


def opaque(k: Any, value: Expr, lanes: int, dtype: str = "float32") -> Expr:
    """`value`, bound behind fma(value, 1, -0), which LLVM folds away but TVM's simplifier does not see through.

    That simplifier substitutes bound values and can take exponential time on selects whose conditions depend on selects.
    """
    one, minus_zero = (k.splat(k.T.FloatImm(dtype, v), lanes) for v in (1.0, -0.0))
    return bind(k, fma(k, value, one, minus_zero, lanes, dtype))


def select(k: Any, condition: Expr, then: Expr, other: Expr, lanes: int, dtype: str = "float32") -> Expr:
    """`then` where the condition holds, else `other`."""
    return opaque(k, k.T.Select(condition, then, other), lanes, dtype)


def _power_of_two(k: Any, n: Expr, lanes: int) -> Expr:
    """2**n for an int32 n in [-126, 127]."""
    return k.T.reinterpret(typed(k, "float32", lanes), (n + k.i32(127, lanes)) << k.i32(23, lanes))


def _at_most(k: Any, x: Expr, bound: float, lanes: int) -> Expr:
    """min(x, bound); NaN stays NaN: T.min(a, b) is a < b ? a : b, one instruction with the bound first."""
    return opaque(k, k.T.min(k.f32(bound, lanes), x), lanes)


def _at_least(k: Any, x: Expr, bound: float, lanes: int) -> Expr:
    return opaque(k, k.T.max(k.f32(bound, lanes), x), lanes)


def nearest(k: Any, x: Expr, lanes: int) -> Expr:
    """x rounded to int32, halves to even."""
    dtype = typed(k, "int32", lanes)
    if k.target.arch == "x86_64":  # one instruction instead of two
        return k.T.call_llvm_pure_intrin(dtype, "llvm.lrint", x)
    return k.T.Cast(dtype, k.T.nearbyint(x))


def _quotient(k: Any, a: Expr, b: Expr, lanes: int) -> Expr:
    """a / b within 2 ulp, for a bound b that is no denormal and whose reciprocal is none: AVX-512 divides a vector in the time of ten
    multiplications, so there an estimate of 14 bits and a step of Newton's method stand in."""
    if "avx512" not in k.target.features or lanes != 16:
        return a / b
    estimate = k.T.call_llvm_pure_intrin(
        "float32x16", "llvm.x86.avx512.rcp14.ps.512", b, k.f32(0.0, lanes), k.T.reinterpret("int16", k.T.uint16(65535))
    )
    r = bind(k, estimate)
    return a * bind(k, r * (k.f32(2.0, lanes) - b * r))


def exp(k: Any, x: Expr, lanes: int) -> Expr:
    """e**x: n = round(x / ln 2), a polynomial in the rest, times 2**n in two factors so that results near the limits are right."""
    x = bind(k, _at_least(k, _at_most(k, x, 89.0, lanes), -105.0, lanes))
    n = bind(k, k.T.nearbyint(x * k.f32(1.4426950408889634, lanes)))
    r = fma(k, n, k.f32(-0.693359375, lanes), x, lanes)
    r = bind(k, fma(k, n, k.f32(2.12194440e-4, lanes), r, lanes))
    c = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
    p = fma(k, horner(k, r, c, lanes), bind(k, r * r), r + k.f32(1.0, lanes), lanes)
    whole = _cast(k, n, "int32", lanes)
    half = whole >> k.i32(1, lanes)
    return bind(k, p * _power_of_two(k, half, lanes) * _power_of_two(k, whole - half, lanes))


def exp2_negative(k: Any, x: Expr, lanes: int) -> Expr:
    """2**x for x <= 0; below -126 it stays 2**-126, which is nothing beside the weight of 1 that every softmax has."""
    held = bind(k, k.T.max(k.f32(-126.0, lanes), x))  # in this order NaN stays
    y = bind(k, held + k.f32(12582912.0, lanes))  # n in its low bits, see exp_negative
    # fma hides the subtractions from TVM's simplifier, which would cancel them
    n = bind(k, fma(k, y, k.f32(1.0, lanes), k.f32(-12582912.0, lanes), lanes))
    r = bind(k, held - n)
    bits = k.T.reinterpret(typed(k, "int32", lanes), bind(k, horner(k, r, _POWER, lanes)))
    shift = k.T.reinterpret(typed(k, "int32", lanes), y) << k.i32(23, lanes)
    return bind(k, k.T.reinterpret(typed(k, "float32", lanes), bits + shift))


def exp_negative(k: Any, x: Expr, lanes: int) -> Expr:
    """e**x for x <= 0, as softmax needs it: half the instructions of `exp`; 0 where the result would be denormal (x < -87.3).

    2**(n + r) with n the nearest whole number to x log2(e), r in two steps from the halves of log2(e) and a polynomial of least
    relative error, 8e-8. The rounding constant 1.5 * 2**23 leaves n in the low bits of y, from where it is shifted into the exponent.
    """
    x = bind(k, x)
    held = bind(k, k.T.max(k.f32(-87.3, lanes), x))  # in this order NaN stays
    y = bind(k, fma(k, held, k.f32(LOG2_E, lanes), k.f32(12582912.0, lanes), lanes))
    # fma hides the subtraction from TVM's simplifier, which would cancel it
    minus_n = bind(k, fma(k, y, k.f32(-1.0, lanes), k.f32(12582912.0, lanes), lanes))
    r = fma(k, held, k.f32(LOG2_E, lanes), minus_n, lanes)
    r = bind(k, fma(k, held, k.f32(_LOG2_E_REST, lanes), r, lanes))
    p = horner(k, r, _POWER, lanes)
    bits = k.T.reinterpret(typed(k, "int32", lanes), bind(k, p))
    shift = k.T.reinterpret(typed(k, "int32", lanes), y) << k.i32(23, lanes)
    value = k.T.reinterpret(typed(k, "float32", lanes), bits + shift)
    return select(k, x < k.f32(-87.3, lanes), k.f32(0.0, lanes), value, lanes)


def _split(k: Any, x: Expr, lanes: int) -> tuple[Expr, Expr]:
    """(m, e), both float32: x = m * 2**e with m in [sqrt(1/2), sqrt(2)), for a bound positive x, denormals included."""
    T = k.T
    tiny = x < k.f32(1.17549435e-38, lanes)
    scaled = select(k, tiny, x * k.f32(8388608.0, lanes), x, lanes)
    bits = T.reinterpret(typed(k, "int32", lanes), scaled)
    # subtracting the bits of sqrt(1/2) makes the exponent field count from there
    exponent = (bits - k.i32(0x3F3504F3, lanes)) >> k.i32(23, lanes)
    e = _cast(k, exponent, "float32", lanes) - select(k, tiny, k.f32(23.0, lanes), k.f32(0.0, lanes), lanes)
    m = T.reinterpret(typed(k, "float32", lanes), bits - (exponent << k.i32(23, lanes)))
    return bind(k, m), bind(k, e)


def log(k: Any, x: Expr, lanes: int) -> Expr:
    """Natural logarithm: -inf at 0, NaN below, right for denormals."""
    x = bind(k, x)
    mantissa, e = _split(k, x, lanes)
    m = bind(k, mantissa - k.f32(1.0, lanes))
    z = bind(k, m * m)
    c = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
         2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)  # fmt: skip
    y = horner(k, m, c, lanes) * m * z
    y = fma(k, e, k.f32(-2.12194440e-4, lanes), y, lanes)
    y = fma(k, z, k.f32(-0.5, lanes), y, lanes)
    y = bind(k, fma(k, e, k.f32(0.693359375, lanes), m + y, lanes))
    inf, zero = k.f32(float("inf"), lanes), k.f32(0.0, lanes)
    y = select(k, x <= k.f32(_F32_MAX, lanes), y, x, lanes)  # inf and NaN are their own logarithm
    y = select(k, x == zero, zero - inf, y, lanes)
    return select(k, x < zero, k.f32(float("nan"), lanes), y, lanes)


def log1p(k: Any, x: Expr, lanes: int) -> Expr:
    """log(1 + x) without the loss near 0: log(w) + (x - (w - 1)) / w with w = 1 + x (Kahan's correction), x > -1."""
    one = k.f32(1.0, lanes)
    x = bind(k, x)
    w = bind(k, x + one)
    # fma hides the subtraction from TVM's simplifier, which would cancel it
    lost = x - bind(k, fma(k, w, one, k.f32(-1.0, lanes), lanes))
    corrected = log(k, w, lanes) + lost / w
    return select(k, w < k.f32(float("inf"), lanes), corrected, x, lanes)


def tanh(k: Any, x: Expr, lanes: int) -> Expr:
    """Hyperbolic tangent: odd rational function on [-9, 9], which is 1 in float32 from there on."""
    x = bind(k, x)
    c = bind(k, _at_least(k, _at_most(k, x, 7.90531110763549805, lanes), -7.90531110763549805, lanes))
    z = bind(k, c * c)
    alpha = (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
             1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03)  # fmt: skip
    beta = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
    y = _quotient(k, c * horner(k, z, alpha, lanes), bind(k, horner(k, z, beta, lanes)), lanes)
    return select(k, k.T.fabs(x) < k.f32(0.0004, lanes), x, y, lanes)


def erf(k: Any, x: Expr, lanes: int) -> Expr:
    """Error function: odd rational function on [-4, 4], which is 1 in float32 from there on."""
    c = bind(k, _at_least(k, _at_most(k, x, 4.0, lanes), -4.0, lanes))
    z = bind(k, c * c)
    alpha = (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
             -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02)  # fmt: skip
    beta = (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
            -1.42647390514189e-02)  # fmt: skip
    return bind(k, _quotient(k, c * horner(k, z, alpha, lanes), bind(k, horner(k, z, beta, lanes)), lanes))


def sigmoid(k: Any, x: Expr, lanes: int) -> Expr:
    """1 / (1 + e**-x)."""
    one = k.f32(1.0, lanes)
    return bind(k, one / (one + exp(k, k.f32(0.0, lanes) - x, lanes)))


def sqrt(k: Any, x: Expr, lanes: int) -> Expr:
    """Square root, correctly rounded."""
    return bind(k, k.T.sqrt(x))


def rsqrt(k: Any, x: Expr, lanes: int) -> Expr:
    """1 / sqrt(x), within 1 ulp."""
    return bind(k, k.f32(1.0, lanes) / k.T.sqrt(x))


def _quarter_turns(k: Any, x: Expr, lanes: int) -> tuple[Expr, Expr]:
    """(q, r): x = (4j + q) pi/2 + r with r in [-pi/4, pi/4], q int32 in [0, 4), right for every finite float32.

    Payne and Hanek's idea in float64: x times each piece of 2/pi is exact, whole turns are dropped from each product exactly,
    so nothing is lost however large x is.
    """
    wide = bind(k, _cast(k, x, "float64", lanes))
    four = _f64(k, 4.0, lanes)
    total: Expr = None
    for i, piece in enumerate(_TWO_OVER_PI):
        product = bind(k, wide * _f64(k, piece * 2.0 ** (-24 * (i + 1)), lanes))
        turns = k.T.nearbyint(product * _f64(k, 0.25, lanes))
        rest = fma(k, turns, _f64(k, 0.0, lanes) - four, product, lanes, "float64")
        total = rest if total is None else total + rest
    total = bind(k, total)
    n = bind(k, k.T.nearbyint(total))
    r = _cast(k, (total - n) * _f64(k, 1.5707963267948966, lanes), "float32", lanes)
    finite = n - n == _f64(k, 0.0, lanes)  # converting NaN to an integer is undefined
    q = _cast(k, select(k, finite, n, _f64(k, 0.0, lanes), lanes, "float64"), "int32", lanes)
    return k.T.bitwise_and(q, k.i32(3, lanes)), bind(k, r)


def _sin_quadrant(k: Any, q: Expr, r: Expr, lanes: int) -> Expr:
    T = k.T
    z = bind(k, r * r)
    s = horner(k, z, (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1), lanes)
    sine = fma(k, s * z, r, r, lanes)
    c = horner(k, z, (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2), lanes)
    cosine = fma(k, c * z, z, fma(k, z, k.f32(-0.5, lanes), k.f32(1.0, lanes), lanes), lanes)
    y = select(k, T.bitwise_and(q, k.i32(1, lanes)) == k.i32(0, lanes), sine, cosine, lanes)
    return select(k, T.bitwise_and(q, k.i32(2, lanes)) == k.i32(0, lanes), y, k.f32(0.0, lanes) - y, lanes)


def sin(k: Any, x: Expr, lanes: int) -> Expr:
    """Sine of x radians; NaN at +-inf."""
    q, r = _quarter_turns(k, x, lanes)
    return _sin_quadrant(k, q, r, lanes)


def cos(k: Any, x: Expr, lanes: int) -> Expr:
    """Cosine of x radians; NaN at +-inf."""
    q, r = _quarter_turns(k, x, lanes)
    return _sin_quadrant(k, q + k.i32(1, lanes), r, lanes)


def pow(k: Any, x: Expr, y: Expr, lanes: int) -> Expr:
    """x**y with C's special cases (pow(x, 0) = pow(1, y) = 1; a negative x needs a whole y).

    2**(y log2|x|) in float64, since an error in the exponent grows with it. log2 by the series of atanh.
    """
    T, f64 = k.T, "float64"
    one, zero, inf = k.f32(1.0, lanes), k.f32(0.0, lanes), k.f32(float("inf"), lanes)
    x, y = opaque(k, x, lanes), opaque(k, y, lanes)
    size = opaque(k, T.fabs(x), lanes)

    mantissa, exponent = _split(k, size, lanes)
    m = bind(k, _cast(k, mantissa, f64, lanes))
    s = bind(k, (m - _f64(k, 1.0, lanes)) / (m + _f64(k, 1.0, lanes)))
    z = bind(k, s * s)
    series = horner(k, z, tuple(2.8853900817779268 / n for n in (13, 11, 9, 7, 5, 3, 1)), lanes, f64)
    log2 = fma(k, series, s, _cast(k, exponent, f64, lanes), lanes, f64)
    log2 = select(k, size == zero, _f64(k, float("-inf"), lanes), log2, lanes, f64)
    log2 = select(k, size < inf, log2, _cast(k, size, f64, lanes), lanes, f64)  # inf and NaN

    t = bind(k, _cast(k, y, f64, lanes) * log2)
    # llvm.minimum keeps NaN; TVM's simplifier does not end on two selects here
    t = T.call_llvm_pure_intrin(typed(k, f64, lanes), "llvm.minimum", t, _f64(k, 130.0, lanes))
    t = bind(k, T.call_llvm_pure_intrin(typed(k, f64, lanes), "llvm.maximum", t, _f64(k, -152.0, lanes)))
    n = bind(k, T.nearbyint(t))
    taylor, term = [1.0], 1.0
    for i in range(1, 10):
        term *= 0.6931471805599453 / i
        taylor.append(term)
    p = bind(k, _cast(k, horner(k, bind(k, t - n), tuple(reversed(taylor)), lanes, f64), "float32", lanes))
    narrow = bind(k, _cast(k, n, "float32", lanes))
    whole = _cast(k, select(k, narrow == narrow, narrow, zero, lanes), "int32", lanes)
    half = whole >> k.i32(1, lanes)
    power = bind(k, p * _power_of_two(k, half, lanes) * _power_of_two(k, whole - half, lanes))

    is_whole = opaque(k, T.floor(y), lanes) == y
    halved = opaque(k, y * k.f32(0.5, lanes), lanes)
    signed = select(
        k, opaque(k, T.floor(halved), lanes) == halved, power, zero - power, lanes
    )  # for a whole y and a negative x
    negative = select(k, is_whole, signed, k.f32(float("nan"), lanes), lanes)
    edge = select(k, is_whole, signed, power, lanes)  # -0 and -inf are never out of the domain
    below = select(k, x == zero - inf, edge, negative, lanes)
    minus_zero = opaque(k, one / x, lanes) < zero
    at_zero = select(k, minus_zero, edge, power, lanes)
    result = select(k, x < zero, below, select(k, x == zero, at_zero, power, lanes), lanes)
    # |x| = 1 to an infinite power is 1, and so are pow(x, 0) and pow(1, y) whatever the other is
    result = select(k, size == one, select(k, T.fabs(y) == inf, one, result, lanes), result, lanes)
    return select(k, y == zero, one, select(k, x == one, one, result, lanes), lanes)
