"""The checks must be able to fail: each injected mistake has to be noticed by at least one row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from refimpl.federated import local
from refimpl.federated.methods import metagater
from refimpl.optim import accel
from refimpl.optim.accel import GhadimiLan, Steps
from refimpl.optim.prox import Box, GroupLasso, Groups
from refimpl.theory import gap, lemmas, problems, rates, suite, theorem
from refimpl.theory.problems import Problem
from refimpl.theory.rows import VIOLATED, all_hold
from refimpl.theory.run import record

LAM = 2.5  # times L


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def violated(rows) -> set[str]:
    return {row.statement for row in rows if row.verdict == VIOLATED}


def theorem_rows(problem: Problem, schedule=None, steps: int = 0, penalty=None, sabotage=None):
    """Rows of a run of 20 rounds whose pieces may be mutated; x* and the statements are the right ones."""
    lam = LAM * problem.smoothness
    beta, w0 = lemmas.theory_beta(problem, lam), rng().standard_normal(problem.size)
    problem.penalty.prox(w0, 0.0, w0)
    star = theorem.search(problem, lam, w0).x
    if sabotage:
        sabotage()
    ran = Problem(problem.name, problem.losses, problem.size, penalty or problem.penalty)
    recorded = record(ran, lam, beta, schedule(beta) if schedule else GhadimiLan(beta), w0, 20, steps)
    object.__setattr__(recorded, "problem", problem)
    trial = theorem.Trial(recorded, star)
    return theorem.iteration_rows(trial) + theorem.bound_rows(trial)


def sparse() -> Problem:
    return problems.sparse_least_squares(rng())


def test_nothing_is_violated_without_a_mistake():
    for problem in (
        sparse(),
        problems.cosines(rng()),
        problems.attained(1),
        problems.attained(-1, penalty=Box(-1.0, 2.0)),
    ):
        for steps in (0, 2):
            assert all_hold(theorem_rows(problem, steps=steps))


# --- constants --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
def test_smoothness_constant_too_small_by_a_fifth(sign):
    problem = problems.attained(sign)
    assert all_hold(lemmas.smoothness_rows(problem, LAM, rng()))
    problem.losses[0].smoothness *= 0.8
    problem.losses[0].concavity *= 0.8
    found = violated(lemmas.smoothness_rows(problem, LAM, rng()))
    assert any("Lemma 1: Lipschitz" in statement for statement in found)
    assert any("attained" in statement for statement in found)


@pytest.mark.parametrize("sign", [1, -1])
def test_smoothness_constant_too_small_in_the_theorem(sign, monkeypatch):
    """The tight inequalities (i) and (ii) notice it along a run."""
    true = lemmas.curvature_bounds
    wrong = (
        (lambda *a: (true(*a)[0], 0.8 * true(*a)[1]))
        if sign > 0
        else (lambda *a: (0.8 * true(*a)[0], true(*a)[1]))
    )
    monkeypatch.setattr(theorem, "curvature_bounds", wrong)
    found = violated(theorem_rows(problems.attained(sign, penalty=Box(-1.0, 2.0))))
    assert ("8.4 (i) descent at xag_k" if sign > 0 else "8.4 (ii) lower curvature") in found


def test_inexactness_factor_too_small_by_a_fifth(monkeypatch):
    problem, true = problems.attained(-1), lemmas.inexactness_factor
    assert all_hold(lemmas.inexactness_rows(problem, LAM, rng()))
    monkeypatch.setattr(lemmas, "inexactness_factor", lambda *a: 0.8 * true(*a))
    assert len(violated(lemmas.inexactness_rows(problem, LAM, rng()))) == 2
    monkeypatch.setattr(theorem, "inexactness_factor", lambda *a: 0.8 * true(*a))
    concave = problems.attained(-1, penalty=Box(-1.0, 2.0))
    assert "8.4 error of g_k <= delta_k" in violated(theorem_rows(concave, steps=1))


def test_contraction_faster_than_possible(monkeypatch):
    problem = problems.attained(-1)
    assert all_hold(lemmas.contraction_rows(problem, LAM, rng()))
    problem.losses[0].smoothness *= 0.8
    assert violated(lemmas.contraction_rows(problem, LAM, rng()))


# --- prox -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class WrongProx:
    """A penalty whose prox is that of another step."""

    right: GroupLasso
    factor: float

    def value(self, u):
        return self.right.value(u)

    def prox(self, v, step, out):
        return self.right.prox(v, self.factor * step, out)

    def subdifferential_distance(self, s, u):
        return self.right.subdifferential_distance(s, u)


@pytest.mark.parametrize("factor", [0.95, 1.05, 2.0])
def test_prox_with_a_wrong_step(factor):
    problem = sparse()
    assert violated(theorem_rows(problem, penalty=WrongProx(problem.penalty, factor)))


@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_prox_with_a_wrong_weight(factor):
    problem = sparse()
    wrong = GroupLasso(problem.penalty.groups, factor * problem.penalty.rho)
    assert violated(theorem_rows(problem, penalty=wrong))


def test_prox_with_weights_that_forget_the_group_size():
    problem = Problem("sizes", sparse().losses, 12, GroupLasso(Groups.from_sizes([2, 3, 7]), 0.2))
    wrong = GroupLasso(problem.penalty.groups, 0.2, weights=np.ones(3))
    assert violated(theorem_rows(problem, penalty=wrong))


def test_solution_of_a_wrong_prox_is_not_stationary():
    """The distance form does not use the prox, so it notices where a wrong one comes to rest."""
    problem = sparse()
    lam, v = LAM * problem.smoothness, rng().standard_normal(problem.size)
    wrong = Problem("wrong", problem.losses, problem.size, WrongProx(problem.penalty, 1.05))
    rest = theorem.search(wrong, lam, v).x
    found = violated(lemmas.stationarity_rows(wrong, lam, lemmas.theory_beta(problem, lam), v, rest))
    assert "7 Lemma 2: distance form at the solution" in found


# --- gradients --------------------------------------------------------------------------------------


class Flipped:
    """A loss whose gradient has the wrong sign, everywhere or in one entry."""

    def __init__(self, loss, entry=slice(None)):
        self.loss, self.entry = loss, entry
        self.smoothness, self.concavity = loss.smoothness, loss.concavity

    def __call__(self, w, grad_out):
        value = self.loss(w, grad_out)
        grad_out[self.entry] *= -1
        return value


@pytest.mark.parametrize("entry", [slice(None), 0])
@pytest.mark.parametrize("family", [sparse, lambda: problems.cosines(rng()), suite.digits_regression])
def test_gradient_of_one_node_with_the_wrong_sign(family, entry):
    problem = family(rng()) if family is suite.digits_regression else family()
    losses = (Flipped(problem.losses[0], entry), *problem.losses[1:])
    wrong = Problem(problem.name, losses, problem.size, problem.penalty)
    centre = rng().standard_normal((1, problem.size))
    assert all_hold(lemmas.gradient_rows(problem, LAM * problem.smoothness, rng(), centre))
    assert violated(lemmas.gradient_rows(wrong, LAM * problem.smoothness, rng(), centre))


def test_server_gradient_with_the_wrong_sign(monkeypatch):
    right = accel.step

    def sabotage():
        monkeypatch.setattr(metagater.accel, "step", lambda s, md, g, *rest: right(s, md, -g, *rest))

    assert violated(theorem_rows(sparse(), sabotage=sabotage))


def test_local_step_without_the_proximal_term(monkeypatch):
    right = local.vector.local_step
    monkeypatch.setattr(
        local.vector, "local_step", lambda w, g, centre, eta, lam: right(w, g, centre, eta, 0.0 * lam)
    )
    assert violated(lemmas.contraction_rows(problems.attained(1), LAM, rng()))


# --- the recursion ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Late:
    """a_k one iteration late."""

    beta: float

    def steps(self, k: int) -> Steps:
        return Steps(2.0 / (k + 2), self.beta, 0.5 * k * self.beta)


@dataclass(frozen=True)
class LongStep:
    """l_k one iteration early, so that a_k l_k <= b no longer holds with equality where it should."""

    beta: float

    def steps(self, k: int) -> Steps:
        return Steps(2.0 / (k + 1), self.beta, 0.5 * (k + 1) * self.beta)


@pytest.mark.parametrize("schedule", [Late, LongStep, accel.ProximalGradient])
@pytest.mark.parametrize("family", [sparse, lambda: problems.cosines(rng())])
def test_another_recursion_than_stated(schedule, family):
    assert violated(theorem_rows(family(), schedule=schedule))


def test_middle_point_taken_the_wrong_way_round(monkeypatch):
    def swapped(state, schedule, out):
        a = schedule.steps(state.k + 1).a
        out[:] = a * state.ag + (1 - a) * state.x
        return out

    rows = theorem_rows(
        sparse(), sabotage=lambda: monkeypatch.setattr(metagater.accel, "middle_point", swapped)
    )
    assert "8.4 md_k is the stated combination" in violated(rows)


# --- the gap ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["x", "ag"])
@pytest.mark.parametrize("steps", [0, 8])
def test_exact_gap_at_the_wrong_point(point, steps, monkeypatch):
    """Evaluated at x_k or xag_k instead of md_k it no longer agrees with what the server saw."""
    problem = sparse()
    lam = LAM * problem.smoothness
    beta, w0 = lemmas.theory_beta(problem, lam), rng().standard_normal(problem.size)
    recorded = record(problem, lam, beta, GhadimiLan(beta), w0, 20, steps)
    elsewhere = {r.md.tobytes(): getattr(r, point) for r in recorded.rounds}
    monkeypatch.setattr(
        theorem, "exact_gap", lambda p, v, lam, beta: gap.exact_gap(p, elsewhere[v.tobytes()], lam, beta)
    )
    trial = theorem.Trial(recorded, theorem.search(problem, lam, w0).x)
    found = violated(theorem.iteration_rows(trial))
    assert found == {"8.4 exact and surrogate gap differ by <= delta_k"}


def test_server_reports_the_gap_of_another_point(monkeypatch):
    right = accel.step

    def step(state, md, g, penalty, schedule):
        new, _ = right(state, md, g, penalty, schedule)
        return new, float(np.linalg.norm(state.x - new.x)) / schedule.steps(state.k + 1).b

    rows = theorem_rows(sparse(), sabotage=lambda: monkeypatch.setattr(metagater.accel, "step", step))
    assert "8.4 exact and surrogate gap differ by <= delta_k" in violated(rows)


def test_gap_of_the_formula_at_the_wrong_point(monkeypatch):
    problem = problems.quadratics(np.linspace(0.1, 1.0, 5), rng())
    assert all_hold(lemmas.closed_form_rows(problem, LAM, rng()))
    right = gap.exact_gap
    monkeypatch.setattr(lemmas, "exact_gap", lambda p, v, lam, beta: right(p, 1.001 * v, lam, beta))
    found = violated(lemmas.closed_form_rows(problem, LAM, rng()))
    assert any(statement.startswith("7 gap by") for statement in found)


# --- rates ------------------------------------------------------------------------------------------


def test_no_acceleration_misses_the_convex_rate(monkeypatch):
    flat = problems.quadratics(np.geomspace(1e-8, 1.0, 40), rng(), nodes=2, spread=0.1)
    assert all_hold(rates.slope_rows(flat, 2.0, np.zeros(40), 1000, -2.5))
    monkeypatch.setattr(rates, "GhadimiLan", accel.ProximalGradient)
    assert violated(rates.slope_rows(flat, 2.0, np.zeros(40), 1000, -2.5))


def test_local_steps_of_another_size_miss_the_floor(monkeypatch):
    problem = problems.quadratics(np.array([1.0, 0.5, 0.3]), rng(), nodes=3)
    assert all_hold(rates.floor_rows(problem, 3.0, np.zeros(3), 300))
    right = local.LocalSettings
    monkeypatch.setattr(
        "refimpl.theory.run.LocalSettings", lambda lam, eta, steps: right(lam, 0.8 * eta, steps)
    )
    assert len(violated(rates.floor_rows(problem, 3.0, np.zeros(3), 300))) == 2
