"""Penalties that act on each entry by itself.

Source: mathematics.md §5; Parikh & Boyd 2014, §6.1-6.2 and §6.5.2. Verified by test.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refimpl.errors import InputError
from refimpl.kernels import groups as kernels
from refimpl.optim.prox.contract import Vector, check_pair, check_prox, check_vector, check_weight, wide


@dataclass(frozen=True)
class Zero:
    """R(u) = 0: the penalty of the backbone."""

    def value(self, u: Vector) -> float:
        """0."""
        check_vector("Zero.value", "u", u)
        return 0.0

    def prox(self, v: Vector, step: float, out: Vector) -> float:
        """u = v."""
        check_prox("Zero.prox", v, step, out)
        if out is not v:
            out[:] = v
        return 0.0

    def subdifferential_distance(self, s: Vector, u: Vector) -> float:
        """||s||, as dR(u) = {0}."""
        check_pair("Zero.subdifferential_distance", s, u)
        return float(kernels.safe_norm(s))


@dataclass(frozen=True)
class SquaredL2:
    """R(u) = rho/2 ||u||^2."""

    rho: float = 1.0

    def __post_init__(self) -> None:
        check_weight("SquaredL2", "rho", self.rho)

    def value(self, u: Vector) -> float:
        """rho/2 ||u||^2."""
        check_vector("SquaredL2.value", "u", u)
        return float(0.5 * self.rho * square(kernels.safe_norm(u)))

    def prox(self, v: Vector, step: float, out: Vector) -> float:
        """u = v / (1 + step rho)."""
        check_prox("SquaredL2.prox", v, step, out)
        kernels.soft_threshold(v, 0.0, float(1.0 + step * self.rho), out)
        return float(0.5 * self.rho * square(kernels.safe_norm(out)))

    def subdifferential_distance(self, s: Vector, u: Vector) -> float:
        """||s - rho u||."""
        check_pair("SquaredL2.subdifferential_distance", s, u)
        return float(kernels.safe_norm(wide(s) - self.rho * wide(u)))


@dataclass(frozen=True)
class ElasticNet:
    """R(u) = rho ||u||_1 + ridge/2 ||u||^2."""

    rho: float = 1.0
    ridge: float = 1.0

    def __post_init__(self) -> None:
        check_weight("ElasticNet", "rho", self.rho)
        check_weight("ElasticNet", "ridge", self.ridge)

    def _value(self, u: Vector) -> float:
        ridge = 0.5 * self.ridge * square(kernels.safe_norm(u)) if self.ridge else 0.0
        return float(self.rho * kernels.absolute_sum(u) + ridge)

    def value(self, u: Vector) -> float:
        """rho ||u||_1 + ridge/2 ||u||^2."""
        check_vector("ElasticNet.value", "u", u)
        return self._value(u)

    def prox(self, v: Vector, step: float, out: Vector) -> float:
        """Soft threshold by step rho, then division by 1 + step ridge."""
        check_prox("ElasticNet.prox", v, step, out)
        kernels.soft_threshold(v, float(step * self.rho), float(1.0 + step * self.ridge), out)
        return self._value(out)

    def subdifferential_distance(self, s: Vector, u: Vector) -> float:
        """Per entry |s - ridge u - rho sign(u)|, or max(|s| - rho, 0) where u = 0."""
        check_pair("ElasticNet.subdifferential_distance", s, u)
        return float(kernels.safe_norm(l1_residual(wide(s) - self.ridge * wide(u), u, self.rho)))


@dataclass(frozen=True)
class L1:
    """R(u) = rho ||u||_1."""

    rho: float = 1.0

    def __post_init__(self) -> None:
        check_weight("L1", "rho", self.rho)

    def value(self, u: Vector) -> float:
        """rho ||u||_1."""
        check_vector("L1.value", "u", u)
        return float(self.rho * kernels.absolute_sum(u))

    def prox(self, v: Vector, step: float, out: Vector) -> float:
        """Soft threshold: u = sign(v) max(|v| - step rho, 0)."""
        check_prox("L1.prox", v, step, out)
        kernels.soft_threshold(v, float(step * self.rho), 1.0, out)
        return float(self.rho * kernels.absolute_sum(out))

    def subdifferential_distance(self, s: Vector, u: Vector) -> float:
        """Per entry |s - rho sign(u)|, or max(|s| - rho, 0) where u = 0."""
        check_pair("L1.subdifferential_distance", s, u)
        return float(kernels.safe_norm(l1_residual(wide(s), u, self.rho)))

    def dual_norm(self, s: Vector) -> float:
        """||s||_inf / rho."""
        check_vector("L1.dual_norm", "s", s)
        return over(float(np.max(np.abs(s), initial=0.0)), self.rho)

    def conjugate_prox(self, v: Vector, step: float, out: Vector) -> None:
        """Clip to [-rho, rho]."""
        check_prox("L1.conjugate_prox", v, step, out)
        np.clip(v, -self.rho, self.rho, out=out)


@dataclass(frozen=True)
class NonNegativeL1:
    """R(u) = rho sum(u) for u >= 0, infinite otherwise."""

    rho: float = 1.0

    def __post_init__(self) -> None:
        check_weight("NonNegativeL1", "rho", self.rho)

    def value(self, u: Vector) -> float:
        """rho sum(u), or infinity if some entry is negative."""
        check_vector("NonNegativeL1.value", "u", u)
        return float(self.rho * kernels.absolute_sum(u)) if np.all(u >= 0) else np.inf

    def prox(self, v: Vector, step: float, out: Vector) -> float:
        """u = max(v - step rho, 0)."""
        check_prox("NonNegativeL1.prox", v, step, out)
        kernels.positive_threshold(v, float(step * self.rho), out)
        return float(self.rho * kernels.absolute_sum(out))

    def subdifferential_distance(self, s: Vector, u: Vector) -> float:
        """Per entry |s - rho|, or max(s - rho, 0) where u = 0; infinite if u < 0 somewhere."""
        check_pair("NonNegativeL1.subdifferential_distance", s, u)
        if np.any(u < 0):
            return np.inf
        residual = wide(s) - self.rho
        return float(kernels.safe_norm(np.where(u == 0, np.maximum(residual, 0.0), residual)))


@dataclass(frozen=True, eq=False)
class Box:
    """Indicator of lower <= u <= upper; the bounds are numbers or vectors and may be infinite.

    Bounds are rounded to the dtype of the vector they meet.
    """

    lower: float | Vector = -np.inf
    upper: float | Vector = np.inf

    def __post_init__(self) -> None:
        if not np.all(np.asarray(self.lower) <= np.asarray(self.upper)):  # also false for NaN
            raise InputError(f"`Box`: expected lower <= upper everywhere, got {self.lower} and {self.upper}")

    def _bounds(self, who: str, u: Vector) -> tuple[np.ndarray, np.ndarray]:
        lower, upper = np.asarray(self.lower, dtype=u.dtype), np.asarray(self.upper, dtype=u.dtype)
        for bound in (lower, upper):
            if bound.shape not in ((), u.shape):
                raise InputError(f"`{who}`: the bounds are for {bound.shape}, the vector has shape {u.shape}")
        return lower, upper

    def value(self, u: Vector) -> float:
        """0 inside, infinity outside."""
        check_vector("Box.value", "u", u)
        lower, upper = self._bounds("Box.value", u)
        return 0.0 if np.all((lower <= u) & (u <= upper)) else np.inf

    def prox(self, v: Vector, step: float, out: Vector) -> float:
        """Clip to the box."""
        check_prox("Box.prox", v, step, out)
        lower, upper = self._bounds("Box.prox", v)
        np.clip(v, lower, upper, out=out)
        return 0.0

    def subdifferential_distance(self, s: Vector, u: Vector) -> float:
        """Distance to the normal cone: s >= 0 is free at an upper bound, s <= 0 at a lower one."""
        check_pair("Box.subdifferential_distance", s, u)
        lower, upper = self._bounds("Box.subdifferential_distance", u)
        if np.any((u < lower) | (u > upper)):
            return np.inf
        residual = np.where(u == upper, np.minimum(wide(s), 0.0), wide(s))
        return float(kernels.safe_norm(np.where(u == lower, np.maximum(residual, 0.0), residual)))


def linf_ball(radius: float) -> Box:
    """Indicator of ||u||_inf <= radius."""
    check_weight("linf_ball", "radius", radius, positive=True)
    return Box(-radius, radius)


def square(x: float) -> float:
    """x x, infinite where `x ** 2` would raise."""
    return x * x


def l1_residual(s: Vector, u: Vector, rho: float) -> Vector:
    """s minus its nearest element of rho d||.||_1(u), float64."""
    at_zero = np.sign(s) * np.maximum(np.abs(s) - rho, 0.0)
    return np.where(u == 0, at_zero, s - rho * np.sign(u))


def over(numerator: float, weight: float) -> float:
    """numerator / weight, with 0/0 = 0 and x/0 = infinity: the dual norm of a vanishing norm."""
    if weight == 0:
        return 0.0 if numerator == 0 else np.inf
    return numerator / weight
