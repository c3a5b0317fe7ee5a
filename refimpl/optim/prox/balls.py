"""Balls, the simplex and the l-infinity norm: penalties that couple all entries.

The l1 ball and the simplex are projected on exactly by sorting (Held, Wolfe & Crowder 1974; Duchi et
al. 2008); the l-infinity norm follows from the l1 ball by Moreau. Sorting and the running sum are taken
in float64, relative to the largest entry, so that a vector far outside a small ball loses no digits.

Source: mathematics.md §5; Parikh & Boyd 2014, §6.5. Verified by test.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refimpl.errors import InputError
from refimpl.kernels import groups as kernels
from refimpl.optim.prox.contract import (
    Vector,
    check_pair,
    check_prox,
    check_vector,
    check_weight,
    slack,
    wide,
)
from refimpl.optim.prox.elementwise import over


def simplex_threshold(x: Vector, total: float) -> float:
    """The t with sum(max(x - t, 0)) = total, for float64 x whose largest entry is 0 and total >= 0."""
    descending = -np.sort(-x)
    sums = np.cumsum(descending)
    counts = np.arange(1, x.size + 1)
    last = np.flatnonzero(descending * counts >= sums - total)[-1]
    return float((sums[last] - total) / counts[last])


def cone_distance(tied: Vector, below: Vector, signed: bool) -> float:
    """min over t of ||(tied - t, max(below - t, 0))||; only t >= 0 counts unless `signed`.

    Distance to a normal cone of the simplex (signed) or of the l1 ball: entries of the support share
    one multiplier t, the others may not exceed it. The minimiser averages `tied` with every entry of
    `below` that lies above it.
    """
    descending = -np.sort(-below)
    count, t = tied.size, float(np.mean(tied)) if tied.size else 0.0
    for x in descending:
        if x <= t:
            break
        count += 1
        t += (x - t) / count
    t = t if signed else max(t, 0.0)
    return float(kernels.safe_norm(np.concatenate([tied - t, np.maximum(below - t, 0.0)])))


@dataclass(frozen=True)
class L2Ball:
    """Indicator of ||u|| <= radius."""

    radius: float = 1.0

    def __post_init__(self) -> None:
        check_weight("L2Ball", "radius", self.radius, positive=True)

    def value(self, u: Vector) -> float:
        """0 inside (up to rounding, `contract.slack`), infinity outside."""
        check_vector("L2Ball.value", "u", u)
        return 0.0 if kernels.safe_norm(u) <= self.radius * (1.0 + slack(u)) else np.inf

    def prox(self, v: Vector, step: float, out: Vector) -> float:
        """Scale v to norm min(||v||, radius)."""
        check_prox("L2Ball.prox", v, step, out)
        norm = kernels.safe_norm(v)
        if norm > self.radius:
            np.multiply(wide(v) / norm, self.radius, out=out, casting="same_kind")
        elif out is not v:
            out[:] = v
        return 0.0

    def subdifferential_distance(self, s: Vector, u: Vector) -> float:
        """Distance to the normal cone: the ray along u on the sphere, {0} inside."""
        check_pair("L2Ball.subdifferential_distance", s, u)
        norm = kernels.safe_norm(u)
        if norm > self.radius * (1.0 + slack(u)):
            return np.inf
        if norm < self.radius * (1.0 - slack(u)):
            return float(kernels.safe_norm(s))
        direction = wide(u) / norm
        along = max(float(np.sum(wide(s) * direction)), 0.0)
        return float(kernels.safe_norm(wide(s) - along * direction))


@dataclass(frozen=True)
class L1Ball:
    """Indicator of ||u||_1 <= radius."""

    radius: float = 1.0

    def __post_init__(self) -> None:
        check_weight("L1Ball", "radius", self.radius, positive=True)

    def value(self, u: Vector) -> float:
        """0 inside (up to rounding, `contract.slack`), infinity outside."""
        check_vector("L1Ball.value", "u", u)
        return 0.0 if kernels.absolute_sum(u) <= self.radius * (1.0 + slack(u)) else np.inf

    def prox(self, v: Vector, step: float, out: Vector) -> float:
        """Soft threshold at the level that brings the l1 norm down to the radius."""
        check_prox("L1Ball.prox", v, step, out)
        project_l1_ball(v, self.radius, out)
        return 0.0

    def subdifferential_distance(self, s: Vector, u: Vector) -> float:
        """Distance to the normal cone: {t g : t >= 0, g in d||.||_1(u)} on the boundary, {0} inside."""
        check_pair("L1Ball.subdifferential_distance", s, u)
        norm = kernels.absolute_sum(u)
        if norm > self.radius * (1.0 + slack(u)):
            return np.inf
        if norm < self.radius * (1.0 - slack(u)):
            return float(kernels.safe_norm(s))
        support = u != 0
        return cone_distance((wide(s) * np.sign(u))[support], np.abs(wide(s))[~support], signed=False)


def project_l1_ball(v: Vector, radius: float, out: Vector) -> None:
    """Write the nearest point to v with ||.||_1 <= radius (>= 0) into `out`, which may be v."""
    if kernels.absolute_sum(v) <= radius:
        if out is not v:
            out[:] = v
        return
    sizes = np.abs(wide(v))
    below_top = sizes - sizes.max()
    shrunk = np.maximum(below_top - simplex_threshold(below_top, radius), 0.0)
    np.copyto(out, np.copysign(shrunk, wide(v)) + 0.0, casting="same_kind")


@dataclass(frozen=True)
class Simplex:
    """Indicator of u >= 0, sum(u) = total."""

    total: float = 1.0

    def __post_init__(self) -> None:
        check_weight("Simplex", "total", self.total, positive=True)

    def _contains(self, u: Vector) -> bool:
        off = abs(kernels.absolute_sum(u) - self.total)
        return bool(np.all(u >= 0) and off <= self.total * slack(u))

    def value(self, u: Vector) -> float:
        """0 on the simplex (the sum up to rounding, `contract.slack`), infinity elsewhere."""
        check_vector("Simplex.value", "u", u)
        return 0.0 if self._contains(u) else np.inf

    def prox(self, v: Vector, step: float, out: Vector) -> float:
        """u = max(v - t, 0) with the t that makes the sum right."""
        check_prox("Simplex.prox", v, step, out)
        if not v.size:
            raise InputError(f"`Simplex.prox`: an empty vector cannot sum to {self.total}")
        below_top = wide(v) - float(v.max())
        threshold = simplex_threshold(below_top, self.total)
        np.copyto(out, np.maximum(below_top - threshold, 0.0), casting="same_kind")
        return 0.0

    def subdifferential_distance(self, s: Vector, u: Vector) -> float:
        """Distance to the normal cone: one multiplier on the support, at most that elsewhere."""
        check_pair("Simplex.subdifferential_distance", s, u)
        if not self._contains(u):
            return np.inf
        return cone_distance(wide(s)[u > 0], wide(s)[u == 0], signed=True)


@dataclass(frozen=True)
class LinfNorm:
    """R(u) = rho ||u||_inf."""

    rho: float = 1.0

    def __post_init__(self) -> None:
        check_weight("LinfNorm", "rho", self.rho)

    def value(self, u: Vector) -> float:
        """rho max|u|."""
        check_vector("LinfNorm.value", "u", u)
        return float(self.rho * np.max(np.abs(u), initial=0.0))

    def prox(self, v: Vector, step: float, out: Vector) -> float:
        """v minus its projection on the l1 ball of radius step rho: clip at the projection's threshold."""
        check_prox("LinfNorm.prox", v, step, out)
        radius = step * self.rho
        if kernels.absolute_sum(v) <= radius:
            out[:] = 0
            return 0.0
        sizes = np.abs(wide(v))
        top = float(sizes.max())
        level = v.dtype.type(top + simplex_threshold(sizes - top, radius))
        np.clip(v, -level, level, out=out)
        return float(self.rho * np.max(np.abs(out)))

    def subdifferential_distance(self, s: Vector, u: Vector) -> float:
        """dR(u) spreads the weight rho over the entries of largest size, with their signs."""
        check_pair("LinfNorm.subdifferential_distance", s, u)
        nearest = wide(s)
        top = np.max(np.abs(u), initial=0.0)
        if top == 0:
            project_l1_ball(nearest, self.rho, nearest)
        else:
            largest = np.abs(u) == top
            signs = np.sign(u[largest])
            shares = nearest[largest] * signs
            shares -= shares.max()
            nearest[:] = 0
            nearest[largest] = signs * np.maximum(shares - simplex_threshold(shares, self.rho), 0.0)
        return float(kernels.safe_norm(wide(s) - nearest))

    def dual_norm(self, s: Vector) -> float:
        """||s||_1 / rho."""
        check_vector("LinfNorm.dual_norm", "s", s)
        return over(float(kernels.absolute_sum(s)), self.rho)

    def conjugate_prox(self, v: Vector, step: float, out: Vector) -> None:
        """Projection on the l1 ball of radius rho, found by bisection on its threshold."""
        check_prox("LinfNorm.conjugate_prox", v, step, out)
        sizes = np.abs(wide(v))
        low, high = 0.0, float(np.max(sizes, initial=0.0))
        if np.sum(sizes) <= self.rho:
            high = 0.0
        while low < (middle := 0.5 * (low + high)) < high:
            if np.sum(np.maximum(sizes - middle, 0.0)) > self.rho:
                low = middle
            else:
                high = middle
        out[:] = np.sign(v) * np.maximum(sizes - high, 0.0)
