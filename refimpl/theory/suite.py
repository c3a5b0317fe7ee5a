"""The sections of `refimpl theory`: which statement is checked on which family of problems.

Every section draws its problems from its own stream of the seed, so one can be run without the others.

Source: mathematics.md §8, one section each. Derived.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from refimpl.contracts import Penalty, Vector, nothing
from refimpl.data import load
from refimpl.errors import DivergenceError, one_of
from refimpl.optim.prox import BoundedGroupLasso, Box, Groups
from refimpl.rng import SeedTree
from refimpl.theory import lemmas, problems, rates, sweeps, theorem
from refimpl.theory.constants import Around, probe_rows, with_constants
from refimpl.theory.following import first_point, follow
from refimpl.theory.problems import Problem
from refimpl.theory.rows import VIOLATED, Row, all_hold
from refimpl.theory.theorem import search

Parts = Iterator[list[Row]]
Check = Callable[[], list[Row]]
LAM_OVER_L = 2.5  # lam in units of L, unless a check says otherwise
LOCAL_STEPS = (0, 1, 3)  # of the runs under the theorem; 0 means exact local solutions
ROUNDS = 60
FEW = 50  # rounds spent on a solution when the constants are known to be wrong


def digits_regression(rng: np.random.Generator) -> Problem:
    """Logistic regression, even against odd digits, on the centred pixels of every third embedded image."""
    digits = load("digits")
    pixels = digits.images[::3].reshape(-1, 64) / 16.0
    labels = np.where(digits.y[::3] % 2 == 0, 1, -1)
    return problems.logistic_regression(pixels - pixels.mean(axis=0), labels, rng, 4, spread=0.7, l2=0.05)


def convex(rng: np.random.Generator) -> list[Problem]:
    """The convex families."""
    return [
        problems.quadratics(np.linspace(0.0, 1.0, 6), rng),
        problems.sparse_least_squares(rng),
        digits_regression(rng),
    ]


def nonconvex(rng: np.random.Generator) -> list[Problem]:
    """The non-convex families; the last has a bounded domain, as assumption 2 of the paper asks."""
    bounded = BoundedGroupLasso(Groups.from_sizes([2, 3, 3]), rho=0.05, radius=1.5)
    indefinite = problems.quadratics(np.linspace(-1.0, 1.0, 6), rng, name="indefinite quadratic")
    return [
        Problem("indefinite quadratic, box", indefinite.losses, indefinite.size, Box(-2.0, 2.0)),
        problems.cosines(rng),
        Problem("cosines, bounded lasso", problems.cosines(rng).losses, 8, bounded),
    ]


def attained() -> list[Problem]:
    """Problems for which the lemmas are equalities. The concave one has a box, so that it has a minimum."""
    return [problems.attained(1), problems.attained(-1, penalty=Box(-1.0, 2.0))]


def lemma_checks(
    problem: Problem, lam: float, rng: np.random.Generator, around: Around | None = None
) -> list[Check]:
    """8.1 to 8.3 on one problem, float64, lam > L: one check for each statement."""
    drawn = around or lemmas.anywhere(problem)
    others = (lemmas.smoothness_rows, lemmas.inexactness_rows, lemmas.contraction_rows)
    return [
        lambda: lemmas.gradient_rows(problem, lam, rng, drawn.draw(rng, 2)),
        *(partial(check, problem, lam, rng, around) for check in others),
    ]


def check_stationarity(
    problem: Problem, lam: float, rng: np.random.Generator, around: Around | None = None, most: int = 3000
) -> list[Row]:
    """7 on one problem: the two forms of the gap compared, away from a solution and at one."""
    around = around or lemmas.anywhere(problem)
    v = around.inside(around.start + 0.5 * rng.standard_normal(problem.size))
    problem.penalty.prox(v, 0.0, v)
    found = search(problem, lam, v, most)
    at_rest = found.x if found.certificate.mapping <= lemmas.AT_REST else None
    return lemmas.stationarity_rows(problem, lam, lemmas.theory_beta(problem, lam), v, at_rest)


def check_problem(
    problem: Problem,
    seed: int = 0,
    ratio: float = LAM_OVER_L,
    *,
    start: Vector | None = None,
    region: Penalty | None = None,
    rounds: int = 20,
    on_part: Callable[[list[Row]], object] = nothing,
) -> list[Row]:
    """Constants, stationarity, lemmas and theorem on a problem of your own, with lam = ratio L.

    Its losses are objectives over float64 vectors that state their `smoothness` and `concavity` (estimated
    otherwise); its penalty is any object with the three methods of `prox.Penalty`. If the constants are too
    small, rows are violated. start (d,): where runs start, and around which points are drawn [zero, with
    random starts]; region: the set in which the constants hold, as an indicator of `optim.prox`. `on_part`
    gets the rows of each part as soon as they are known. A part that diverges becomes a violated row.
    """
    known = np.zeros(problem.size) if start is None else np.array(start, dtype=np.float64)
    around, own = Around(known, region), SeedTree(seed).generator("theory.constants")
    problem, kind = with_constants(problem, around, own)
    rng, lam = SeedTree(seed).generator("theory.problem"), ratio * problem.smoothness
    rows: list[Row] = []

    def runs() -> list[Row]:
        w0 = first_point(problem, start, rng)
        found = [follow(problem, lam, steps, rounds, w0, region=region, seed=seed) for steps in (0, 1)]
        return [row for run in found for row in (*run.findings, *run.rows)]

    checks: list[Check] = [
        lambda: probe_rows(problem, kind, around, own),
        lambda: check_stationarity(problem, lam, rng, around, 3000 if all_hold(rows) else FEW),
        *lemma_checks(problem, lam, rng, around),
        runs,
    ]
    with np.errstate(over="ignore", invalid="ignore"):
        for check in checks:
            try:
                part = check()
            except DivergenceError:
                part = [diverged(problem, kind, rows)]
            rows += part
            on_part(part)
    return rows


def diverged(problem: Problem, kind: str, rows: Sequence[Row]) -> Row:
    """The violated row for a check that diverged, after the rows found before."""
    seen = [row for row in rows if row.verdict == VIOLATED and kind in row.statement]
    why = seen[0].statement if seen else "no curvature beyond the constants was seen at the points tried"
    return Row(f"a solution diverged: {why}", problem.name, math.inf, 0.0, -math.inf, VIOLATED)


def lemma_parts(seed: int) -> Parts:
    """8.1 to 8.3 on every family."""
    rng = SeedTree(seed).generator("theory.lemmas")
    for problem in [*convex(rng), *nonconvex(rng), *attained()]:
        checks = lemma_checks(problem, LAM_OVER_L * problem.smoothness, rng)
        yield [row for check in checks for row in check()]
    from refimpl.theory.soft_network import soft_network  # here: layers take a fifth of a second to import

    network, w = soft_network(rng)
    yield lemmas.gradient_rows(network, 3.0 * network.smoothness, rng, w[None])


def theorem_parts(seed: int) -> Parts:
    """8.4 on every family."""
    rng = SeedTree(seed).generator("theory.theorem")
    for problem in [*convex(rng), *nonconvex(rng), *attained()]:
        yield theorem.run_rows(problem, LAM_OVER_L * problem.smoothness, rng, ROUNDS, LOCAL_STEPS)


def gap_parts(seed: int) -> Parts:
    """7: the gap against closed forms, and its two forms against each other."""
    rng = SeedTree(seed).generator("theory.gap")
    for low, name in ((0.1, "quadratic"), (-1.0, "indefinite quadratic")):
        problem = problems.quadratics(np.linspace(low, 1.0, 6), rng, name=name)
        yield lemmas.closed_form_rows(problem, LAM_OVER_L, rng)
    for problem in [*convex(rng), *nonconvex(rng)]:
        yield check_stationarity(problem, LAM_OVER_L * problem.smoothness, rng)


def rate_parts(seed: int) -> Parts:
    """8.5: slopes on ill-conditioned problems, and the floor as a function of s."""
    (valleys, lam_v, start_v), (flat, lam_f, start_f) = rates.slow_problems(seed)
    uneven = sweeps.uneven(SeedTree(seed).generator("theory.rates", 1))
    yield rates.slope_rows(valleys, lam_v, start_v, rates.ROUNDS, -0.95)
    yield rates.slope_rows(flat, lam_f, start_f, rates.ROUNDS, -2.5)
    yield rates.floor_rows(uneven, 3.0, np.zeros(uneven.size), 400)


class Section(NamedTuple):
    """One section: its rows come in parts, one for each family or setting."""

    parts: int
    check: Callable[[int], Parts]


SECTIONS = {
    "gap": Section(8, gap_parts),
    "lemmas": Section(9, lemma_parts),
    "theorem": Section(8, theorem_parts),
    "rates": Section(3, rate_parts),
    "sweep": Section(sweeps.PARTS, sweeps.sweep_parts),
}


def run_section(section: str, seed: int = 0, on_part: Callable[[list[Row]], None] | None = None) -> list[Row]:
    """The rows of one of `SECTIONS`, else raises `InputError`; `on_part` is called with each part."""
    one_of("run_section", "section", section, tuple(SECTIONS))
    rows = []
    for part in SECTIONS[section].check(seed):
        rows += part
        if on_part is not None:
            on_part(part)
    return rows


def run_all(seed: int = 0) -> list[Row]:
    """The rows of all sections, in order."""
    return [row for section in SECTIONS for row in run_section(section, seed)]
