"""Measure how fast the gap falls with the rounds, and where it stops with inexact local solutions.

With exact local solutions min_{j<=k} ||G_j||^2 falls at least like 1/k, and like 1/k^3 for convex F; this
is measured as the least-squares slope of its logarithm against log k. With s local steps of size 1/lam the
local error falls by L/lam per step, and so does the bias of g, and with it the floor of ||G||.

The interval given with a slope is that of ordinary least squares, at 95 %; successive minima are not
independent, so it says how straight the line is, not how likely another run is to agree.

Source: mathematics.md §8.5. Derived: the floor of quadratics in closed form.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from refimpl.contracts import Vector
from refimpl.optim.accel import GhadimiLan
from refimpl.rng import SeedTree
from refimpl.theory import problems
from refimpl.theory.gap import exact_gap
from refimpl.theory.lemmas import curvature_bounds, norm, theory_beta
from refimpl.theory.problems import Problem, Quadratic
from refimpl.theory.rows import Row, at_most, equal
from refimpl.theory.run import Run, record
from refimpl.theory.theorem import search, theory_step

ROUNDS = 1500  # of the runs whose slope is fitted
FIRST = 10  # rounds left out of a fit: before the asymptotic regime
FLOOR = 1e-24  # squared gaps below this are rounding
SETTLED = 3  # local steps from which on the slowest direction dominates the bias


class Fit(NamedTuple):
    """A line through (log k, log y) or (s, log y)."""

    slope: float
    low: float  # 95 % interval of the slope
    high: float
    points: int


def fit(x: Vector, y: Vector) -> Fit:
    """Least squares of y against x, at least three points."""
    from scipy.stats import linregress, t  # loading it takes half a second, which few commands need

    line = linregress(x, y)
    half = float(t.ppf(0.975, len(x) - 2) * line.stderr)
    return Fit(float(line.slope), float(line.slope) - half, float(line.slope) + half, len(x))


def slow_problems(seed: int) -> list[tuple[Problem, float, Vector]]:
    """Ill-conditioned problems on which rates can be seen: (problem, lam, start), non-convex and convex."""
    rng = SeedTree(seed).generator("theory.rates")
    valleys = problems.cosines(rng, nodes=3, size=30, decay=1e-3, bowl=0.1)
    flat = problems.quadratics(np.geomspace(1e-6, 1.0, 40), rng, nodes=3, spread=0.1, name="flat quadratic")
    return [(valleys, 2.0, 3.0 * rng.standard_normal(valleys.size)), (flat, 2.0, np.zeros(flat.size))]


class GapCurve(NamedTuple):
    """A run with exact local solutions, against the bound of Theorem 1 and a power law."""

    name: str
    rounds: Vector  # 1..N
    squared: Vector  # ||G_k||^2
    best: Vector  # min_{j<=k} ||G_j||^2
    bound: Vector  # of `best`, after k rounds
    fit: Fit  # of log best against log k
    level: float  # exp of its intercept
    fitted: Vector  # which rounds went into it


def _best(run: Run) -> tuple[Vector, Vector, Vector]:
    """The rounds k, min_{j<=k} ||G_j||^2, and which of them are fitted: from round 10 on, above rounding."""
    best = np.minimum.accumulate([r.gap**2 for r in run.rounds])
    k = np.arange(1, len(best) + 1)
    return k, best, (k >= FIRST) & (best > FLOOR)


def gap_slope(run: Run) -> Fit:
    """Slope of log min_{j<=k} ||G_j||^2 against log k, from round 10 on until rounding is met."""
    k, best, used = _best(run)
    return fit(np.log(k[used]), np.log(best[used]))


def gap_curve(problem: Problem, lam: float, w0: Vector, rounds: int) -> GapCurve:
    """One run of `rounds` rounds from w0 (d,).

    The bound is the corollary in `theorem` with exact local solutions and x* a stationary point near the
    end of the run.
    """
    beta = theory_beta(problem, lam)
    run = record(problem, lam, beta, GhadimiLan(beta), w0, rounds)
    below, above = curvature_bounds(problem.smoothness, problem.concavity, lam)
    x_star, spreads = search(problem, lam, run.rounds[-1].ag).x, []
    x = ag = w0
    for r in run.rounds:  # M_k^2 = (1 - a_k) ||xag_{k-1}||^2 + a_k ||x_{k-1}||^2
        a = theory_step(r.k, beta).a
        spreads.append((1 - a) * norm(ag) ** 2 + a * norm(x) ** 2)
        x, ag = r.x, r.ag
    k, best, fitted = _best(run)
    start = norm(w0 - x_star) ** 2 / beta
    curved = 0.5 * k * (k + 1) * below * (norm(x_star) ** 2 + np.maximum.accumulate(spreads))
    bound = 96 * above / (k * (k + 1.0) * (k + 2)) * (start + curved)
    slope, squared = gap_slope(run), np.array([r.gap for r in run.rounds]) ** 2
    level = float(np.exp(np.mean(np.log(best[fitted]) - slope.slope * np.log(k[fitted]))))
    return GapCurve(problem.name, k, squared, best, bound, slope, level, fitted)


def slope_rows(problem: Problem, lam: float, w0: Vector, rounds: int, at_least: float) -> list[Row]:
    """8.5: the slope, upper end of its interval, is at most `at_least` (-1 or -3 with some allowance)."""
    beta = theory_beta(problem, lam)
    run = record(problem, lam, beta, GhadimiLan(beta), w0, rounds)
    slope, low, high, points = gap_slope(run)
    statement = f"8.5 slope of log min ||G||^2 against log k, {rounds} rounds, <= {at_least:g}"
    terms = ("slope", slope), ("95 %: from", low), ("95 %: to", high)
    return [
        at_most(statement, problem.name, high, at_least, terms=terms),
        at_most("8.5 rounds used in the fit", problem.name, 0.5 * rounds, points),
    ]


def predicted_bias(problem: Problem, lam: float, steps: int) -> float:
    """||grad F|| where the method without penalty comes to rest after `steps` local steps, for quadratics.

    With A_i the Hessians and B_i = lam A_i/(lam + A_i) those of the envelopes, s steps of size 1/lam leave
    the share (-A_i/lam)^s of the way to w_i*, so g(v) = mean (1 - (-A_i/lam)^s) B_i (v - c_i); it vanishes
    at one v, whose grad F = mean B_i (v - c_i) is the bias. Derived.
    """
    matrix, target = np.zeros((problem.size, problem.size)), np.zeros(problem.size)
    envelopes = []
    for loss in problem.losses:
        assert isinstance(loss, Quadratic)
        left = 1.0 - (-loss.eigenvalues / lam) ** steps
        seen_by_server = Quadratic(left * loss.envelope(lam).eigenvalues, loss.axes, loss.centre)
        matrix += seen_by_server.matrix
        target += seen_by_server.matrix @ loss.centre
        envelopes.append(loss.envelope(lam))
    rest = np.linalg.solve(matrix, target)
    return float(np.linalg.norm(np.mean([e.matrix @ (rest - e.centre) for e in envelopes], axis=0)))


def floors(problem: Problem, lam: float, w0: Vector, rounds: int, steps: Sequence[int]) -> Vector:
    """Exact ||G(md)||^2 at the end of runs with each number of local steps."""
    beta = theory_beta(problem, lam)
    found = []
    for s in steps:
        last = record(problem, lam, beta, GhadimiLan(beta), w0, rounds, s).rounds[-1]
        found.append(exact_gap(problem, last.md, lam, beta).mapping ** 2)
    return np.array(found)


class FloorCurve(NamedTuple):
    """The floor of ||G||^2 after runs with each number of local steps."""

    ratio: float  # lam/L
    steps: Vector
    floor: Vector
    predicted: Vector  # in closed form


def floor_curve(problem: Problem, lam: float, w0: Vector, rounds: int, most: int = 8) -> FloorCurve:
    """1 to `most` local steps, on quadratics without penalty."""
    steps = np.arange(1, most + 1)
    predicted = np.array([predicted_bias(problem, lam, int(s)) ** 2 for s in steps])
    measured = floors(problem, lam, w0, rounds, steps.tolist())
    return FloorCurve(lam / problem.smoothness, steps, measured, predicted)


def floor_rows(problem: Problem, lam: float, w0: Vector, rounds: int, most: int = 8) -> list[Row]:
    """8.5: the floor of ||G||^2 falls by (L/lam)^2 per local step, within 20 %; and is what it should be."""
    ratio, steps, floor, predicted = floor_curve(problem, lam, w0, rounds, most)
    settled = steps >= SETTLED
    factor = float(np.exp(fit(steps[settled], np.log(floor[settled])).slope))
    off = float(np.max(np.abs(floor / predicted - 1)))
    terms = tuple((f"floor of ||G||^2, s = {s}", float(y)) for s, y in zip(steps, floor, strict=True))
    return [
        equal("8.5 factor of the floor per local step = (L/lam)^2", problem.name, factor, ratio**-2, 0.2),
        at_most("8.5 floor against its closed form, relative", problem.name, off, 1e-3, terms=terms),
    ]
