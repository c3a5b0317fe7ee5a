"""Balls, the simplex and the l-infinity norm: penalties that couple all entries.

The projections on the l1 ball and on the simplex subtract one level from all entries (Held, Wolfe & Crowder
1974); the l-infinity norm follows from the l1 ball by Moreau. The level comes from exact sums and is kept in
two parts, so that a vector far outside a small ball loses no digits.

Source: mathematics.md §5; Parikh & Boyd 2014, §6.5. Verified by test.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from refimpl.contracts import Vector
from refimpl.errors import InputError
from refimpl.kernels import groups as kernels
from refimpl.optim.prox.contract import Indicator, Norm, radius_key, slack, times, weight_key, wide
from refimpl.optim.prox.elementwise import over
from refimpl.registry import PENALTIES, key

NOTHING = np.zeros(0)
HUGE = 1e290  # sums of numbers below cannot overflow


class Level(NamedTuple):
    """A number t = (high + low) unit: two parts, so that what lies just above a large t keeps its digits."""

    high: float
    low: float
    unit: float  # a power of two

    def __float__(self) -> float:
        return (self.high + self.low) * self.unit

    def heights(self, x: Vector) -> Vector:
        """x - t for float64 x."""
        return ((x / self.unit - self.high) - self.low) * self.unit


def even_level(x: Vector, total: float) -> Level:
    """The t with sum(x - t) = total, for float64 x; -total if x is empty.

    The sum is exact (`math.fsum`), and so is what the rounded t leaves over. The unit is 1 unless sums could
    overflow.
    """
    largest, count = max(float(np.max(np.abs(x), initial=0.0)), total), max(x.size, 1)
    unit = 1.0 if largest < HUGE else 2.0 ** (4 * count).bit_length()
    terms = [*(x / unit).tolist(), -total / unit]
    high = math.fsum(terms) / count
    low = math.fsum([*terms, *([-high] * count)]) / count
    return Level(high, low, unit)


def find_level(below: Vector, total: float, tied: Vector = NOTHING) -> Level:
    """The t with sum(tied - t) + sum(max(below - t, 0)) = total >= 0, for float64 vectors.

    Newton's method on this piecewise linear function of t: started with every entry it comes from below, so
    each step only drops entries that lie under the new level, until none does. Without tied entries, those
    that lie `total` or more under the largest are dropped at once.
    Source: Michelot 1986, "A finite algorithm for finding the projection of a point onto the canonical
    simplex of R^n".
    """
    if below.size and not tied.size:
        below = below[below >= float(np.max(below)) - total]
    while True:
        level = even_level(np.concatenate([tied, below]), total)
        kept = below[level.heights(below) >= 0]
        if kept.size == below.size:
            return level
        below = kept


def cone_distance(tied: Vector, below: Vector, signed: bool) -> float:
    """min over t of ||(tied - t, max(below - t, 0))||; only t >= 0 counts unless `signed`.

    Distance to a normal cone of the simplex (signed) or of the l1 ball: entries of the support share
    one multiplier t, the others may not exceed it. The minimiser averages `tied`, which is not empty, with
    every entry of `below` that lies above it.
    """
    level = find_level(below, 0.0, tied)
    if not signed and float(level) < 0:
        level = Level(0.0, 0.0, 1.0)
    above = np.maximum(level.heights(below), 0.0)
    return float(kernels.safe_norm(np.concatenate([level.heights(tied), above])))


@dataclass(frozen=True)
class Ball(Indicator):
    """Indicator of norm(u) <= radius; a subclass has the norm, and what to do on the boundary."""

    radius: float = radius_key()
    _norm: ClassVar[Callable[..., float]]
    _boundary_distance: ClassVar[Callable[..., float]]

    def _contains(self, u: Vector) -> bool:
        return bool(self._norm(u) <= self.radius * (1.0 + slack(u)))

    def _normal_distance(self, s: Vector, u: Vector) -> float:
        inside = self._norm(u) < self.radius * (1.0 - slack(u))
        return kernels.safe_norm(s) if inside else self._boundary_distance(s, u)


@PENALTIES.register("l2-ball")
@dataclass(frozen=True)
class L2Ball(Ball):
    """Indicator of ||u|| <= radius."""

    def _norm(self, u: Vector) -> float:
        return kernels.safe_norm(u)

    def _project(self, v: Vector, out: Vector) -> None:
        """Scale v to norm min(||v||, radius)."""
        whole = np.array([0, 1]), np.array([0]), np.array([v.size])  # one group, which has no weight
        kernels.shrink_groups(v, 0.0, np.zeros(1), float(self.radius), *whole, np.empty(1), out)

    def _boundary_distance(self, s: Vector, u: Vector) -> float:
        """The normal cone is the ray along u."""
        direction = wide(u) / kernels.safe_norm(u)
        along = max(float(np.sum(wide(s) * direction)), 0.0)
        return kernels.safe_norm(wide(s) - along * direction)


@PENALTIES.register("l1-ball")
@dataclass(frozen=True)
class L1Ball(Ball):
    """Indicator of ||u||_1 <= radius."""

    def _norm(self, u: Vector) -> float:
        return kernels.absolute_sum(u)

    def _project(self, v: Vector, out: Vector) -> None:
        """Soft threshold at the level that brings the l1 norm down to the radius."""
        out[:] = lowered(v, find_level(np.abs(wide(v)), self.radius))

    def _boundary_distance(self, s: Vector, u: Vector) -> float:
        """The normal cone is {t g : t >= 0, g in d||.||_1(u)}."""
        support = u != 0
        return cone_distance((wide(s) * np.sign(u))[support], np.abs(wide(s))[~support], signed=False)


def lowered(v: Vector, level: Level) -> Vector:
    """sign(v) max(|v| - t, 0) in float64 for the level t; v itself for t <= 0."""
    if float(level) <= 0:
        return wide(v)
    return np.copysign(np.maximum(level.heights(np.abs(wide(v))), 0.0), wide(v)) + 0.0


@PENALTIES.register("simplex")
@dataclass(frozen=True)
class Simplex(Indicator):
    """Indicator of u >= 0, sum(u) = total."""

    total: float = key(1.0, "sum of the entries on the simplex", above=0.0)

    def _contains(self, u: Vector) -> bool:
        off = abs(kernels.absolute_sum(u) - self.total)
        return bool(np.all(u >= 0) and off <= self.total * slack(u))

    def _project(self, v: Vector, out: Vector) -> None:
        """u = max(v - t, 0) with the t that makes the sum right."""
        if not v.size:
            raise InputError(f"`Simplex.prox`: an empty vector cannot sum to {self.total}")
        out[:] = np.maximum(find_level(wide(v), self.total).heights(wide(v)), 0.0)

    def _normal_distance(self, s: Vector, u: Vector) -> float:
        """The normal cone has one multiplier on the support, and at most that elsewhere."""
        return cone_distance(wide(s)[u > 0], wide(s)[u == 0], signed=True)


@PENALTIES.register("linf")
@dataclass(frozen=True)
class LinfNorm(Norm):
    """R(u) = rho ||u||_inf."""

    rho: float = weight_key()

    def _value(self, u: Vector) -> float:
        return times(self.rho, np.max(np.abs(u), initial=0.0))

    def _prox(self, v: Vector, step: float, out: Vector) -> float:
        """v minus its projection on the l1 ball of radius step rho: clip at the projection's level."""
        radius = min(times(step, self.rho), sys.float_info.max)
        level = v.dtype.type(max(float(find_level(np.abs(wide(v)), radius)), 0.0))
        np.clip(v, -level, level, out=out)
        out += v.dtype.type(0)  # no negative zeros
        return self._value(out)

    def _distance(self, s: Vector, u: Vector) -> float:
        """dR(u) spreads the weight rho over the entries of largest size, with their signs."""
        largest = np.abs(u) == np.max(np.abs(u), initial=0.0)
        at_zero = not np.any(u)
        shares = (np.abs(wide(s)) if at_zero else wide(s) * np.sign(u))[largest]
        level = float(find_level(shares, self.rho))
        rest = np.minimum(shares, max(level, 0.0) if at_zero else level)  # what the weight does not cover
        return kernels.safe_norm(np.concatenate([rest, wide(s)[~largest]]))

    def _dual_norm(self, s: Vector) -> float:
        """||s||_1 / rho."""
        return over(kernels.absolute_sum(s), self.rho)

    def _project_dual(self, v: Vector, out: Vector) -> None:
        """Projection on the l1 ball of radius rho; how many entries it keeps is found by bisection.

        Source: Duchi et al. 2008, "Efficient projections onto the l1-ball for learning in high dimensions".
        """
        ordered = -np.sort(-np.abs(wide(v)))
        kept, too_many = 1, v.size + 1
        while too_many - kept > 1:
            middle = (kept + too_many) // 2
            if even_level(ordered[:middle], self.rho).heights(ordered[middle - 1]) > 0:
                kept = middle
            else:
                too_many = middle
        out[:] = lowered(v, even_level(ordered[:kept], self.rho))
