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
from numba.core import config
from numba.extending import intrinsic

from refimpl.kernels.jit import kernel

LOG2_E = 1.4426950408889634
LN2_HIGH = 6.93147180369123816490e-01  # 33 leading bits of ln 2: k * LN2_HIGH is exact for |k| < 2**20
LN2_LOW = 1.90821492927058770002e-10
EXP_OVERFLOW = 709.782712893384
EXP_UNDERFLOW = -745.1332191019412
SQRT_HALF = 0.7071067811865476


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


fma = _python_fma if config.DISABLE_JIT else _llvm_fma


@kernel
def _expm1_reduced(r):
    """exp(r) - 1 for |r| <= ln(2)/2, Taylor to degree 13 (truncation below 2**-57 relative)."""
    p = 1.0 / 6227020800.0
    p = fma(p, r, 1.0 / 479001600.0)
    p = fma(p, r, 1.0 / 39916800.0)
    p = fma(p, r, 1.0 / 3628800.0)
    p = fma(p, r, 1.0 / 362880.0)
    p = fma(p, r, 1.0 / 40320.0)
    p = fma(p, r, 1.0 / 5040.0)
    p = fma(p, r, 1.0 / 720.0)
    p = fma(p, r, 1.0 / 120.0)
    p = fma(p, r, 1.0 / 24.0)
    p = fma(p, r, 1.0 / 6.0)
    p = fma(p, r, 0.5)
    return fma(p * r, r, r)


@kernel
def exp(x):
    """e**x in float64."""
    if x != x:
        return x
    if x > EXP_OVERFLOW:
        return math.inf
    if x < EXP_UNDERFLOW:
        return 0.0
    k = np.floor(fma(x, LOG2_E, 0.5))
    r = fma(-k, LN2_LOW, fma(-k, LN2_HIGH, x))
    half = int(k) // 2  # in two factors, so that results near the limits neither overflow nor round twice
    return math.ldexp(math.ldexp(1.0 + _expm1_reduced(r), half), int(k) - half)


@kernel
def expm1(x):
    """e**x - 1 in float64, accurate near zero."""
    if x != x or x > 700.0 or x < -40.0:
        return exp(x) - 1.0
    k = np.floor(fma(x, LOG2_E, 0.5))
    r = fma(-k, LN2_LOW, fma(-k, LN2_HIGH, x))
    scale = math.ldexp(1.0, int(k))
    return fma(scale, _expm1_reduced(r), scale - 1.0)


@kernel
def log(x):
    """Natural logarithm in float64."""
    if x != x or x < 0.0:
        return math.nan
    if x == 0.0:
        return -math.inf
    if x == math.inf:
        return x
    m, e = math.frexp(x)
    if m < SQRT_HALF:
        m *= 2.0
        e -= 1
    s = (m - 1.0) / (m + 1.0)  # log m = 2 atanh(s), |s| <= 0.172
    z = s * s
    p = 1.0 / 23.0
    p = fma(p, z, 1.0 / 21.0)
    p = fma(p, z, 1.0 / 19.0)
    p = fma(p, z, 1.0 / 17.0)
    p = fma(p, z, 1.0 / 15.0)
    p = fma(p, z, 1.0 / 13.0)
    p = fma(p, z, 1.0 / 11.0)
    p = fma(p, z, 1.0 / 9.0)
    p = fma(p, z, 1.0 / 7.0)
    p = fma(p, z, 1.0 / 5.0)
    p = fma(p, z, 1.0 / 3.0)
    tail = fma(2.0 * s * z, p, e * LN2_LOW)
    return fma(np.float64(e), LN2_HIGH, 2.0 * s + tail)


@kernel
def log1p(x):
    """log(1 + x) in float64, accurate near zero (Kahan's quotient cancels the rounding of 1 + x)."""
    y = 1.0 + x
    if y == 1.0:
        return x
    if y == math.inf:
        return y
    return log(y) * (x / (y - 1.0))


@kernel
def sigmoid(x):
    """1 / (1 + e**-x) without overflow."""
    if x >= 0.0:
        return 1.0 / (1.0 + exp(-x))
    e = exp(x)
    return e / (1.0 + e)


@kernel
def tanh(x):
    """Hyperbolic tangent, accurate near zero."""
    if x > 20.0:
        return 1.0
    if x < -20.0:
        return -1.0
    t = expm1(2.0 * x)
    return t / (t + 2.0)


@kernel
def softplus(x):
    """log(1 + e**x) without overflow."""
    return max(x, 0.0) + log1p(exp(-abs(x)))
