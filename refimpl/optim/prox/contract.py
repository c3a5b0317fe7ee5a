"""What a penalty is, and what its arguments must look like.

Weight convention, stated once: a penalty object *is* R, its weight `rho` included, so `L1(0.1)` means
R(u) = 0.1 ||u||_1. `prox(v, step, out)` is prox_{step R}; an indicator has no weight and ignores the step.

Range, for float64 (float32): entries, steps, weights and bounds may be zero or of size 1e-300 to 1e300 (1e-38
to 1e38 for entries), in any mixture. The relative error of a result is at most 1e-12 (1e-5); where two
numbers are subtracted, the error is at most that share of the larger one, as rounding it alone costs as much.
A result too large for the dtype is infinite. Subnormal numbers (below 2.2e-308 and 1.2e-38) are neither
flushed nor refused, but they have fewer digits: what is promised is a few units of the smallest of them.

Source: mathematics.md §5; Parikh & Boyd 2014, chapters 1-2. Verified by test.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from refimpl.contracts import Vector
from refimpl.errors import InputError, expect_numbers
from refimpl.kernels import groups as kernels
from refimpl.registry import check_keys, key

# A constraint holds only up to rounding: a bound r of one entry counts as active from r(1 - ACTIVE eps), as
# violated from r(1 + ACTIVE eps), eps being the resolution of the vector's dtype; a bound on a norm or a sum
# (||u|| <= r) likewise with eps times the root of the vector's size.
ACTIVE = 32.0


def weight_key() -> Any:
    """The key `rho` of every penalty that has a weight."""
    return key(0.01, "weight of the penalty", at_least=0.0, alone=1.0)


def radius_key() -> Any:
    """The key `radius` of every penalty that bounds a norm."""
    return key(10.0, "largest norm that the penalty allows", above=0.0, alone=1.0)


def check_form(who: str, name: str, x: Vector) -> None:
    """Raise `InputError` unless x is a writable contiguous 1-D float32/float64 array."""
    if not isinstance(x, np.ndarray) or x.ndim != 1 or x.dtype not in (np.float32, np.float64):
        got = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
        raise InputError(f"`{who}`: expected {name} to be a 1-D float32 or float64 array, got {got}")
    if not (x.flags.c_contiguous and x.flags.writeable):
        raise InputError(f"`{who}`: expected {name} contiguous and writable; pass {name}.copy()")


def check_alike(who: str, **vectors: Vector) -> None:
    """Raise `InputError` unless all are such arrays (`check_form`), of one length and one dtype."""
    first, like = next(iter(vectors.items()))
    for name, x in vectors.items():
        check_form(who, name, x)
        if x.size != like.size or x.dtype != like.dtype:
            got = f"{like.dtype} {like.shape} and {x.dtype} {x.shape}"
            raise InputError(f"`{who}`: expected {first} and {name} of one length and dtype, got {got}")


def check_vector(who: str, name: str, x: Vector) -> None:
    """Raise `InputError` unless x is such an array (`check_form`) of finite numbers."""
    check_form(who, name, x)
    if not kernels.all_finite(x):
        raise InputError(f"`{who}`: {name} holds NaN or infinite entries; has the iteration diverged?")


def check_prox(who: str, v: Vector, step: float, out: Vector) -> None:
    """Raise `InputError` unless (v, step, out) are fit for a prox."""
    check_vector(who, "v", v)
    expect_numbers(f"`{who}`", step=step)
    if out is v:
        return
    check_alike(who, v=v, out=out)
    if np.may_share_memory(v, out) and v.ctypes.data != out.ctypes.data:
        raise InputError(f"`{who}`: out overlaps v; pass v itself or memory of its own")


def check_pair(who: str, s: Vector, u: Vector) -> None:
    """Raise `InputError` unless s and u are vectors of one length."""
    check_vector(who, "s", s)
    check_vector(who, "u", u)
    if s.shape != u.shape:
        raise InputError(f"`{who}`: expected s and u of one length, got {s.size} and {u.size}")


def rounding(u: Vector) -> float:
    """Relative tolerance within which a bound of one entry of u counts as active."""
    return ACTIVE * float(np.finfo(u.dtype).eps)


def slack(u: Vector) -> float:
    """Relative tolerance within which a bound on a norm or a sum counts as active at u."""
    return rounding(u) * max(1.0, float(u.size)) ** 0.5


def times(x: float, y: float) -> float:
    """x y without NumPy's warning where it is infinite; 0 if x or y is, so that no weight is no penalty."""
    return float(x) * float(y) if x and y else 0.0


def add_up(values: Iterable[float]) -> float:
    """Sum of values >= 0, rounded once; infinite where `math.fsum` raises."""
    try:
        return math.fsum(values)
    except OverflowError:
        return math.inf


def wide(x: Vector) -> Vector:
    """x in float64, for what is not on the path of training."""
    return x.astype(np.float64)


class CheckedPenalty:
    """A penalty that checks its keys and arguments here; its subclasses hold nothing but formulas.

    A subclass writes `_value(u)`, `_prox(v, step, out)` and `_distance(s, u)`, which do what the methods of
    `Penalty` say and meet only arguments that are right. `_fits` refuses vectors of a wrong length.
    """

    _value: Callable[[Vector], float]
    _prox: Callable[[Vector, float, Vector], float]
    _distance: Callable[[Vector, Vector], float]

    def __post_init__(self) -> None:
        check_keys(f"`{type(self).__name__}`", self)

    def value(self, u: Vector) -> float:
        """R(u); infinite outside the domain."""
        check_vector(self._name("value"), "u", u)
        self._fits(self._name("value"), u)
        return self._value(u)

    def prox(self, v: Vector, step: float, out: Vector) -> float:
        """Write argmin_u step R(u) + ||u - v||^2/2 into `out`; return R(out)."""
        check_prox(self._name("prox"), v, step, out)
        self._fits(self._name("prox"), v)
        return self._prox(v, step, out)

    def subdifferential_distance(self, s: Vector, u: Vector) -> float:
        """dist(s, dR(u)); infinite where dR(u) is empty."""
        check_pair(self._name("subdifferential_distance"), s, u)
        self._fits(self._name("subdifferential_distance"), u)
        return float(self._distance(s, u))

    def _name(self, method: str) -> str:
        return f"{type(self).__name__}.{method}"

    def _fits(self, who: str, x: Vector) -> None:
        """Raise `InputError` if the penalty is for vectors of another length."""


class Norm(CheckedPenalty):
    """A penalty that is a norm or a seminorm; a subclass adds `_dual_norm(s)` and `_project_dual(v, out)`."""

    _dual_norm: Callable[[Vector], float]
    _project_dual: Callable[[Vector, Vector], None]

    def dual_norm(self, s: Vector) -> float:
        """max <s, u> over R(u) <= 1; dR(0) is the set of s with dual norm at most 1."""
        check_vector(self._name("dual_norm"), "s", s)
        self._fits(self._name("dual_norm"), s)
        return self._dual_norm(s)

    def conjugate_prox(self, v: Vector, step: float, out: Vector) -> None:
        """Write prox_{step R*}(v): the projection on the unit ball of the dual norm, whatever the step.

        Coded on its own, not through `prox`, so that Moreau's decomposition checks one by the other.
        """
        check_prox(self._name("conjugate_prox"), v, step, out)
        self._fits(self._name("conjugate_prox"), v)
        self._project_dual(v, out)


class Indicator(CheckedPenalty):
    """0 on a convex set and infinite elsewhere; a subclass says what the set is, up to rounding (`slack`)."""

    _contains: Callable[[Vector], bool]
    _project: Callable[[Vector, Vector], None]
    _normal_distance: Callable[[Vector, Vector], float]  # of s to the normal cone of the set at u

    def _value(self, u: Vector) -> float:
        return 0.0 if self._contains(u) else np.inf

    def _prox(self, v: Vector, step: float, out: Vector) -> float:
        self._project(v, out)
        return 0.0

    def _distance(self, s: Vector, u: Vector) -> float:
        return self._normal_distance(s, u) if self._contains(u) else np.inf
