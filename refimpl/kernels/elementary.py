"""exp, log and friends with one fixed sequence of operations, so that they give the same bits everywhere.

Library versions differ between machines and vector widths; these are float64 polynomials evaluated with
fused multiply-adds. Errors against a 50-digit reference stay below 2 units in the last place (tested).
float32 callers widen, evaluate here and round once, which is correctly rounded but for rare ties.

Source: argument reduction after Cody & Waite (1980); the series are Taylor's. Verified by test.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types

from refimpl.kernels.jit import intrinsic, kernel, settings

LOG2_E = 1.4426950408889634
LN2_HIGH = 6.93147180369123816490e-01  # 33 leading bits of ln 2: k * LN2_HIGH is exact for |k| < 2**20
LN2_LOW = 1.90821492927058770002e-10
EXP_OVERFLOW = 709.782712893384
EXP_UNDERFLOW = -745.1332191019412
SQRT_HALF = 0.7071067811865476
MIN_NORMAL = 2.2250738585072014e-308
TWO_54 = 18014398509481984.0
FRACTION, HALF = (1 << 52) - 1, 1022 << 52  # bits of a float64: its fraction, the exponent of 1/2


EXP_SERIES = tuple(1.0 / math.factorial(n) for n in range(13, 1, -1))  # Taylor's, the highest power first
ATANH_SERIES = tuple(2.0 / n for n in range(23, 1, -2))


@intrinsic
def _llvm_fma(typingctx, a, b, c):
    """LLVM's fused multiply-add on three scalars of one float type."""
    if a not in (types.float32, types.float64) or a != b or a != c:
        return None

    def codegen(context, builder, signature, args):
        return builder.fma(*args)

    return a(a, a, a), codegen


def _python_fma(a, b, c):
    """Stand-in where Numba's compiler is switched off: rounds twice, for coverage runs only."""
    return a * b + c


fma = _python_fma if settings.DISABLE_JIT else _llvm_fma


@kernel
def _reduce(x):
    """(k, r, rest) with e**x = 2**k * (1 + r + rest), |r| <= ln(2)/2 exact and `rest` small.

    Taylor to degree 13: the truncation is below 2**-57 relative. Keeping r apart from the rest lets the
    callers round their sum once.
    """
    k = np.floor(fma(x, LOG2_E, 0.5))
    r = fma(-k, LN2_HIGH, x)
    low = -k * LN2_LOW
    t = r + low
    p = EXP_SERIES[0]
    for i in range(1, len(EXP_SERIES)):
        p = fma(p, t, EXP_SERIES[i])
    return int(k), r, fma(p * t, t, low)


@kernel
def _sum3(a, b, small):
    """a + b + small, the first sum without error (Knuth's two-sum)."""
    s = a + b
    bb = s - a
    return s + (((a - (s - bb)) + (b - bb)) + small)


@kernel
def _power_of_two(k):
    """2.0**k for -1022 <= k <= 1023, by writing the exponent's bits."""
    return np.int64((k + 1023) << 52).view(np.float64)


@kernel
def exp(x):
    """e**x in float64. Free of branches, so that loops over it vectorise."""
    k, r, rest = _reduce(x if EXP_UNDERFLOW <= x <= EXP_OVERFLOW else 0.0)
    half = k >> 1  # in two factors, so that results near the limits neither overflow nor round twice
    y = _sum3(1.0, r, rest) * _power_of_two(half) * _power_of_two(k - half)
    y = math.inf if x > EXP_OVERFLOW else y
    y = 0.0 if x < EXP_UNDERFLOW else y
    return x if x != x else y


@kernel
def expm1(x):
    """e**x - 1 in float64, accurate near zero."""
    k, r, rest = _reduce(x if -40.0 <= x <= EXP_OVERFLOW else 0.0)
    scale = _power_of_two(k - 1)  # half of it: 2**1024 is no number
    y = 2.0 * _sum3(scale - 0.5, scale * r, scale * rest)
    y = math.inf if x > EXP_OVERFLOW else y
    y = -1.0 if x < -40.0 else y
    return x if x != x else y


@kernel
def _log_near_one(f, e):
    """log(1 + f) + e * ln(2) for 1 + f in [sqrt(1/2), sqrt(2)].

    With s = f/(2 + f) the series of log(1 + f) = 2 atanh(s) starts 2 s = f - f**2/2 + s f**2/2; keeping f
    itself, which carries no rounding error, apart from the small rest is what makes the result accurate.
    """
    s = f / (2.0 + f)
    z = s * s
    p = ATANH_SERIES[0]
    for i in range(1, len(ATANH_SERIES)):
        p = fma(p, z, ATANH_SERIES[i])
    half = 0.5 * f * f
    rest = half - fma(s, fma(p, z, half), e * LN2_LOW)
    return fma(e, LN2_HIGH, f - rest)


@kernel
def log(x):
    """Natural logarithm in float64."""
    if x != x or x < 0.0:
        return math.nan
    if x == 0.0:
        return -math.inf
    if x == math.inf:
        return x
    tiny = x < MIN_NORMAL
    bits = np.float64(x * TWO_54 if tiny else x).view(np.int64)
    e = (bits >> 52) - (1076 if tiny else 1022)
    m = np.int64((bits & FRACTION) | HALF).view(np.float64)  # x = m * 2**e, 1/2 <= m < 1
    small = m < SQRT_HALF
    return _log_near_one((2.0 * m if small else m) - 1.0, np.float64(e - 1 if small else e))


@kernel
def log1p(x):
    """log(1 + x) in float64, accurate near zero."""
    if -0.29 < x < 0.41:
        return _log_near_one(x, 0.0)
    y = 1.0 + x
    if not 0.0 < y < math.inf:
        return log(y)
    lost = x - (y - 1.0) if y < 4.0 else 1.0 - (y - x)  # what the rounding of 1 + x dropped, exactly
    return log(y) + lost / y


@kernel
def _ratio_to_sum(a, b, c):
    """a / (b + c), |b| >= |c|: the rounding of the sum and of the quotient corrected once."""
    s = b + c
    lost = c - (s - b)
    quotient = a / s
    return quotient + (fma(-quotient, s, a) - quotient * lost) / s


@kernel
def sigmoid(x):
    """1 / (1 + e**-x) without overflow."""
    if x >= 0.0:
        return _ratio_to_sum(1.0, 1.0, exp(-x))
    e = exp(x)
    return _ratio_to_sum(e, 1.0, e)


@kernel
def tanh(x):
    """Hyperbolic tangent, accurate near zero."""
    if x > 20.0:
        return 1.0
    if x < -20.0:
        return -1.0
    t = expm1(2.0 * abs(x))
    size = _ratio_to_sum(t, t, 2.0) if t > 2.0 else _ratio_to_sum(t, 2.0, t)
    return math.copysign(size, x)


@kernel
def softplus(x):
    """log(1 + e**x) without overflow."""
    return max(x, 0.0) + log1p(exp(-abs(x)))
