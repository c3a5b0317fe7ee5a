"""What a penalty is, and what its arguments must look like.

Weight convention, stated once: a penalty object *is* R, its weight `rho` included, so `L1(0.1)` means
R(u) = 0.1 ||u||_1. `prox(v, step, out)` is prox_{step R}; an indicator has no weight and ignores the step.

Source: mathematics.md §5; Parikh & Boyd 2014, chapters 1-2. Verified by test.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from refimpl.errors import InputError
from refimpl.kernels import groups as kernels

Vector = np.ndarray  # 1-D, C-contiguous, float32 or float64

# A curved constraint (||u|| = r) holds only up to rounding: it counts as active from r(1 - ACTIVE eps),
# as violated from r(1 + ACTIVE eps), eps being the resolution of the vector's dtype times sqrt(its size).
ACTIVE = 32.0


@runtime_checkable
class Penalty(Protocol):
    """A closed convex function R on vectors, given by its value, its prox and its subdifferential.

    Any object with these three methods is a penalty; arrays are 1-D contiguous float32 or float64.
    """

    def value(self, u: Vector) -> float:
        """R(u); infinite outside the domain."""

    def prox(self, v: Vector, step: float, out: Vector) -> float:
        """Write argmin_u step R(u) + ||u - v||^2/2 into `out`; return R(out).

        `out` is v itself or shares no memory with it. Step 0 gives the projection of v on the domain of R.
        """

    def subdifferential_distance(self, s: Vector, u: Vector) -> float:
        """dist(s, dR(u)), Euclidean; infinite where dR(u) is empty. 0 iff s is a subgradient at u."""


@runtime_checkable
class Norm(Penalty, Protocol):
    """A penalty that is a norm (or a seminorm): positively homogeneous and symmetric."""

    def dual_norm(self, s: Vector) -> float:
        """max <s, u> over R(u) <= 1; dR(0) is the set of s with dual norm at most 1."""

    def conjugate_prox(self, v: Vector, step: float, out: Vector) -> None:
        """Write prox_{step R*}(v): the projection on the unit ball of the dual norm, whatever the step.

        Coded on its own, not through `prox`, so that Moreau's decomposition checks one by the other.
        """


def check_vector(who: str, name: str, x: Vector) -> None:
    """Raise `InputError` unless x is a writable contiguous 1-D float32/float64 array of finite numbers."""
    if not isinstance(x, np.ndarray) or x.ndim != 1 or x.dtype not in (np.float32, np.float64):
        got = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise InputError(f"`{who}`: expected {name} to be a 1-D float32 or float64 array, got {got}")
    if not (x.flags.c_contiguous and x.flags.writeable):
        raise InputError(f"`{who}`: expected {name} contiguous and writable; pass {name}.copy()")
    if not kernels.all_finite(x):
        raise InputError(f"`{who}`: {name} holds NaN or infinite entries; has the iteration diverged?")


def check_prox(who: str, v: Vector, step: float, out: Vector) -> None:
    """Raise `InputError` unless (v, step, out) are fit for a prox."""
    check_vector(who, "v", v)
    if not (np.isfinite(step) and step >= 0):
        raise InputError(f"`{who}`: expected a finite step >= 0, got {step!r}")
    if out is v:
        return
    if not isinstance(out, np.ndarray) or out.shape != v.shape or out.dtype != v.dtype:
        got = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise InputError(f"`{who}`: expected out like v, {v.dtype} {v.shape}, got {got}")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise InputError(f"`{who}`: expected out contiguous and writable; pass np.empty_like(v)")


def check_pair(who: str, s: Vector, u: Vector) -> None:
    """Raise `InputError` unless s and u are vectors of one length."""
    check_vector(who, "s", s)
    check_vector(who, "u", u)
    if s.shape != u.shape:
        raise InputError(f"`{who}`: expected s and u of one length, got {s.size} and {u.size}")


def check_weight(who: str, name: str, value: float, positive: bool = False) -> None:
    """Raise `InputError` unless `value` is finite and >= 0, or > 0 if `positive`."""
    if not np.isfinite(value) or value < 0 or (positive and value == 0):
        raise InputError(
            f"`{who}`: expected {name} {'> 0' if positive else '>= 0'} and finite, got {value!r}"
        )


def slack(u: Vector) -> float:
    """Relative tolerance within which a curved constraint counts as active at u."""
    return ACTIVE * float(np.finfo(u.dtype).eps) * max(1.0, float(u.size)) ** 0.5


def wide(x: Vector) -> Vector:
    """x in float64, for what is not on the path of training."""
    return x.astype(np.float64)
