"""The numbers in the figures of the theory, from the same runs and families as the checks.

Source: mathematics.md §8.2 and §8.5. Derived.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.contracts import Vector
from refimpl.optim.accel import GhadimiLan
from refimpl.rng import SeedTree
from refimpl.theory import problems, rates, sweeps
from refimpl.theory.lemmas import curvature_bounds, norm, theory_beta
from refimpl.theory.problems import Problem
from refimpl.theory.run import Run, record
from refimpl.theory.theorem import solution, theory_step


class GapCurve(NamedTuple):
    """A run with exact local solutions, against the bound of Theorem 1 and a power law."""

    name: str
    rounds: Vector  # 1..N
    squared: Vector  # ||G_k||^2
    best: Vector  # min_{j<=k} ||G_j||^2
    bound: Vector  # of `best`, after k rounds
    fit: rates.Fit  # of log best against log k
    level: float  # exp of its intercept
    fitted: Vector  # which rounds went into it


def gap_curves(seed: int = 0) -> list[GapCurve]:
    """The ill-conditioned convex and non-convex problems whose slopes `rates` checks."""
    return [gap_curve(problem, lam, w0, rates.ROUNDS) for problem, lam, w0 in rates.slow_problems(seed)[::-1]]


def gap_curve(problem: Problem, lam: float, w0: Vector, rounds: int) -> GapCurve:
    """One run of `rounds` rounds from w0 (d,); see `GapCurve`.

    The bound is the corollary in `theorem` with exact local solutions and x* a stationary point near the
    end of the run.
    """
    beta = theory_beta(problem, lam)
    run = record(problem, lam, beta, GhadimiLan(beta), w0, rounds)
    below, above = curvature_bounds(problem.smoothness, problem.concavity, lam)
    x_star = solution(problem, lam, run.rounds[-1].ag)
    k = np.arange(1, rounds + 1)
    squared = np.array([r.gap for r in run.rounds]) ** 2
    start = norm(w0 - x_star) ** 2 / beta
    largest = np.maximum.accumulate([spread(run, i) for i in range(1, rounds + 1)])
    curved = 0.5 * k * (k + 1) * below * (norm(x_star) ** 2 + largest)
    bound = 96 * above / (k * (k + 1.0) * (k + 2)) * (start + curved)
    best, fit = np.minimum.accumulate(squared), rates.gap_slope(run)
    fitted = (k >= rates.FIRST) & (best > rates.FLOOR)
    level = float(np.exp(np.mean(np.log(best[fitted]) - fit.slope * np.log(k[fitted]))))
    return GapCurve(problem.name, k, squared, best, bound, fit, level, fitted)


def spread(run: Run, k: int) -> float:
    """M_k^2 = (1 - a_k) ||xag_{k-1}||^2 + a_k ||x_{k-1}||^2."""
    (x, ag), a = run.before(k), theory_step(k, run.beta).a
    return (1 - a) * norm(ag) ** 2 + a * norm(x) ** 2


def floor_curves(seed: int = 0) -> list[rates.FloorCurve]:
    """Floors against local steps, for several lam/L."""
    problem = sweeps.uneven(SeedTree(seed).generator("theory.curves"))
    return sweeps.floor_sweep(problem, np.zeros(problem.size))


class CurvatureCurve(NamedTuple):
    """Sampled curvature of F over lam/L on one family, in units of L."""

    name: str
    samples: list[sweeps.CurvatureSample]


def curvature_curves(seed: int = 0) -> list[CurvatureCurve]:
    """Curvature on families where Lemma 1 is an equality, and on one where it is not."""
    rng = SeedTree(seed).generator("theory.curves", 1)
    families = (problems.attained(1), problems.attained(-1), problems.cosines(rng))
    return [CurvatureCurve(family.name, sweeps.curvature_sweep(family, rng)) for family in families]


def arrival_curve(seed: int = 0) -> list[sweeps.Arrival]:
    """Rounds to a small gap over lam/L, measured and allowed."""
    problem = sweeps.slow_quadratic(SeedTree(seed).generator("theory.curves", 2))
    return sweeps.arrivals(problem, np.zeros(problem.size))
