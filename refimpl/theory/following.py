"""Follow the method on a problem of one's own, and see by round what the theory says about it.

`follow` runs the algorithm on the nodes' losses, with a number of local steps or with exact local solutions.
For every round it shows the true gap with its error bar, the server's gap, the inexactness of g with its
bound, both sides of Theorem 1 after so many rounds, and every inequality of the theorem's proof. The
constants are compared with the curvature that is seen on the way. A run that diverges ends with what was
seen until then.

Source: mathematics.md §8.6, with the statements of §7, §8.3 and §8.4. Derived.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refimpl.contracts import Penalty, Schedule, Vector, nothing
from refimpl.errors import DivergenceError, InputError, expect_numbers, shown
from refimpl.files.storage import json_text
from refimpl.files.tables import table
from refimpl.optim.accel import GhadimiLan
from refimpl.registry import drawn
from refimpl.rng import SeedTree
from refimpl.theory.constants import (
    INSIDE,
    Around,
    constant_rows,
    extremes,
    finding,
    region_row,
    with_constants,
)
from refimpl.theory.gap import check_convexity, surrogate_gap
from refimpl.theory.lemmas import norm, theory_beta
from refimpl.theory.problems import Problem
from refimpl.theory.rows import HOLDS, VIOLATED, Row, all_hold, at_most, count, summarise
from refimpl.theory.run import Round, Run, rounds_of
from refimpl.theory.theorem import (
    ROUNDING,
    Seen,
    Step,
    Trial,
    bound_rows,
    bound_sides,
    iteration_sides,
    look,
    own_step,
    search,
    theory_step,
)

LAM_OVER_L = 2.5  # lam in units of L, unless given
FAR = 1e6  # a run whose points are so much larger than its start has diverged
SOLUTION_ROUNDS = 300  # spent on x*, which may be any point; a stationary one makes the bound smallest
SHOWN = 12  # rounds of a table
SCALARS = (float, int, str, bool)


class FollowedRound(NamedTuple):
    """What is known about round k at its centre md_k; sides and rows are added when the run has ended.

    round: k; true_gap: ||G_b(md_k)||, with grad F from certified local solutions; error: a bound on its
    error, if the constants hold; assured: whether no constant was seen to be exceeded in this round or
    before; server_gap: the gap with g_k, which is all that the server knows; inexactness: ||g_k - grad
    F(md_k)||; inexactness_bound: delta_k; objective: Phi(xag_k); lowest, highest: the least and the greatest
    curvature of a loss seen in this round; left, right: the sides of Theorem 1 after k rounds, NaN where it
    says nothing; rows: the inequalities of its proof in this round.
    """

    round: int
    true_gap: float
    error: float
    assured: bool
    server_gap: float
    inexactness: float
    inexactness_bound: float
    objective: float
    lowest: float
    highest: float
    left: float = math.nan
    right: float = math.nan
    rows: tuple[Row, ...] = ()

    def __str__(self) -> str:
        return (
            f"round {self.round}: true gap {self.true_gap:.3g} +- {self.error:.1g}, "
            f"server's {self.server_gap:.3g}, Phi {self.objective:.6g}"
        )


@dataclass(frozen=True, eq=False)
class Following:
    """A run with all that was seen on the way.

    problem: its losses with the constants that were used; constants: how those are known, "stated" or
    "estimated"; lam: the weight of the proximal term; beta: b_1 of the schedule; steps: local gradient steps,
    0 for exact local solutions; w: xag after the last round; rounds: what is known of each; findings: what is
    wrong with the constants, the region or the run, when first seen; rows: every statement once, in the round
    that comes nearest to violating it.
    """

    problem: Problem
    constants: str
    lam: float
    beta: float
    steps: int
    w: Vector
    rounds: tuple[FollowedRound, ...]
    findings: tuple[Row, ...]
    rows: tuple[Row, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing is violated and something was checked."""
        return all_hold([*self.rows, *self.findings])

    def as_dict(self) -> dict[str, Any]:
        """Everything but w and the losses, as names, numbers and lists."""
        plain = {name: value for name, value in vars(self).items() if isinstance(value, SCALARS)}
        about = {"problem": self.problem.name, "L": self.problem.smoothness, "C": self.problem.concavity}
        lists = {name: [row._asdict() for row in getattr(self, name)] for name in ("findings", "rows")}
        rounds = [one._asdict() | {"rows": [row._asdict() for row in one.rows]} for one in self.rounds]
        return {"holds": self.holds} | about | plain | lists | {"rounds": rounds}

    def json(self) -> str:
        """`as_dict` as JSON; NaN and infinities become null."""
        return json_text(self.as_dict())

    def figure(self, path: str | Path) -> Path:
        """Draw the gaps and both sides of the theorem by round into a file (needs matplotlib)."""
        return drawn(self, Path(path))

    def table(self) -> str:
        """The run by round (a dozen rounds), every statement, and what was found, as text."""
        statements = [
            (row.statement, f"{row.left:.4g}", f"{row.right:.4g}", f"{row.slack:.2g}", row.verdict)
            for row in self.rows
        ]
        parts = [
            self._about(),
            table(ROUND_HEADER, [_cells(one) for one in _some(self.rounds)]),
            table(("statement, at its tightest", "left", "right", "slack", "verdict"), statements),
            *(f"FOUND, {row.family}: {row.statement}" for row in self.findings),
            *self._bars(),
        ]
        return "\n\n".join(parts)

    def _about(self) -> str:
        problem, local = self.problem, f"{self.steps} local steps" if self.steps else "exact local solutions"
        return (
            f"{problem.name}: {len(problem.losses)} nodes, {problem.size} numbers, {local}, "
            f"lam = {self.lam:.4g}, b = {self.beta:.4g}, L = {problem.smoothness:.4g} and "
            f"C = {problem.concavity:.4g} ({self.constants})"
        )

    def _bars(self) -> Iterator[str]:
        """What the error bars are worth."""
        if any(not one.assured for one in self.rounds):
            yield "* This error bar assumes L and C, but something was found before: it proves nothing."
        elif self.constants == "estimated":
            yield "The error bars assume L and C, which are estimates: no greater curvature was seen."


ROUND_HEADER = (
    "round", "true gap", "+-", "server's gap", "|g - grad F|", "at most", "left", "right of Theorem 1",
    "curvature seen", "inequalities",
)  # fmt: skip


def _cells(one: FollowedRound) -> tuple[str, ...]:
    error = f"{one.error:.1g}{'' if one.assured else ' *'}"
    numbers = [one.server_gap, one.inexactness, one.inexactness_bound, one.left, one.right]
    seen = f"{one.lowest:.3g} to {one.highest:.3g}"
    held = f"{count(one.rows, HOLDS)} of {len(one.rows)} hold"
    sides = ("-" if math.isnan(number) else f"{number:.3g}" for number in numbers)
    return str(one.round), f"{one.true_gap:.4g}", error, *sides, seen, held


def _some(rounds: tuple[FollowedRound, ...]) -> list[FollowedRound]:
    """At most `SHOWN` of the rounds, dense at the beginning, with the first and the last."""
    if len(rounds) <= SHOWN:
        return list(rounds)
    chosen = {round(number) for number in np.geomspace(1, len(rounds), SHOWN)}
    return [rounds[number - 1] for number in sorted(chosen)]


def follow(
    problem: Problem,
    lam: float | None = None,
    steps: int = 1,
    rounds: int = 50,
    w0: Vector | None = None,
    schedule: Schedule | None = None,
    region: Penalty | None = None,
    seed: int = 0,
    on_round: Callable[[FollowedRound], object] = nothing,
) -> Following:
    """Run the method on the problem's nodes, and compare each round with the theory.

    lam: Moreau weight, above L [2.5 L]; steps: local gradient steps of size 1/lam, 0 for exact local
    solutions; w0 (d,): start [random, from the seed]; schedule: server steps [those of the theory with
    b = 1/(2 Lu)]; region: the set in which the constants hold, as an indicator of `optim.prox`. Losses that
    state no `smoothness` and `concavity` get estimates. `on_round` is called after each round; `print` will
    do. Raises `InputError` for a start that does not fit and for lam <= L.
    """
    if not isinstance(problem, Problem):
        raise InputError(f"`follow`: expected a refimpl.theory.Problem, got {shown(problem)}")
    expect_numbers("follow", whole=True, steps=steps, seed=seed)
    expect_numbers("follow", positive=True, whole=True, rounds=rounds)
    rng = SeedTree(seed).generator("theory.follow")
    around = Around(first_point(problem, w0, rng), region)
    problem, kind = with_constants(problem, around, rng)
    lam = LAM_OVER_L * problem.smoothness if lam is None else float(lam)
    check_convexity("follow", problem.smoothness, lam)
    schedule = schedule or GhadimiLan(theory_beta(problem, lam))
    follower = Follower(problem, kind, lam, steps, schedule, around, rng)
    with np.errstate(over="ignore", invalid="ignore"):
        return follower.run(rounds, on_round)


def first_point(problem: Problem, w0: Vector | None, rng: np.random.Generator) -> Vector:
    """The start in float64: w0 if given, else a random point of the penalty's domain."""
    if w0 is None:
        return problem.start(rng)
    start = np.array(w0, dtype=np.float64)
    if start.shape != (problem.size,) or not np.all(np.isfinite(start)):
        raise InputError(f"`follow`: expected w0 ({problem.size},) of finite numbers, got {shown(w0)}")
    if not math.isfinite(problem.penalty.value(start)):
        raise InputError("`follow`: expected w0 in the domain of the penalty, which is infinite there")
    return start


@dataclass(eq=False)
class Follower:
    """Follows a run under way, and keeps what has been found so far."""

    problem: Problem
    kind: str
    lam: float
    steps: int
    schedule: Schedule
    around: Around
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.beta = self.schedule.steps(1).b
        self.findings: list[Row] = []
        self.watched: list[Row] = []  # constants and region, in every round
        self.followed: list[FollowedRound] = []

    def run(self, rounds: int, on_round: Callable[[FollowedRound], object]) -> Following:
        """All rounds, or as many as are finite, and then what needs x*."""
        w0, seen = self.around.start, []
        stream = islice(rounds_of(self.problem, self.lam, self.schedule, w0, self.steps), rounds)
        for s in look(self.problem, self.lam, w0, self._while_near(stream), self._numbers(rounds)):
            seen.append(s)
            self.followed.append(self._followed(s))
            on_round(self.followed[-1])
        rows = self._rows(Run(self.problem, self.lam, self.beta, self.steps, w0, list(seen)), seen)
        return Following(
            self.problem,
            self.kind,
            self.lam,
            self.beta,
            self.steps,
            seen[-1].ag if seen else w0,
            tuple(self.followed),
            tuple(self.findings),
            tuple(rows),
        )

    def _numbers(self, rounds: int) -> Callable[[int], Step]:
        """The numbers of each round: the theory's if the schedule is the theory's, else its own."""
        stated = partial(theory_step, beta=self.beta)
        pairs = ((self.schedule.steps(k), stated(k)) for k in range(1, rounds + 1))
        if all(np.allclose(given, (to.a, to.b, to.l), rtol=1e-12, atol=0) for given, to in pairs):
            return stated
        return partial(own_step, schedule=self.schedule)

    def _while_near(self, rounds: Iterable[Round]) -> Iterator[Round]:
        """The rounds until one has diverged, which becomes a finding; constants are watched on the way."""
        limit = FAR * (1.0 + norm(self.around.start))
        for r in rounds:
            self._watch(r)
            size = max(norm(w) for w in (r.x, r.ag, *r.answers))
            if not size <= limit:
                self._diverged(r, size, limit)
                return
            yield r

    def _watch(self, r: Round) -> None:
        """Compare the constants with the curvature at the points of a round, and these with the region."""
        family, losses = f"{self.problem.name}, round {r.k}", self.problem.losses
        self.extremes = extremes(losses, [(r.md, answer) for answer in r.answers], self.rng)
        rows = constant_rows(family, self.extremes)
        if self.around.region is not None:
            rows.append(region_row(family, self.around, (r.md, r.x, r.ag, *r.answers)))
        known = {row.statement for row in self.watched if row.verdict == VIOLATED}
        new = (row for row in rows if row.verdict == VIOLATED and row.statement not in known)
        self.findings += [finding(row, self.kind) for row in new]
        self.watched += rows

    def _diverged(self, r: Round, size: float, limit: float) -> None:
        """Say in which round the run diverged, and whether the constants or the server steps are to blame."""
        broken = [row for row in self.watched if row.verdict == VIOLATED and row.statement != INSIDE]
        why = f"no curvature above L = {self.problem.smoothness:.4g} was seen; take shorter server steps"
        if broken:
            why = finding(min(broken, key=lambda row: row.slack), self.kind).statement
        family = f"{self.problem.name}, round {r.k}"
        self.findings.append(
            at_most(f"the run diverged: {why}", family, size, limit)._replace(verdict=VIOLATED)
        )

    def _followed(self, s: Seen) -> FollowedRound:
        """The round as far as it is known without x*."""
        gradient = s.at_md.gradient
        return FollowedRound(
            round=s.k,
            true_gap=surrogate_gap(s.md, gradient, self.problem.penalty, s.b),
            error=s.at_md.gradient_error + ROUNDING * norm(s.md) / s.b,
            assured=not any(row.verdict == VIOLATED for row in self.findings),
            server_gap=s.gap,
            inexactness=norm(s.gradient - gradient),
            inexactness_bound=s.delta,
            objective=s.at_ag.value + s.h_ag,
            lowest=min(one.low for one in self.extremes),
            highest=max(one.high for one in self.extremes),
        )

    def _rows(self, run: Run, seen: list[Seen]) -> list[Row]:
        """Every statement once; the rounds get both sides of the theorem and their inequalities."""
        watched = [one.tightest for one in summarise(self.watched)]
        if not seen:
            return watched
        trial = Trial(run, self._solution(seen[-1].ag), seen)
        bounds, inequalities = bound_sides(trial), iteration_sides(trial)
        for number, one in enumerate(self.followed):
            rows = [
                at_most(statement, f"{trial.name}, round {one.round}", *sides[number])
                for statement, sides in inequalities.items()
            ]
            left, right, _ = bounds[number]
            self.followed[number] = one._replace(left=left, right=right, rows=tuple(rows))
        tightest = [one.tightest for one in summarise(row for one in self.followed for row in one.rows)]
        return [*watched, *tightest, *bound_rows(trial)]

    def _solution(self, start: Vector) -> Vector:
        """x*, near the end of the run; the end itself where something is wrong: any point will do."""
        if self.findings:
            return start
        try:
            return search(self.problem, self.lam, start, SOLUTION_ROUNDS).x
        except DivergenceError:
            return start
