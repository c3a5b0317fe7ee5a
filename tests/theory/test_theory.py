"""The theory room on its own: rows, certified local solutions, gaps, recorded runs, slopes, all sections."""

from __future__ import annotations

import time

import numpy as np
import pytest

from refimpl import theory
from refimpl.errors import InputError
from refimpl.optim.accel import GhadimiLan, State, middle_point, step
from refimpl.optim.prox import L1, Box, GroupLasso, Groups, Zero
from refimpl.theory import gap, lemmas, problems, rates, rows, run, suite, theorem

# --- rows -------------------------------------------------------------------------------------------


def test_a_row_holds_up_to_the_error_of_its_sides():
    assert rows.at_most("s", "f", 1.0, 1.0) == rows.Row("s", "f", 1.0, 1.0, 0.0, "holds")
    assert rows.at_most("s", "f", 1.0 + 1e-9, 1.0).verdict == "violated"
    assert rows.at_most("s", "f", 1.0 + 1e-9, 1.0, 1e-8).verdict == "holds"


def test_a_row_with_a_side_that_is_no_number_is_unchecked():
    infinite, nan = np.inf, np.nan
    for left, right in ((nan, 1.0), (1.0, nan), (infinite, 1.0), (-infinite, 1.0), (1.0, infinite)):
        assert rows.at_most("s", "f", left, right).verdict == "unchecked"
    assert rows.at_most("s", "f", 2.0, 1.0, infinite).verdict == "unchecked"
    assert rows.equal("s", "f", nan, 1.0, 0.1).verdict == "unchecked"
    assert rows.worst("s", "f", []).verdict == "unchecked"
    assert np.isnan(rows.largest([1.0, nan, 2.0]))
    assert np.isnan(rows.largest([]))


def test_worst_picks_the_violation_wherever_it_is():
    good, bad = rows.Sides(1.0, 2.0, 0.0), rows.Sides(1e-9, 0.9e-9, 0.0)
    broken = rows.Sides(np.nan, 1.0, 0.0)
    assert rows.worst("s", "f", [good, bad, good]).left == 1e-9
    assert rows.worst("s", "f", [good, bad]).verdict == "violated"
    assert rows.worst("s", "f", [good]).verdict == "holds"
    vacuous = rows.Sides(-np.inf, 1.0, 0.0)
    for odd in (broken, vacuous, rows.Sides(1.0, np.inf, 0.0), rows.Sides(1.0, 1.0, np.inf)):
        for evaluations in ([good, odd, bad], [odd, bad], [bad, odd]):
            assert rows.worst("s", "f", evaluations).verdict == "violated"
        assert rows.worst("s", "f", [good, odd, good]).verdict == "unchecked"


def test_summaries_count_and_show_what_is_unchecked():
    good, bad = rows.at_most("s", "f", 0.0, 1.0), rows.at_most("s", "f", 2.0, 1.0)
    odd = rows.at_most("s", "f", np.nan, 1.0)
    assert rows.summarise([good, odd, good]) == [rows.Summary("s", 2, 2, odd, 1)]
    assert rows.summarise([good, odd, bad]) == [rows.Summary("s", 2, 1, bad, 1)]


def test_all_hold_needs_something_to_hold():
    row = rows.at_most("s", "f", 0.0, 1.0)
    assert rows.all_hold([row])
    assert not rows.all_hold([])
    assert not rows.all_hold([row, rows.at_most("s", "f", 2.0, 1.0)])
    unchecked = rows.at_most("s", "f", -np.inf, 1.0)
    assert rows.all_hold([row, unchecked])
    assert not rows.all_hold([unchecked])


def test_the_three_point_inequality_is_checked_in_a_box_of_one_variable():
    """Points between two at the bound lie in the box although they round out of it: no side is infinite."""
    losses = problems.quadratics(np.array([0.5]), np.random.default_rng(0), nodes=2, spread=2.0).losses
    boxed = problems.Problem("boxed", losses, 1, Box(-0.8, 0.8))
    found = suite.check_problem(boxed)
    assert [row for row in found if row.verdict != "holds"] == []


# --- certified local solutions and gaps -------------------------------------------------------------


def test_closed_forms_to_twelve_digits():
    rng = np.random.default_rng(0)
    for low in (0.0, -1.0):
        problem = problems.quadratics(np.linspace(low, 1.0, 5), rng)
        assert rows.all_hold(lemmas.closed_form_rows(problem, 2.0, rng))


@pytest.mark.parametrize("offers", [(), ("hessian_vector",)])
def test_the_error_bar_covers_the_error(offers, monkeypatch):
    """However early the solver is stopped, the true solution is within the bound; and it is not idle."""
    rng = np.random.default_rng(1)
    problem = problems.quadratics(np.linspace(-1.0, 1.0, 6), rng, nodes=1)
    loss, centre = problem.losses[0], rng.standard_normal(6)
    exact = loss.local_point(centre, 1.5)
    errors = []
    for polishing in (0, 2, 5, 300):
        monkeypatch.setattr(gap, "POLISHING_STEPS", polishing)
        monkeypatch.setattr(gap, "_search", lambda loss, centre, lam, start: start + 0.1)
        found = gap.solve_exactly(lemmas.opaque(loss, *offers), centre, 1.5, start=centre)
        true = np.linalg.norm(found.w - exact)
        assert true <= found.error <= 10 * true + 1e-13
        errors.append(found.error)
    assert errors[0] > 1e-2
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-12


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_error_bars_of_the_envelope_cover_its_errors(low, monkeypatch):
    rng = np.random.default_rng(2)
    problem = problems.quadratics(np.linspace(low, 1.0, 6), rng)
    v, exact = rng.standard_normal(6), []
    for loss in problem.losses:
        g = np.empty(6)
        exact.append((loss.envelope(2.0)(v, g), g))
    value, gradient = np.mean([e[0] for e in exact]), np.mean([e[1] for e in exact], axis=0)
    hidden = problems.Problem("hidden", tuple(map(lemmas.opaque, problem.losses)), 6, L1(0.1))
    for polishing in (0, 3, 300):
        monkeypatch.setattr(gap, "POLISHING_STEPS", polishing)
        monkeypatch.setattr(gap, "_search", lambda loss, centre, lam, start: start + 0.1)
        point = gap.envelope(hidden, v, 2.0)
        assert abs(point.value - value) <= point.value_error
        assert np.linalg.norm(point.gradient - gradient) <= point.gradient_error
        found = gap.exact_gap(hidden, v, 2.0, 0.5)
        mapping = gap.surrogate_gap(v, gradient, hidden.penalty, 0.5)
        distance = hidden.penalty.subdifferential_distance(-gradient, v)
        assert abs(found.mapping - mapping) <= found.error
        assert abs(found.distance - distance) <= found.error


def test_gradient_mapping_without_penalty_is_the_gradient():
    v, g = np.random.default_rng(3).standard_normal((2, 5))
    np.testing.assert_allclose(gap.gradient_mapping(v, g, Zero(), 0.3), g, rtol=1e-14)


def test_gradient_mapping_by_hand():
    """One group of two: v - b g = (3, 4) has norm 5; shrunk by b rho sqrt(2)."""
    penalty = GroupLasso(Groups.from_sizes([2]), 1.0)
    v, g, b = np.array([4.0, 5.0]), np.array([2.0, 2.0]), 0.5
    expected = (v - (1 - b * np.sqrt(2) / 5) * np.array([3.0, 4.0])) / b
    np.testing.assert_allclose(gap.gradient_mapping(v, g, penalty, b), expected, rtol=1e-14)


def test_lam_must_exceed_the_curvature():
    problem = problems.attained(-1)
    with pytest.raises(InputError, match="lam > L = 1, got lam = 1"):
        gap.envelope(problem, np.ones(4), 1.0)
    with pytest.raises(InputError, match="lam > L"):
        run.record(problem, 0.5, 1.0, GhadimiLan(1.0), np.ones(4), 1)


def test_envelope_objective_keeps_the_contract():
    problem, rng = problems.cosines(np.random.default_rng(0)), np.random.default_rng(1)
    objective = gap.envelope_objective(problem, 2.0)
    for v in rng.standard_normal((3, problem.size)):
        g = np.full(problem.size, np.nan)
        fresh = gap.envelope(problem, v, 2.0)
        assert objective(v, g) == pytest.approx(fresh.value, rel=1e-14)
        np.testing.assert_allclose(g, fresh.gradient, rtol=1e-11, atol=1e-13)


# --- recorded runs ----------------------------------------------------------------------------------


def test_a_recorded_run_is_the_algorithm_written_out():
    """Local steps, server steps and gap of mathematics §3-4, once more in plain NumPy."""
    rng = np.random.default_rng(4)
    problem = problems.sparse_least_squares(rng)
    lam, beta, w0 = 2.5 * problem.smoothness, 0.1, rng.standard_normal(problem.size)
    recorded = run.record(problem, lam, beta, GhadimiLan(beta), w0, 8, steps=3)
    state, g = State.start(w0), np.empty_like(w0)
    for seen in recorded.rounds:
        md = middle_point(state, GhadimiLan(beta), np.empty_like(w0))
        answers = []
        for loss in problem.losses:
            w = md.copy()
            for _ in range(3):
                loss(w, g)
                w = w - (g + lam * (w - md)) / lam
            answers.append(w)
        gradient = lam * (md - np.mean(answers, axis=0))
        state, norm = step(state, md, gradient, problem.penalty, GhadimiLan(beta))
        np.testing.assert_allclose(seen.gradient, gradient, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(seen.x, state.x, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(seen.ag, state.ag, rtol=1e-10, atol=1e-12)
        assert seen.gap == pytest.approx(norm, rel=1e-9)


def test_theorem_terms_by_hand():
    """Two rounds of the one-dimensional quadratic t w^2/2, every term from its formula."""
    problem = problems.attained(1, size=1)
    lam, b, w0 = 3.0, 0.5, np.array([2.0])
    curvature = 0.75  # lam L/(lam + L)
    trial = theorem.Trial(run.record(problem, lam, b, GhadimiLan(b), w0, 2), np.zeros(1))
    ag1 = 2 - b * curvature * 2
    x1 = 2 - 0.5 * b * curvature * 2
    md2 = ag1 / 3 + 2 * x1 / 3
    ag2 = md2 - b * curvature * md2
    terms = theorem.bound_terms(trial)[-1]
    young = 1 - curvature * b
    gaps = 0.25 * b * young * curvature**2 * (2**2 + 3 * md2**2)
    assert terms.value == pytest.approx(3 * 0.5 * curvature * ag2**2, rel=1e-12)
    assert terms.gaps == pytest.approx(gaps, rel=1e-12)
    assert terms.start == pytest.approx(4 / b, rel=1e-12)
    assert terms.curvature == 0.0
    assert terms.inexact < 1e-12


# --- rates ------------------------------------------------------------------------------------------


def test_fit_of_a_power_law():
    k = np.arange(10, 2000)
    noise = np.exp(0.05 * np.random.default_rng(0).standard_normal(k.size))
    exact, noisy = rates.fit(np.log(k), np.log(7.0 * k**-1.5)), rates.fit(np.log(k), np.log(k**-1.5 * noise))
    assert exact.slope == pytest.approx(-1.5, rel=1e-12)
    assert noisy.low < -1.5 < noisy.high
    assert 0 < noisy.high - noisy.low < 0.05


def test_a_slow_or_short_run_fails_the_slope():
    """Gaps that fall like k^-0.4, so their squares like k^-0.8, or that stop early, are not let through."""
    problem, empty = problems.attained(1), np.zeros(4)

    def fake(gaps):
        made = [run.Round(k, empty, empty, 0.0, empty, empty, g, ()) for k, g in enumerate(gaps, 1)]
        return run.Run(problem, 3.0, 0.5, 0, empty, made)

    k = np.arange(1, 1201)
    assert rates.gap_slope(fake(k**-0.4)).high > -0.95
    assert rates.gap_slope(fake(k**-0.5)).high == pytest.approx(-1.0, abs=1e-9)
    assert rates.gap_slope(fake(0.5**k)).points < 100


def test_floor_of_quadratics_at_rest():
    """The predicted bias is where the inexact method stands still: a fixed point found by iteration."""
    problem = problems.quadratics(np.array([1.0, 0.4, 0.2]), np.random.default_rng(5), nodes=3)
    v, g = np.zeros(3), np.empty(3)
    for _ in range(3000):
        answers = []
        for loss in problem.losses:
            w = v.copy()
            for _ in range(2):
                loss(w, g)
                w = w - (g + 3.0 * (w - v)) / 3.0
            answers.append(w)
        v = v - 3.0 * (v - np.mean(answers, axis=0))
    assert rates.predicted_bias(problem, 3.0, 2) == pytest.approx(
        np.linalg.norm(gap.envelope(problem, v, 3.0).gradient), rel=1e-9
    )


# --- the sections -----------------------------------------------------------------------------------


@pytest.mark.parametrize("section", suite.SECTIONS)
def test_every_statement_of_a_section_holds(section):
    started = time.process_time()
    parts: list[list[rows.Row]] = []
    found = theory.run_section(section, seed=0, on_part=parts.append)
    assert len(parts) == theory.SECTIONS[section].parts
    assert [row for part in parts for row in part] == found
    assert [row for row in found if row.verdict != rows.HOLDS] == []
    assert len(found) > 5
    assert time.process_time() - started < 60


def test_sections_repeat_to_the_last_bit():
    first, again, other = (theory.run_section("gap", seed=seed) for seed in (3, 3, 4))
    assert first == again != other


def test_an_unknown_section_is_refused():
    with pytest.raises(InputError, match="lemmas, theorem, rates"):
        theory.run_section("lemma")
