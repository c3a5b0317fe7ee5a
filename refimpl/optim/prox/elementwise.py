"""Penalties that act on each entry by itself.

Source: mathematics.md §5; Parikh & Boyd 2014, §6.1-6.2 and §6.5.2. Verified by test.
"""

from dataclasses import dataclass, field

import numpy as np

from refimpl.contracts import Vector
from refimpl.errors import InputError, shown
from refimpl.kernels import groups as kernels
from refimpl.optim.prox.contract import (
    CheckedPenalty,
    Indicator,
    Norm,
    radius_key,
    rounding,
    times,
    weight_key,
    wide,
)
from refimpl.registry import PENALTIES, check_keys, key


@PENALTIES.register("zero")
@dataclass(frozen=True)
class Zero(CheckedPenalty):
    """R(u) = 0: the penalty of the backbone. u = v is its prox, and dR(u) = {0}."""

    def _value(self, u: Vector) -> float:
        return 0.0

    def _prox(self, v: Vector, step: float, out: Vector) -> float:
        if out is not v:
            out[:] = v
        return 0.0

    def _distance(self, s: Vector, u: Vector) -> float:
        return kernels.safe_norm(s)


@PENALTIES.register("squared-l2")
@dataclass(frozen=True)
class SquaredL2(CheckedPenalty):
    """R(u) = rho/2 ||u||^2."""

    rho: float = weight_key()

    def _value(self, u: Vector) -> float:
        return half_square(self.rho, u)

    def _prox(self, v: Vector, step: float, out: Vector) -> float:
        """u = v / (1 + step rho)."""
        shrink_and_damp(v, 0.0, step, self.rho, out)
        return self._value(out)

    def _distance(self, s: Vector, u: Vector) -> float:
        """||s - rho u||."""
        return kernels.safe_norm(wide(s) - scaled(self.rho, u))


@PENALTIES.register("elastic-net")
@dataclass(frozen=True)
class ElasticNet(CheckedPenalty):
    """R(u) = rho ||u||_1 + ridge/2 ||u||^2."""

    rho: float = weight_key()
    ridge: float = key(1.0, "weight of the squared norm in the elastic net", at_least=0.0)

    def _value(self, u: Vector) -> float:
        return times(self.rho, kernels.absolute_sum(u)) + half_square(self.ridge, u)

    def _prox(self, v: Vector, step: float, out: Vector) -> float:
        """Soft threshold by step rho, then division by 1 + step ridge."""
        shrink_and_damp(v, times(step, self.rho), step, self.ridge, out)
        return self._value(out)

    def _distance(self, s: Vector, u: Vector) -> float:
        """Per entry |s - ridge u - rho sign(u)|, or max(|s| - rho, 0) where u = 0."""
        return kernels.safe_norm(l1_residual(wide(s) - scaled(self.ridge, u), u, self.rho))


@PENALTIES.register("l1")
@dataclass(frozen=True)
class L1(Norm):
    """R(u) = rho ||u||_1."""

    rho: float = weight_key()

    def _value(self, u: Vector) -> float:
        return times(self.rho, kernels.absolute_sum(u))

    def _prox(self, v: Vector, step: float, out: Vector) -> float:
        """Soft threshold: u = sign(v) max(|v| - step rho, 0)."""
        kernels.soft_threshold(v, times(step, self.rho), 1.0, out)
        return self._value(out)

    def _distance(self, s: Vector, u: Vector) -> float:
        """Per entry |s - rho sign(u)|, or max(|s| - rho, 0) where u = 0."""
        return kernels.safe_norm(l1_residual(wide(s), u, self.rho))

    def _dual_norm(self, s: Vector) -> float:
        """||s||_inf / rho."""
        return over(float(np.max(np.abs(s), initial=0.0)), self.rho)

    def _project_dual(self, v: Vector, out: Vector) -> None:
        """Clip to [-rho, rho]."""
        out[:] = np.clip(wide(v), -self.rho, self.rho)  # the bounds may be too large for the vector's dtype


@PENALTIES.register("non-negative-l1")
@dataclass(frozen=True)
class NonNegativeL1(CheckedPenalty):
    """R(u) = rho sum(u) for u >= 0, infinite otherwise."""

    rho: float = weight_key()

    def _value(self, u: Vector) -> float:
        return times(self.rho, kernels.absolute_sum(u)) if np.all(u >= 0) else np.inf

    def _prox(self, v: Vector, step: float, out: Vector) -> float:
        """u = max(v - step rho, 0)."""
        kernels.positive_threshold(v, times(step, self.rho), out)
        return self._value(out)

    def _distance(self, s: Vector, u: Vector) -> float:
        """Per entry |s - rho|, or max(s - rho, 0) where u = 0; infinite if u < 0 somewhere."""
        if np.any(u < 0):
            return np.inf
        residual = wide(s) - self.rho
        return kernels.safe_norm(np.where(u == 0, np.maximum(residual, 0.0), residual))


@PENALTIES.register("box")
@dataclass(frozen=True, eq=False)
class Box(Indicator):
    """Indicator of lower <= u <= upper; the bounds are numbers or vectors and may be infinite.

    Bounds are rounded to the dtype of the vector they meet. As for the balls, they hold up to rounding: one
    is active, not violated, where an entry is at most `contract.rounding` of its own size away from it.
    """

    lower: float | Vector = key(-1.0, "lower bound of each entry in the box", type="float", alone=-np.inf)
    upper: float | Vector = key(1.0, "upper bound of each entry in the box", type="float", alone=np.inf)

    def __post_init__(self) -> None:
        bounds = np.asarray(self.lower), np.asarray(self.upper)
        shapes = {bound.shape for bound in bounds if bound.ndim}
        if len(shapes) > 1 or any(bound.ndim > 1 or bound.dtype.kind not in "biuf" for bound in bounds):
            got = " and ".join(f"{bound.dtype} {bound.shape}" for bound in bounds)
            raise InputError(f"`Box`: expected bounds that are numbers or vectors of one length, got {got}")
        if not np.all(bounds[0] <= bounds[1]):  # also false for NaN
            got = f"{shown(self.lower)} and {shown(self.upper)}"
            raise InputError(f"`Box`: expected lower <= upper everywhere, got {got}")

    def _bounds(self, u: Vector) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(over="ignore"):
            return np.asarray(self.lower, dtype=u.dtype), np.asarray(self.upper, dtype=u.dtype)

    def _fits(self, who: str, x: Vector) -> None:
        lower, upper = self._bounds(x)
        for bound in (lower, upper):
            if bound.shape not in ((), x.shape):
                raise InputError(f"`{who}`: the bounds are for {bound.shape}, the vector has shape {x.shape}")
        if np.any(lower == np.inf) or np.any(upper == -np.inf):
            raise InputError(
                f"`{who}`: no {x.dtype} number lies in the box; expected lower < inf and upper > -inf"
            )

    def _contains(self, u: Vector) -> bool:
        lower, upper = self._bounds(u)
        return bool(np.all((side(u, lower) >= 0) & (side(u, upper) <= 0)))

    def _project(self, v: Vector, out: Vector) -> None:
        np.clip(v, *self._bounds(v), out=out)

    def _normal_distance(self, s: Vector, u: Vector) -> float:
        """s >= 0 is free at an upper bound, s <= 0 at a lower one."""
        lower, upper = self._bounds(u)
        residual = np.where(side(u, upper) == 0, np.minimum(wide(s), 0.0), wide(s))
        return kernels.safe_norm(np.where(side(u, lower) == 0, np.maximum(residual, 0.0), residual))


@PENALTIES.register("linf-ball")
@dataclass(frozen=True, eq=False)
class LinfBall(Box):
    """Indicator of ||u||_inf <= radius: a box."""

    lower: float | Vector = field(init=False)
    upper: float | Vector = field(init=False)
    radius: float = radius_key()

    def __post_init__(self) -> None:
        check_keys("`LinfBall`", self)
        object.__setattr__(self, "lower", -self.radius)
        object.__setattr__(self, "upper", self.radius)


def side(u: Vector, bound: Vector) -> Vector:
    """Per entry -1 below the bound, 0 at it up to rounding, 1 above it."""
    away = wide(u) - bound
    return np.where(np.abs(away) <= rounding(u) * np.abs(wide(u)), 0.0, np.sign(away))


def half_square(rho: float, u: Vector) -> float:
    """rho/2 ||u||^2, also where the square by itself leaves the range."""
    norm = kernels.safe_norm(u)
    return times(times(rho, norm), 0.5 * norm)


def scaled(factor: float, u: Vector) -> Vector:
    """factor u in float64, infinite where that is too large."""
    with np.errstate(over="ignore"):
        return factor * wide(u)


def shrink_and_damp(v: Vector, threshold: float, step: float, ridge: float, out: Vector) -> None:
    """out = soft threshold of v over 1 + step ridge; over step, then ridge, if their product overflows."""
    divisor = 1.0 + times(step, ridge)
    if divisor < np.inf:
        kernels.soft_threshold(v, threshold, divisor, out)
        return
    divided = np.empty(v.size)
    kernels.soft_threshold(v, threshold, float(step), divided)
    kernels.soft_threshold(divided, 0.0, float(ridge), out)


def l1_residual(s: Vector, u: Vector, rho: float) -> Vector:
    """s minus its nearest element of rho d||.||_1(u), float64."""
    at_zero = np.sign(s) * np.maximum(np.abs(s) - rho, 0.0)
    return np.where(u == 0, at_zero, s - rho * np.sign(u))


def over(numerator: float, weight: float) -> float:
    """numerator / weight, with 0/0 = 0 and x/0 = infinity: the dual norm of a vanishing norm."""
    if weight == 0:
        return 0.0 if numerator == 0 else np.inf
    return float(numerator) / float(weight)
