"""Constants of losses of one's own: estimated where they are not stated, and compared with what is seen.

A loss states that the eigenvalues of its Hessian lie in [-C, L]. Nothing can prove that from outside, but a
single point with more curvature refutes it. So curvature is sampled along runs, at the points at which the
inequalities use the constants. They may be meant for a region only: a set whose indicator `optim.prox` has,
such as `Box(-2, 2)` or `L2Ball(3)`.

Source: mathematics.md §8.6. Derived; sampled curvature is a lower bound, and estimates are called so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from refimpl.contracts import Objective, Penalty, Vector
from refimpl.errors import InputError
from refimpl.kernels import vector
from refimpl.theory.measured import curvature_range
from refimpl.theory.problems import Loss, Problem, WithConstants
from refimpl.theory.rows import VIOLATED, Row, Sides, worst

PROBES = 12  # points at which an estimate looks
MARGIN = 1.5  # an estimate is the largest curvature found, times this
STEP = 1e-5  # of differences of gradients, relative to 1 + |w|
RELATIVE = 1e-6  # error of a curvature that comes from them
LANCZOS_STEPS = 12
UPPER, LOWER = "8.6 curvature of every L_i <= L", "8.6 -curvature of every L_i <= C"
INSIDE = "8.6 distance of the run from the region"


@dataclass(frozen=True, eq=False)
class Around:
    """Where points are drawn: around `start` (d,), and in the region if there is one."""

    start: Vector
    region: Penalty | None = None

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Points (count, d): standard normal around the start, or at several distances and in the region."""
        offsets = rng.standard_normal((count, self.start.size))
        if self.region is None:
            return self.start + offsets
        scales = 10.0 ** rng.uniform(-1, 1, (count, 1))
        return np.array([self.inside(w) for w in self.start + scales * offsets])

    def probes(self, rng: np.random.Generator) -> list[Vector]:
        """The start and points drawn around it, at which curvature is looked for."""
        return [self.inside(self.start), *self.draw(rng, PROBES)]

    def inside(self, w: Vector) -> Vector:
        """The point of the region that is nearest to w."""
        found = w.copy()
        if self.region is not None:
            self.region.prox(w, 1.0, found)
        return found

    def step(self, v: Vector, d: Vector) -> Vector:
        """The step d from v, projected on the region; that of -d where nothing is left of the first."""
        if self.region is None:
            return d
        moves = (self.inside(v + one) - v for one in (d, -d))
        return next((move for move in moves if vector.norm(move) > 1e-3 * vector.norm(d)), d)

    def distance(self, w: Vector) -> float:
        """How far w lies outside the region."""
        return float(vector.norm(w - self.inside(w)))


class Estimated(WithConstants):
    """A loss whose constants are estimates."""


def curvature(loss: Objective, w: Vector, rng: np.random.Generator) -> tuple[float, float]:
    """Lowest and highest eigenvalue of the Hessian at w, from inside; the loss is taken to be smooth."""
    return curvature_range(loss, w, rng, LANCZOS_STEPS, STEP * (1.0 + float(np.max(np.abs(w)))))


def with_constants(problem: Problem, around: Around, rng: np.random.Generator) -> tuple[Problem, str]:
    """The problem, every loss with constants, and how they are known: "stated" or "estimated".

    An estimate is 1.5 times the largest curvature found at `PROBES` points around the start, in the region.
    Raises `InputError` where a loss states one constant only, or no curvature is found.
    """
    losses, kind = [], "stated"
    for number, loss in enumerate(problem.losses):
        given = [hasattr(loss, name) for name in ("smoothness", "concavity")]
        if any(given) and not all(given):
            raise InputError(
                f"{problem.name}: expected loss {number} to state `smoothness` and `concavity`, or neither "
                "of them to have both estimated"
            )
        if not any(given):
            lows, highs = zip(*(curvature(loss, w, rng) for w in around.probes(rng)), strict=True)
            low, high = MARGIN * max(0.0, -min(lows)), MARGIN * max(*highs, -min(lows))
            if not (np.isfinite(high) and high > 0):
                raise InputError(f"{problem.name}: loss {number} has no curvature to estimate, got {high:g}")
            loss = Estimated(loss, high, low, "hessian_vector", "local_point")
        kind = "estimated" if isinstance(loss, Estimated) else kind
        losses.append(loss)
    return replace(problem, losses=tuple(losses)), kind


class Extremes(NamedTuple):
    """The curvature of one loss at some points, beside its constants."""

    low: float
    high: float
    loss: Loss

    def upper(self) -> Sides:
        """The highest curvature, and L, which must not be less."""
        return Sides(self.high, self.loss.smoothness, self.error())

    def lower(self) -> Sides:
        """Minus the lowest curvature, and C, which must not be less."""
        return Sides(-self.low, self.loss.concavity, self.error())

    def error(self) -> float:
        """How far a curvature that comes from differences may be wrong."""
        return RELATIVE * max(abs(self.low), abs(self.high))


def extremes(
    losses: Sequence[Loss], points: Iterable[Sequence[Vector]], rng: np.random.Generator
) -> list[Extremes]:
    """The curvature of every loss at its points; points that are not finite are left out."""
    found = []
    for loss, own in zip(losses, points, strict=True):
        pairs = [curvature(loss, w, rng) for w in own if np.all(np.isfinite(w))]
        found.append(Extremes(min(low for low, _ in pairs), max(high for _, high in pairs), loss))
    return found


def constant_rows(family: str, seen: Sequence[Extremes]) -> list[Row]:
    """Curvature seen against the constants."""
    return [
        worst(UPPER, family, (one.upper() for one in seen)),
        worst(LOWER, family, (one.lower() for one in seen)),
    ]


def region_row(family: str, around: Around, points: Iterable[Vector]) -> Row:
    """How far the points lie outside the region, up to rounding."""
    sides = (Sides(around.distance(w), 0.0, 1e-9 * (1.0 + vector.norm(w))) for w in points)
    return worst(INSIDE, family, sides)


def finding(row: Row, kind: str) -> Row:
    """A violated row of this module with what it means as its statement; kind: "stated" or "estimated"."""
    wrong = f"the {kind} constants do not hold at this point (curvature seen"
    meaning = {
        UPPER: f"{wrong} {row.left:.4g} > L = {row.right:.4g})",
        LOWER: f"{wrong} {-row.left:.4g} < -C = {-row.right:.4g})",
        INSIDE: f"the run left the region in which the constants are said to hold, by {row.left:.3g}",
    }
    return row._replace(statement=meaning[row.statement])


def probe_rows(problem: Problem, kind: str, around: Around, rng: np.random.Generator) -> list[Row]:
    """The constants at the start and at points drawn around it; a violated row says what it means."""
    points = [around.probes(rng)] * len(problem.losses)
    rows = constant_rows(problem.name, extremes(problem.losses, points, rng))
    return [finding(row, kind) if row.verdict == VIOLATED else row for row in rows]
