"""Theorem 1: both sides, term by term, of what is proven about a recorded run.

With Lu the *upper* curvature and Lf the lower curvature of F (`lemmas.curvature_bounds`), b < 1/Lu,
a_k = 2/(k+1), l_k = k b/2, Gamma_k = 2/(k(k+1)), any x*, and G~_k = (md_k - xag_k)/b:

    (Phi(xag_N) - Phi(x*))/Gamma_N + sum_k b(1 - Lu b)/(4 Gamma_k) ||G~_k||^2
        <= ||x_0 - x*||^2/b + (Lf/Gamma_N)(||x*||^2 + M^2)
           + sum_k (1/Gamma_k) [a_k delta_k ||x* - x_{k-1}|| + b delta_k^2/(1 - Lu b)].

Two points differ from how this is usually put. Lu enters only through the descent lemma at xag_k, which
needs an upper bound on the curvature and no Lipschitz constant: so the constant lam L/(lam + L) is right
here although grad F is not Lipschitz with it (8.2). And the first term is kept, so x* need not be a global
minimiser: the checks take a certified stationary point and look at the sign of that term separately.

The bound is loose, so the inequalities it is made of are checked at every k too: (i) descent, (ii) lower
curvature, (iii) three-point inequalities of both prox steps, (iv) their sum.

Source: mathematics.md §8.4, after Ghadimi & Lan 2016, Theorem 1 and Corollary 2; derived, with our constants.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from refimpl.contracts import Schedule, Vector
from refimpl.kernels import vector
from refimpl.optim.accel import GhadimiLan, Nesterov, Result, minimize_composite
from refimpl.theory.gap import ROUNDING, EnvelopePoint, envelope, envelope_objective, exact_gap
from refimpl.theory.lemmas import curvature_bounds, inexactness_factor, norm, theory_beta
from refimpl.theory.problems import Problem
from refimpl.theory.rows import Row, Sides, at_most, largest, worst
from refimpl.theory.run import Round, Run, record

SOLUTION = 1e-10  # gradient mapping at which a point is taken as x*


def search(problem: Problem, lam: float, start: Vector, most: int = 3000) -> Result:
    """Look for a stationary point of Phi near `start`, by `most` rounds with exact local solutions."""
    schedule = Nesterov(1.0 / curvature_bounds(problem.smoothness, problem.concavity, lam)[1])
    objective = envelope_objective(problem, lam)
    return minimize_composite(objective, problem.penalty, start, schedule, most, SOLUTION)


class Step(NamedTuple):
    """The numbers of iteration k: a_k, l_k, b_k and Gamma_k."""

    a: float
    l: float
    b: float
    gamma: float


def theory_step(k: int, beta: float) -> Step:
    """a_k = 2/(k+1), l_k = k b/2, b_k = b, Gamma_k = 2/(k(k+1)): recomputed from k and b alone."""
    return Step(2.0 / (k + 1), 0.5 * k * beta, beta, 2.0 / (k * (k + 1)))


def own_step(k: int, schedule: Schedule) -> Step:
    """The steps of another schedule: Theorem 1 says nothing about it, so there is no Gamma_k (NaN)."""
    a, b, l = schedule.steps(k)
    return Step(a, l, b, math.nan)


@dataclass(frozen=True, eq=False)
class Seen(Round):
    """A round with what the theory says about it and the exact quantities at its points."""

    x_before: Vector
    ag_before: Vector
    a: float  # a_k, l_k, b_k and Gamma_k of `theory_step` or `own_step`
    l: float
    b: float
    gamma: float
    delta: float  # bound on ||g_k - grad F(md_k)||, from the residuals
    at_md: EnvelopePoint
    at_ag: EnvelopePoint
    at_ag_before: EnvelopePoint
    h_ag: float
    h_ag_before: float


def look(
    problem: Problem,
    lam: float,
    w0: Vector,
    rounds: Iterable[Round],
    step_of: Callable[[int], Step],
) -> Iterator[Seen]:
    """The rounds of a run from w0, with F and its gradient wherever the inequalities ask for them."""
    factor = inexactness_factor(problem.smoothness, lam)
    x, ag, before, h_before = w0, w0, envelope(problem, w0, lam), problem.penalty.value(w0)
    for r in rounds:
        at_md, at_ag = envelope(problem, r.md, lam, r.answers), envelope(problem, r.ag, lam)
        h_ag, delta = problem.penalty.value(r.ag), factor * r.residual + at_md.gradient_error
        stated: list[Any] = [*vars(r).values(), x, ag, *step_of(r.k)]
        exact = [delta, at_md, at_ag, before, h_ag, h_before]
        yield Seen(*stated, *exact)
        x, ag, before, h_before = r.x, r.ag, at_ag, h_ag


class Trial:
    """A recorded run as the inequalities need it, and the point x* that they compare with.

    seen: its rounds, if they have been looked at already; by default with the steps that the theory says.
    """

    def __init__(self, run: Run, x_star: Vector, seen: Sequence[Seen] | None = None) -> None:
        problem = run.problem
        self.run, self.x_star, self.name = run, x_star, run.name
        self.below, self.above = curvature_bounds(problem.smoothness, problem.concavity, run.lam)
        self.at_star, self.h_star = envelope(problem, x_star, run.lam), problem.penalty.value(x_star)
        if seen is None:
            stated = partial(theory_step, beta=run.beta)
            seen = list(look(problem, run.lam, run.w0, run.rounds, stated))
        self.seen = seen

    def young(self, s: Seen) -> float:
        """1 - Lu b_k; NaN unless b_k < 1/Lu, which the theorem needs."""
        left = 1.0 - self.above * s.b
        return left if left > 0 else math.nan


def square(x: Vector) -> float:
    """Squared Euclidean norm."""
    return float(vector.squared_norm(x))


def rounding(*terms: float) -> float:
    """A bound on the rounding error of adding these terms."""
    return ROUNDING * float(np.sum(np.abs(terms)))


# --- the inequalities at one k ----------------------------------------------------------------------

Check = Callable[[Trial, Seen], Sides]


def middle_point(trial: Trial, s: Seen) -> Sides:
    """md_k = (1 - a_k) xag_{k-1} + a_k x_{k-1}, the convex combination stated."""
    off = norm(s.md - ((1 - s.a) * s.ag_before + s.a * s.x_before))
    return Sides(off, 0.0, rounding(norm(s.ag_before), norm(s.x_before)))


def gradient_error(trial: Trial, s: Seen) -> Sides:
    """||g_k - grad F(md_k)|| <= delta_k (8.3 along the run)."""
    return Sides(norm(s.gradient - s.at_md.gradient), s.delta, rounding(norm(s.gradient)))


def descent(trial: Trial, s: Seen) -> Sides:
    """(i) F(xag_k) <= F(md_k) + <grad F(md_k), xag_k - md_k> + Lu/2 ||xag_k - md_k||^2."""
    d = s.ag - s.md
    linear, curved = float(s.at_md.gradient @ d), 0.5 * trial.above * square(d)
    error = s.at_ag.value_error + s.at_md.value_error + s.at_md.gradient_error * norm(d)
    error += rounding(s.at_ag.value, s.at_md.value, linear)
    return Sides(s.at_ag.value - s.at_md.value - linear, curved, error)


def lower_curvature(trial: Trial, s: Seen) -> Sides:
    """(ii) F(md) - (1-a) F(xag_{k-1}) - a F(x*) <= <grad F(md), md - (1-a) xag_{k-1} - a x*> + Lf terms."""
    a, star = s.a, trial.x_star
    d = s.md - (1 - a) * s.ag_before - a * star
    linear = float(s.at_md.gradient @ d)
    curved = 0.5 * a * trial.below * square(s.md - star)
    curved += 0.5 * a**2 * (1 - a) * trial.below * square(s.ag_before - s.x_before)
    left = s.at_md.value - (1 - a) * s.at_ag_before.value - a * trial.at_star.value
    error = s.at_md.value_error + s.at_ag_before.value_error + trial.at_star.value_error
    error += s.at_md.gradient_error * norm(d)
    error += rounding(s.at_md.value, s.at_ag_before.value, trial.at_star.value, linear, curved)
    return Sides(left - linear, curved, error)


def three_points(trial: Trial, s: Seen, start: Vector, step: float, u: Vector, z: Vector) -> Sides:
    """<g, u - z> + h(u) - h(z) <= (|start - z|^2 - |u - z|^2 - |u - start|^2)/(2 step).

    It holds for u = prox_{step h}(start - step g) and every z. Without a penalty it is an equality, so
    rounding is what it is checked up to: that of the points, times the distances between them.
    """
    h, linear = trial.run.problem.penalty, float(s.gradient @ (u - z))
    across, after, moved = norm(start - z), norm(u - z), norm(u - start)
    sizes = norm(start) + norm(u) + norm(z) + step * norm(s.gradient)
    error = ROUNDING * sizes * (across + after + moved) / step
    values = h.value(u), h.value(z)
    right = (across**2 - after**2 - moved**2) / (2 * step)
    return Sides(linear + values[0] - values[1], right, error + rounding(linear, *values))


def long_prox(trial: Trial, s: Seen) -> Sides:
    """(iii) for x_k from x_{k-1} with step l_k, against x*."""
    return three_points(trial, s, s.x_before, s.l, s.x, trial.x_star)


def short_prox(trial: Trial, s: Seen) -> Sides:
    """(iii) for xag_k from md_k with step b, against a_k x_k + (1 - a_k) xag_{k-1}."""
    return three_points(trial, s, s.md, s.b, s.ag, s.a * s.x + (1 - s.a) * s.ag_before)


def prox_optimality(trial: Trial, s: Seen) -> Sides:
    """(iii) from its other side: (x_{k-1} - l g - x_k)/l and (md - b g - xag_k)/b are subgradients of h."""
    penalty, l, b = trial.run.problem.penalty, s.l, s.b
    long_ = penalty.subdifferential_distance((s.x_before - l * s.gradient - s.x) / l, s.x)
    short = penalty.subdifferential_distance((s.md - b * s.gradient - s.ag) / b, s.ag)
    sizes = norm(s.x_before) / l + norm(s.md) / b + 2 * norm(s.gradient)
    return Sides(largest((long_, short)), 0.0, 4 * rounding(sizes))


def one_step(trial: Trial, s: Seen) -> Sides:
    """(iv) Phi(xag_k) - Phi(x*) - (1-a)(Phi(xag_{k-1}) - Phi(x*)) against the telescoping terms.

    It needs a_k l_k <= b_k < 1/Lu; otherwise nothing is compared.
    """
    a, l, b, star = s.a, s.l, s.b if s.a * s.l <= (1 + ROUNDING) * s.b else math.nan, trial.x_star
    phi = s.at_ag.value + s.h_ag, s.at_ag_before.value + s.h_ag_before, trial.at_star.value + trial.h_star
    moved = a / (2 * l) * (square(s.x_before - star) - square(s.x - star))
    spread = (1 - a) * square(s.ag_before - star) + a * square(s.x_before - star)
    left = phi[0] - (1 - a) * phi[1] - a * phi[2] + 0.25 * b * trial.young(s) * s.gap**2
    error = s.at_ag.value_error + s.at_ag_before.value_error + trial.at_star.value_error
    sizes = square(s.x_before - star) * a / l, square(s.x - star) * a / l
    right = moved + 0.5 * a * trial.below * spread + inexact(trial, s)
    return Sides(left, right, error + rounding(*phi, *sizes))


def inexact(trial: Trial, s: Seen) -> float:
    """a_k delta_k ||x* - x_{k-1}|| + b delta_k^2/(1 - Lu b): what inexact local solutions cost in a round."""
    return s.a * s.delta * norm(trial.x_star - s.x_before) + s.b * s.delta**2 / trial.young(s)


def gaps(trial: Trial, s: Seen) -> Sides:
    """| ||G_k|| - ||G~_k|| | <= delta_k: exact gap at md_k against the server's."""
    exact = exact_gap(trial.run.problem, s.md, trial.run.lam, s.b)
    return Sides(abs(exact.mapping - s.gap), s.delta, exact.error + rounding(norm(s.md) / s.b))


CHECKS: dict[str, Check] = {
    "8.4 md_k is the stated combination": middle_point,
    "8.4 error of g_k <= delta_k": gradient_error,
    "8.4 (i) descent at xag_k": descent,
    "8.4 (ii) lower curvature": lower_curvature,
    "8.4 (iii) three-point inequality of x_k": long_prox,
    "8.4 (iii) three-point inequality of xag_k": short_prox,
    "8.4 (iii) both prox points are optimal": prox_optimality,
    "8.4 (iv) one step": one_step,
    "8.4 exact and surrogate gap differ by <= delta_k": gaps,
}


def iteration_sides(trial: Trial) -> dict[str, list[Sides]]:
    """Every inequality at every k."""
    return {statement: [check(trial, s) for s in trial.seen] for statement, check in CHECKS.items()}


def iteration_rows(trial: Trial) -> list[Row]:
    """Every inequality; each row shows the k that comes nearest to violating it."""
    return [worst(statement, trial.name, sides) for statement, sides in iteration_sides(trial).items()]


# --- the telescoped bound ---------------------------------------------------------------------------


class Terms(NamedTuple):
    """The bound's terms, as printed in this module's docstring, left to right."""

    value: float
    gaps: float
    start: float
    curvature: float
    inexact: float


NAMES = (  # of the terms, each with its side
    "left: (Phi(xag_N) - Phi(x*))/Gamma_N",
    "left: sum of b(1 - Lu b)/(4 Gamma_k) ||G~_k||^2",
    "right: ||x_0 - x*||^2/b",
    "right: (Lf/Gamma_N)(||x*||^2 + M^2)",
    "right: sum of (a_k delta_k ||x* - x_{k-1}|| + b delta_k^2/(1 - Lu b))/Gamma_k",
)


def bound_terms(trial: Trial) -> list[Terms]:
    """Both sides of Theorem 1 after each round, from what was measured: M, delta_k and the gaps."""
    star, gap_sum, inexact_sum, farthest, found = trial.x_star, 0.0, 0.0, 0.0, []
    for s in trial.seen:
        gap_sum += 0.25 * s.b * trial.young(s) * s.gap**2 / s.gamma
        inexact_sum += inexact(trial, s) / s.gamma
        farthest = max(farthest, (1 - s.a) * square(s.ag_before) + s.a * square(s.x_before))
        value = (s.at_ag.value + s.h_ag - trial.at_star.value - trial.h_star) / s.gamma
        curved = trial.below / s.gamma * (square(star) + farthest)
        found.append(Terms(value, gap_sum, square(trial.run.w0 - star) / s.b, curved, inexact_sum))
    return found


def bound_sides(trial: Trial) -> list[Sides]:
    """Left and right side of Theorem 1 after each round."""
    return [
        Sides(
            terms.value + terms.gaps,
            terms.start + terms.curvature + terms.inexact,
            rounding(*terms) + (trial.at_star.value_error + s.at_ag.value_error) * s.k**2,
        )
        for s, terms in zip(trial.seen, bound_terms(trial), strict=True)
    ]


def bound_rows(trial: Trial) -> list[Row]:
    """Theorem 1 for the whole run, and its corollary for b = 1/(2 Lu)."""
    terms, (left, right, error), rounds = bound_terms(trial)[-1], bound_sides(trial)[-1], len(trial.seen)
    named = tuple(zip(NAMES, terms, strict=True))
    rows = [
        at_most("8.4 Theorem 1, telescoped", trial.name, left, right, error, named),
        at_most("8.4 Phi(x*) <= Phi(xag_N)", trial.name, -terms.value, 0.0, error),
    ]
    if abs(2 * trial.above * trial.run.beta - 1) < 1e-12:
        best = float(np.min([s.gap for s in trial.seen])) ** 2
        bound = 96 * trial.above / (rounds * (rounds + 1) * (rounds + 2)) * right
        rows.append(at_most("8.4 min_k ||G~_k||^2 <= O(1/N^3) + O(Lf/N) + inexact", trial.name, best, bound))
    return rows


def run_rows(
    problem: Problem,
    lam: float,
    rng: np.random.Generator,
    rounds: int = 20,
    local_steps: Sequence[int] = (0, 1),
) -> list[Row]:
    """Every inequality and the bound along runs with b = 1/(2 Lu) from one random feasible start.

    One run for each number of local steps; 0 means exact local solutions.
    """
    beta = theory_beta(problem, lam)
    w0, rows = problem.start(rng), []
    for steps in local_steps:
        run = record(problem, lam, beta, GhadimiLan(beta), w0, rounds, steps)
        trial = Trial(run, search(problem, lam, run.rounds[-1].ag).x)
        rows += iteration_rows(trial) + bound_rows(trial)
    return rows
