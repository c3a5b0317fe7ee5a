"""Check the statements over a range of settings: lam/L, local steps, and how much the nodes differ.

There are three sweeps. Each is compared with a prediction, and its numbers are also used for figures.

* lam/L from just above 1 to 30: the lemmas and the theorem's inequalities on families where they are
  equalities and where they are not; rounds to a given gap against the bound.
* local steps s: the floor of ||G||^2 for several lam/L. It falls by (L/lam)^2 per step.
* heterogeneity: with s local steps the method rests where mean (1 - (-A_i/lam)^s) B_i (v - c_i) = 0, A_i
  the nodes' Hessians and B_i those of their envelopes. Nodes alike in A_i rest at the solution wherever
  their c_i lie, so the bias is a product of two differences, between the A_i and between the c_i: the floor
  of ||G||^2 grows like the fourth power of the spread where that is small, and is zero for equal nodes.

Source: mathematics.md §8.5 (sweeps of s); the fourth power and the bound on rounds are derived.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from refimpl.contracts import Vector
from refimpl.optim.accel import GhadimiLan
from refimpl.optim.prox import Box
from refimpl.rng import SeedTree
from refimpl.theory import lemmas, problems, rates, theorem
from refimpl.theory.gap import envelope
from refimpl.theory.lemmas import theory_beta
from refimpl.theory.problems import Problem, envelope_minimiser
from refimpl.theory.rates import fit, floors, predicted_bias
from refimpl.theory.rows import Row, at_most, equal
from refimpl.theory.run import record

RATIOS = (1.05, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)  # lam/L
FLOOR_RATIOS = (1.5, 2.0, 3.0, 5.0, 10.0)
SPREADS = (0.0, 0.01, 0.02, 0.04, 0.1, 0.3, 1.0, 3.0)
SMALL = 0.05  # spreads up to here show the fourth power
EIGENVALUES = (1.0, 0.5, 0.5, 0.3, 0.3, 0.2)
ROUNDS = 300
TARGET = 1e-8  # the ||G||^2 whose round is asked for


def uneven(rng: np.random.Generator, spread: float = 1.0) -> Problem:
    """Convex quadratics that differ from node to node in axes and centres, by `spread`."""
    return problems.quadratics(np.array(EIGENVALUES), rng, nodes=4, spread=spread)


def at_ratio(problem: Problem, ratio: float) -> tuple[Problem, float]:
    """The problem with lam/L in its name, and lam."""
    return replace(problem, name=f"{problem.name}, lam = {ratio:g} L"), ratio * problem.smoothness


# --- lam/L ------------------------------------------------------------------------------------------


class CurvatureSample(NamedTuple):
    """Curvature of F found by sampling, in units of L, at one lam/L."""

    ratio: float
    low: float  # lowest <D, d>/|d|^2
    high: float  # highest
    steep: float  # highest |D|/|d|: from below, the Lipschitz constant of grad F


def curvature_sweep(problem: Problem, rng: np.random.Generator) -> list[CurvatureSample]:
    """Sampled curvature of F at every ratio, in units of L; the same points and directions at each."""
    scale, same, found = problem.smoothness, int(rng.integers(2**32)), []
    for ratio in RATIOS:
        sample = np.random.default_rng(same)
        low, high, steep, _ = lemmas.sampled_curvature(problem, ratio * scale, sample)
        found.append(CurvatureSample(ratio, low / scale, high / scale, steep / scale))
    return found


def curvature_curves(seed: int) -> dict[str, list[CurvatureSample]]:
    """Curvature by name of the family: two for which Lemma 1 is an equality, and one for which it is not."""
    rng = SeedTree(seed).generator("theory.curves", 1)
    families = problems.attained(1), problems.attained(-1), problems.cosines(rng)
    return {family.name: curvature_sweep(family, rng) for family in families}


def ratio_rows(problem: Problem, ratio: float, rng: np.random.Generator) -> list[Row]:
    """Lemmas 1 and 3, the contraction and the theorem's inequalities at one lam/L."""
    named, lam = at_ratio(problem, ratio)
    return [
        *lemmas.smoothness_rows(named, lam, rng),
        *lemmas.inexactness_rows(named, lam, rng),
        *lemmas.contraction_rows(named, lam, rng),
        *theorem.run_rows(named, lam, rng),
    ]


class Arrival(NamedTuple):
    """Rounds to ||G||^2 <= TARGET with exact local solutions, and what the theorem allows."""

    ratio: float
    rounds: int
    allowed: float


def arrivals(problem: Problem, w0: Vector, target: float = TARGET) -> list[Arrival]:
    """At every ratio, for convex quadratics; allowed = (192 Lu^2 ||x_0 - x*||^2/target)^(1/3) (8.4)."""
    found = []
    for ratio in RATIOS:
        lam = ratio * problem.smoothness
        beta = theory_beta(problem, lam)
        distance = lemmas.norm(w0 - envelope_minimiser(problem, lam))
        allowed = (192.0 * (0.5 / beta) ** 2 * distance**2 / target) ** (1 / 3)
        found.append(Arrival(ratio, _arrival(problem, lam, beta, w0, target, allowed), allowed))
    return found


def arrival_curve(seed: int) -> list[Arrival]:
    """The arrivals at every lam/L, for ill-conditioned quadratics."""
    problem = slow_quadratic(SeedTree(seed).generator("theory.curves", 2))
    return arrivals(problem, np.zeros(problem.size))


def _arrival(problem: Problem, lam: float, beta: float, w0: Vector, target: float, allowed: float) -> int:
    """The first round with ||G||^2 <= target; a round after `allowed` if none is, up to there."""
    rounds = ROUNDS
    while True:
        gaps = np.array([r.gap for r in record(problem, lam, beta, GhadimiLan(beta), w0, rounds).rounds])
        arrived = np.flatnonzero(gaps**2 <= target)
        if arrived.size:
            return int(arrived[0]) + 1
        if rounds > allowed:
            return rounds + 1
        rounds *= 2


def arrival_rows(problem: Problem, w0: Vector) -> list[Row]:
    """8.4: an epsilon-stationary point within the rounds the bound allows."""
    statement = f"8.4 rounds to ||G||^2 <= {TARGET:g}, against what the bound allows"
    return [
        at_most(statement, at_ratio(problem, ratio)[0].name, rounds, allowed)
        for ratio, rounds, allowed in arrivals(problem, w0)
    ]


# --- local steps ------------------------------------------------------------------------------------


def floor_curves(seed: int) -> list[rates.FloorCurve]:
    """Floors against local steps, one curve for each lam/L."""
    problem = uneven(SeedTree(seed).generator("theory.curves"))
    lams = [ratio * problem.smoothness for ratio in FLOOR_RATIOS]
    return [rates.floor_curve(problem, lam, np.zeros(problem.size), ROUNDS) for lam in lams]


# --- heterogeneity ----------------------------------------------------------------------------------


class SpreadSample(NamedTuple):
    """What nodes that differ by `spread` do to the method."""

    spread: float
    floor: float  # of ||G||^2, with one local step
    predicted: float
    apart: float  # mean distance of the w_i* from their mean, at the point of rest


def spread_sweep(seed: int) -> list[SpreadSample]:
    """Quadratics that are the same but for their spread, one local step, lam = 3 L."""
    found = []
    for spread in SPREADS:
        problem = uneven(SeedTree(seed).generator("theory.spread"), spread)
        lam, w0 = 3.0 * problem.smoothness, np.zeros(problem.size)
        floor = floors(problem, lam, w0, ROUNDS, [1])[0]
        points = np.stack(envelope(problem, envelope_minimiser(problem, lam), lam).points)
        apart = float(np.mean([lemmas.norm(w) for w in points - points.mean(axis=0)]))
        found.append(SpreadSample(spread, float(floor), predicted_bias(problem, lam, 1) ** 2, apart))
    return found


def spread_rows(seed: int) -> list[Row]:
    """The floor against its closed form at every spread, zero for equal nodes, the fourth power between."""
    samples, name = spread_sweep(seed), "quadratic, lam = 3 L"
    different = [s for s in samples if s.spread > 0]
    small = [s for s in different if s.spread <= SMALL]
    slope = fit(np.log([s.spread for s in small]), np.log([s.floor for s in small])).slope
    statement = "8.5 floor against its closed form, nodes more and more different"
    return [
        *(at_most("8.5 floor with equal nodes", name, s.floor, 1e-24) for s in samples if s.spread == 0),
        *(equal(statement, f"{name}, spread {s.spread:g}", s.floor, s.predicted, 1e-3) for s in different),
        equal("8.5 floor grows like spread^4 where that is small: exponent", name, slope, 4.0, 0.05),
        *different_rows(seed),
    ]


def different_rows(seed: int) -> list[Row]:
    """Lemma 3 and the theorem's inequalities on non-convex nodes more and more different."""
    rows = []
    for spread in (0.0, 0.3, 3.0):
        rng = SeedTree(seed).generator("theory.spread", 1)
        family = problems.cosines(rng, spread=spread)
        named = replace(family, name=f"{family.name}, spread {spread:g}")
        lam = 2.5 * named.smoothness
        rows += lemmas.inexactness_rows(named, lam, rng) + theorem.run_rows(named, lam, rng)
    return rows


def slow_quadratic(rng: np.random.Generator) -> Problem:
    """Ill-conditioned convex quadratics, on which rounds can be counted."""
    return problems.quadratics(np.geomspace(1e-3, 1.0, 10), rng, nodes=3, spread=0.1)


PARTS = 3 * len(RATIOS) + 1 + len(FLOOR_RATIOS) + 1  # lists of rows that `sweep_parts` gives


def sweep_parts(seed: int) -> Iterator[list[Row]]:
    """All three sweeps."""
    rng = SeedTree(seed).generator("theory.sweep")
    concave = problems.attained(-1, penalty=Box(-1.0, 2.0))
    for problem in (problems.attained(1), concave, problems.cosines(rng)):
        for ratio in RATIOS:
            yield ratio_rows(problem, ratio, rng)
    slow, quadratic = slow_quadratic(rng), uneven(rng)
    yield arrival_rows(slow, np.zeros(slow.size))
    for ratio in FLOOR_RATIOS:
        yield rates.floor_rows(*at_ratio(quadratic, ratio), np.zeros(quadratic.size), ROUNDS)
    yield spread_rows(seed)
