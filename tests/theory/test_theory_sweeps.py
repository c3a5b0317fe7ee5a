"""Sweeps over lam/L, local steps and heterogeneity, the numbers behind the figures, one's own problems."""

from __future__ import annotations

import numpy as np
import pytest

from refimpl.optim.prox import L1
from refimpl.theory import all_hold, check_problem, lemmas, problems, rates, sweeps, theorem
from refimpl.theory.rows import VIOLATED


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def violated(rows) -> set[str]:
    return {row.statement for row in rows if row.verdict == VIOLATED}


# --- lam/L ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
def test_sampled_curvature_where_it_is_known(sign):
    """F is +-lam L/(lam +- L) ||v||^2/2, here with L = 2."""
    for sample in sweeps.curvature_sweep(problems.attained(sign, smoothness=2.0), rng()):
        expected = sign * sample.ratio / (sample.ratio + sign)
        assert sample.low == pytest.approx(expected, rel=1e-9)
        assert sample.high == pytest.approx(expected, rel=1e-9)
        assert sample.steep == pytest.approx(abs(expected), rel=1e-9)


def test_the_same_samples_at_every_ratio(monkeypatch):
    """The upper curvature of an envelope rises with lam; other samples at each would blur that."""
    monkeypatch.setattr(sweeps, "RATIOS", (1.5, 2.0, 3.0, 5.0))
    samples = sweeps.curvature_sweep(problems.cosines(rng()), rng())
    assert np.all(np.diff([sample.high for sample in samples]) > 0)


def test_arrival_is_the_first_round_at_the_target(monkeypatch):
    monkeypatch.setattr(sweeps, "RATIOS", (2.0,))
    problem = problems.attained(1)
    w0 = np.ones(4)
    (arrival,) = sweeps.arrivals(problem, w0)
    beta = lemmas.theory_beta(problem, 2.0)
    run = sweeps.record(problem, 2.0, beta, sweeps.GhadimiLan(beta), w0, 200)
    squares = [r.gap**2 for r in run.rounds]
    assert squares[arrival.rounds - 1] <= sweeps.TARGET < min(squares[: arrival.rounds - 1])
    assert arrival.allowed == pytest.approx((192 * (2 / 3) ** 2 * 4 / sweeps.TARGET) ** (1 / 3))


def test_never_arriving_violates(monkeypatch):
    monkeypatch.setattr(sweeps, "RATIOS", (2.0,))
    monkeypatch.setattr(sweeps, "ROUNDS", 20)
    monkeypatch.setattr(sweeps, "GhadimiLan", lambda beta: theorem.GhadimiLan(1e-9 * beta))
    monkeypatch.setattr(sweeps, "TARGET", 1e-4)
    problem = problems.attained(1)
    (arrival,) = sweeps.arrivals(problem, np.ones(4), target=1e-2)
    assert arrival.rounds > arrival.allowed
    monkeypatch.setattr(sweeps, "arrivals", lambda problem, w0: [arrival])
    assert len(violated(sweeps.arrival_rows(problem, np.ones(4)))) == 1


# --- local steps and heterogeneity ------------------------------------------------------------------


def test_nodes_alike_in_curvature_leave_no_floor():
    """However far apart their centres: the bias is a product of two differences."""
    centres = rng().standard_normal((3, 4))
    losses = tuple(problems.Quadratic(np.full(4, 0.7), np.eye(4), c) for c in centres)
    problem = problems.Problem("alike", losses, 4)
    assert rates.predicted_bias(problem, 2.0, 1) < 1e-15
    assert sweeps.floors(problem, 2.0, np.zeros(4), 200, [1])[0] < 1e-24
    uneven = sweeps.uneven(rng())
    assert rates.predicted_bias(uneven, 2.0, 1) > 1e-3


def test_a_wrong_prediction_of_the_floor_is_noticed(monkeypatch):
    monkeypatch.setattr(sweeps, "SPREADS", (0.0, 0.01, 0.02, 0.04))
    monkeypatch.setattr(sweeps, "different_rows", lambda seed: [])
    assert all_hold(sweeps.spread_rows(0))
    right = rates.predicted_bias
    monkeypatch.setattr(sweeps, "predicted_bias", lambda *a: 1.001 * right(*a))
    assert any("closed form" in statement for statement in violated(sweeps.spread_rows(0)))


def test_another_power_of_the_spread_is_noticed(monkeypatch):
    monkeypatch.setattr(sweeps, "different_rows", lambda seed: [])
    right = sweeps.spread_sweep

    def cubic(seed):
        return [s._replace(floor=s.floor / max(s.spread, 1e-9)) for s in right(seed)]

    monkeypatch.setattr(sweeps, "SPREADS", (0.01, 0.02, 0.04))
    monkeypatch.setattr(sweeps, "spread_sweep", cubic)
    assert any("exponent" in statement for statement in violated(sweeps.spread_rows(0)))


# --- curves -----------------------------------------------------------------------------------------


def test_bound_of_the_curve_is_that_of_the_theorem():
    """The plotted bound in its last round against the term-by-term evaluation of the same run."""
    problem = problems.cosines(rng(), nodes=2, size=4)
    lam, w0 = 2.5, 0.5 * rng().standard_normal(4)
    beta = lemmas.theory_beta(problem, lam)
    curve = rates.gap_curve(problem, lam, w0, 40)
    run = rates.record(problem, lam, beta, sweeps.GhadimiLan(beta), w0, 40)
    trial = theorem.Trial(run, theorem.search(problem, lam, run.rounds[-1].ag).x)
    row = next(row for row in theorem.bound_rows(trial) if "min_k" in row.statement)
    assert curve.bound[-1] == pytest.approx(row.right, rel=1e-6)
    assert curve.best[-1] == pytest.approx(row.left, rel=1e-12)
    assert np.all(curve.best <= curve.bound)
    assert np.all(np.diff(curve.best) <= 0)


def test_curves_are_about_the_families_they_name(monkeypatch):
    monkeypatch.setattr(sweeps, "RATIOS", (1.25, 5.0))
    named = sweeps.curvature_curves(0)
    assert list(named) == ["attained+", "attained-", "cosines"]
    for sample in named["cosines"]:
        below, above = lemmas.curvature_bounds(1.0, 0.6, sample.ratio)
        assert -below <= sample.low < 0 < sample.high <= above


# --- a problem of one's own -------------------------------------------------------------------------


class Wave:
    """cos(w) summed, and a bowl: not convex, L = 1.2, C = 0.8; `claims` is what it says of itself."""

    def __init__(self, shift, claims=(1.2, 0.8)):
        self.shift = shift
        self.smoothness, self.concavity = claims

    def __call__(self, w, grad_out):
        grad_out[:] = 0.2 * w - np.sin(w + self.shift)
        return float(np.sum(np.cos(w + self.shift) + 0.1 * w**2))


class Shrink:
    """0.1 ||u||_1 written once more, with a prox of `factor` times the right step."""

    def __init__(self, factor=1.0):
        self.factor = factor

    def value(self, u):
        return 0.1 * float(np.sum(np.abs(u)))

    def prox(self, v, step, out):
        out[:] = np.sign(v) * np.maximum(np.abs(v) - 0.1 * self.factor * step, 0.0)
        return self.value(out)

    def subdifferential_distance(self, s, u):
        return float(np.linalg.norm(np.where(u != 0, s - 0.1 * np.sign(u), np.maximum(np.abs(s) - 0.1, 0))))


def own(penalty, **losses):
    return problems.Problem("own", (Wave(0.3, **losses), Wave(1.1, **losses)), 3, penalty)


def test_checks_of_ones_own_problem():
    mine = check_problem(own(Shrink()))
    assert all_hold(mine)
    assert {row.statement.split()[0] for row in mine} == {"7", "8.1", "8.2", "8.3", "8.4", "8.6"}
    shipped = check_problem(own(L1(0.1)))
    assert [row.statement for row in mine] == [row.statement for row in shipped]
    np.testing.assert_allclose(
        [row.left for row in mine], [row.left for row in shipped], rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize(
    ("problem", "noticed"),
    [
        (own(L1(0.1), claims=(1.0, 0.8)), "8.2 Lemma 1: curvature of F"),
        (own(Shrink(1.05)), "8.4 (iii)"),
    ],
)
def test_checks_notice_what_is_not_as_claimed(problem, noticed):
    assert any(statement.startswith(noticed) for statement in violated(check_problem(problem)))
