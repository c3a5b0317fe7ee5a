"""`theory.follow` and the constants that it watches: closed forms, and problems whose constants are wrong."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from readme_commands import document

from refimpl import theory
from refimpl.cli.theory import command
from refimpl.errors import InputError
from refimpl.optim.accel import GhadimiLan, Nesterov, ProximalGradient
from refimpl.optim.prox import L1, Box, GroupLasso, Groups, L2Ball
from refimpl.theory import Problem, constants, lemmas, problems, suite
from refimpl.theory.rows import VIOLATED


class Quartic:
    """sum w^4/4, whose curvature 3 w^2 exceeds every constant far from zero."""

    smoothness, concavity = 1.0, 0.0

    def __call__(self, w, grad_out):
        grad_out[:] = w**3
        return float((w**4).sum() / 4)


def quartic() -> Problem:
    return Problem("quartic", (Quartic(),), 3)


def factors(size: int = 22) -> Problem:
    """Two nodes that factorise (6, 5) matrices into rank 2, without constants."""

    def node(matrix):
        def loss(w, grad_out):
            u, v = w[:12].reshape(6, 2), w[12:].reshape(5, 2)
            error = u @ v.T - matrix
            grad_out[:12], grad_out[12:] = (error @ v).ravel(), (error.T @ u).ravel()
            return 0.5 * float((error**2).sum())

        loss.matrix = matrix
        return loss

    losses = tuple(node(np.random.default_rng(i).standard_normal((6, 5))) for i in range(2))
    return Problem("factors", losses, size, GroupLasso(Groups.from_sizes([2] * 11), 0.1))


# --- what a round says, against closed forms --------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_every_round_of_a_quadratic_by_hand(steps):
    """w^2/2 on one node: gaps, inexactness and both sides of the theorem by round, from their formulas."""
    lam, b, w0 = 3.0, 0.5, 2.0
    bend, left_over = (
        0.75,
        (-1 / lam) ** steps if steps else 0.0,
    )  # lam L/(lam + L); share of the way not gone
    found = theory.follow(problems.attained(1, size=1), lam, steps, 6, np.array([w0]), GhadimiLan(b))
    x = ag = w0
    gaps = inexact = 0.0
    for k, one in enumerate(found.rounds, 1):
        a, l, weight = 2 / (k + 1), k * b / 2, k * (k + 1) / 2
        md = (1 - a) * ag + a * x
        g = (1 - left_over) * bend * md
        delta = lam / (lam - 1) * abs((1 + lam) * left_over * (md - lam * md / (1 + lam)))
        gaps += weight * b * (1 - bend * b) / 4 * g**2
        inexact += weight * (a * delta * abs(x) + b * delta**2 / (1 - bend * b))
        x, ag = x - l * g, md - b * g
        assert one.round == k
        assert abs(one.true_gap - bend * abs(md)) <= one.error < 1e-12
        assert one.server_gap == pytest.approx(abs(g), rel=1e-12)
        assert one.inexactness == pytest.approx(abs(left_over * bend * md), rel=1e-9, abs=1e-14)
        assert one.inexactness_bound == pytest.approx(delta, rel=1e-9, abs=1e-13)
        assert one.objective == pytest.approx(bend * ag**2 / 2, rel=1e-12)
        assert one.left == pytest.approx(weight * bend * ag**2 / 2 + gaps, rel=1e-9)
        assert one.right == pytest.approx(w0**2 / b + inexact, rel=1e-9)
        assert (one.lowest, one.highest) == pytest.approx((1.0, 1.0), rel=1e-6)
        assert one.assured
        assert {row.verdict for row in one.rows} == {"holds"}
    assert found.holds
    assert not found.findings
    assert found.w == pytest.approx([ag], rel=1e-12)


def test_another_schedule_has_its_own_inequalities_and_no_bound():
    problem = problems.sparse_least_squares(np.random.default_rng(0))
    lam = 2.5 * problem.smoothness
    for schedule in (Nesterov(lemmas.theory_beta(problem, lam)), ProximalGradient(0.1)):
        found = theory.follow(problem, lam, rounds=5, schedule=schedule)
        assert found.holds
        assert all(np.isnan([one.left, one.right]).all() for one in found.rounds)
        verdicts = {row.statement: row.verdict for row in found.rounds[-1].rows}
        assert set(verdicts.values()) == {"holds"}
        assert "8.4 (iii) three-point inequality of x_k" in verdicts


def test_a_long_step_proves_nothing_and_is_said_to_diverge():
    found = theory.follow(problems.attained(1), 3.0, rounds=200, schedule=ProximalGradient(5.0))
    (last,) = found.findings
    assert "no curvature above L = 1 was seen; take shorter server steps" in last.statement
    assert 2 < len(found.rounds) < 200
    one_step = [row for row in found.rounds[0].rows if "(iv)" in row.statement]
    assert [row.verdict for row in one_step] == ["unchecked"]


# --- constants that do not hold ---------------------------------------------------------------------


def test_wrong_constants_are_found_where_they_break_and_finished_rounds_are_kept():
    w0, seen = np.full(3, 3.0), []
    found = theory.follow(quartic(), w0=w0, on_round=seen.append)
    first, last = found.findings
    assert first.family == "quartic, round 1"
    sentence = r"the stated constants do not hold at this point \(curvature seen ([\d.e+]+) > L = 1\)"
    assert float(re.fullmatch(sentence, first.statement)[1]) >= 27  # 3 w^2 at the start
    assert re.search(f"the run diverged: {sentence}", last.statement)
    assert [one.round for one in seen] == [one.round for one in found.rounds]
    assert found.rounds
    assert not any(one.assured for one in found.rounds)
    assert not found.holds
    assert "FOUND, quartic, round 1: the stated constants" in found.table()
    assert "*" in found.table().splitlines()[3]
    assert "it proves nothing" in found.table()


def test_error_bars_are_good_until_the_constant_is_exceeded():
    """From w = 0.1 the penalty-free run goes to zero, where 3 w^2 < L: nothing is found."""
    found = theory.follow(quartic(), w0=np.full(3, 0.1), rounds=5)
    assert found.holds
    assert all(one.assured for one in found.rounds)
    assert "proves nothing" not in found.table()


def test_leaving_the_region_is_found_in_its_round():
    far = problems.quadratics(np.ones(2), np.random.default_rng(0), nodes=1)
    far.losses[0].centre[:] = 3.0
    found = theory.follow(far, 2.5, 0, 30, np.zeros(2), region=Box(-2.0, 2.0))
    (left,) = found.findings
    assert left.statement.startswith("the run left the region")
    number = int(left.family.rpartition(" ")[2])
    assert [one.assured for one in found.rounds] == [one.round < number for one in found.rounds]
    assert 1 < number < 30
    inside = theory.follow(far, 2.5, 0, 30, np.zeros(2), region=L2Ball(9.0))
    assert not inside.findings


def test_estimates_are_near_what_is_known():
    """A quadratic has one Hessian; that of the factors is at most 1.5 r^2 + |matrix| where |w| <= r."""
    rng = np.random.default_rng(0)
    known = problems.quadratics(np.linspace(-0.5, 1.0, 4), rng)
    bare = Problem("bare", tuple(lambda w, g, f=f: f(w, g) for f in known.losses), 4)
    found, kind = constants.with_constants(bare, constants.Around(np.zeros(4)), rng)
    assert kind == "estimated"
    assert (found.smoothness, found.concavity) == pytest.approx((1.5, 0.75), rel=1e-5)
    radius, problem = 3.0, factors()
    ball = constants.Around(rng.standard_normal(22), L2Ball(radius))
    found, _ = constants.with_constants(problem, ball, rng)
    for loss, own in zip(found.losses, problem.losses, strict=True):
        bound = 1.5 * radius**2 + np.linalg.norm(own.matrix, 2)
        assert 0.2 * bound < loss.smoothness <= constants.MARGIN * bound
    assert constants.with_constants(found, ball, rng)[1] == "estimated"
    assert constants.with_constants(known, ball, rng)[1] == "stated"


def test_points_of_a_region_lie_in_it():
    rng, around = np.random.default_rng(0), constants.Around(np.full(4, 5.0), Box(-2.0, 2.0))
    drawn = around.draw(rng, 20)
    assert np.abs(drawn).max() <= 2
    assert len({tuple(w) for w in drawn}) > 5
    for v in drawn:
        move = around.step(v, rng.standard_normal(4))
        assert np.linalg.norm(move) > 0
        assert np.abs(v + move).max() <= 2 + 1e-12


def test_half_stated_constants_are_refused():
    loss = Quartic()
    half = Problem("half", (lambda w, g: loss(w, g),), 2)
    half.losses[0].smoothness = 1.0
    with pytest.raises(InputError, match="loss 0 to state `smoothness` and `concavity`, or neither"):
        theory.follow(half)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"w0": np.zeros(2)}, r"expected w0 \(3,\)"),
        ({"w0": [1.0, np.nan, 0.0]}, r"expected w0 \(3,\) of finite numbers"),
        ({"lam": 0.5}, "expected lam > L = 1, got lam = 0.5"),
        ({"rounds": 0}, "expected rounds > 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        theory.follow(quartic(), **given)
    boxed = Problem("boxed", (Quartic(),), 3, Box(-1.0, 1.0))
    with pytest.raises(InputError, match="domain of the penalty"):
        theory.follow(boxed, w0=np.full(3, 2.0))


# --- all checks on a problem of one's own -----------------------------------------------------------


def test_check_problem_keeps_what_is_finished_when_something_diverges():
    parts: list[list[theory.Row]] = []
    found = theory.check_problem(quartic(), start=np.full(3, 3.0), on_part=parts.append)
    assert found == [row for part in parts for row in part]
    assert re.search(r"stated constants do not hold .* > L = 1\)", parts[0][0].statement)
    assert len(parts) == 7
    assert any("the run diverged" in row.statement and row.verdict == VIOLATED for row in parts[-1])
    assert any(row.verdict == "holds" for row in parts[-1])


def test_check_problem_in_a_region_in_which_the_constants_hold():
    """3 w^2 <= 1 in a box of 0.57; the lasso keeps the runs there."""
    problem = Problem("small", (Quartic(),), 3, L1(0.01))
    found = theory.check_problem(problem, start=np.full(3, 0.3), region=Box(-0.57, 0.57), rounds=5)
    assert [row for row in found if row.verdict != "holds"] == []
    assert any(row.statement == constants.INSIDE for row in found)


def test_a_solution_that_is_not_reached_is_unchecked_and_not_a_violation():
    problem = problems.sparse_least_squares(np.random.default_rng(0))
    lam, rng = 2.5 * problem.smoothness, np.random.default_rng(1)
    verdicts = []
    for most in (3000, 2):
        found = suite.check_stationarity(problem, lam, rng, None, most)
        verdicts.append([row.verdict for row in found])
    assert verdicts == [["holds"] * 4, ["holds", "holds", "unchecked", "unchecked"]]


# --- the command ------------------------------------------------------------------------------------

FILE = """
import numpy as np
from refimpl.optim.prox import Box
from refimpl.theory import Problem

def loss(w, grad_out):
    grad_out[:] = w**3
    return float((w**4).sum() / 4)

problem, near, far, box = Problem("mine", (loss,), 2), np.full(2, 0.1), np.full(2, 4.0), Box(-1.0, 1.0)
"""


def run(tmp_path, *words):
    (tmp_path / "mine.py").write_text(FILE)
    return CliRunner().invoke(command, ["follow", f"{tmp_path}/mine.py:problem", "--rounds", "4", *words])


def test_the_command_follows_the_problem_of_a_file(tmp_path):
    result = run(tmp_path, "--w0", "near", "--region", "box", "-q")
    assert result.exit_code == 0, result.output
    assert "(estimated)" in result.stdout
    assert "8.4 Theorem 1, telescoped" in result.stdout
    told = run(tmp_path, "--w0", "near", "--region", "box", "--json")
    assert "true gap" in told.stderr
    content = json.loads(told.stdout)
    assert content["holds"]
    assert [one["round"] for one in content["rounds"]] == [1, 2, 3, 4]
    assert len(content["rounds"][0]["rows"]) == 9


def test_the_command_exits_with_one_for_a_finding_and_two_for_a_wrong_name(tmp_path):
    result = run(tmp_path, "--w0", "far", "--region", "box", "-q")
    assert result.exit_code == 1
    assert "FOUND, mine, round 1: the run left the region" in result.stdout
    wrong = run(tmp_path, "--w0", "fat")
    assert isinstance(wrong.exception, InputError)
    assert "did you mean far?" in str(wrong.exception)


def test_the_figure_shows_the_rounds(tmp_path):
    pytest.importorskip("matplotlib")
    result = run(tmp_path, "--w0", "near", "--figure", str(tmp_path / "mine.png"), "-q")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "mine.png").stat().st_size > 10_000


def test_the_worked_example_is_short():
    example = re.findall(r"```python\n(.*?)\n```", document("refimpl/theory/README.md"), flags=re.S)[0]
    assert "theory.follow(" in example
    assert len([line for line in example.splitlines() if line.strip()]) <= 25


def test_the_worked_example_runs_from_the_command_line(tmp_path, monkeypatch):
    """The command is that of the README, without its figure; the file is the code up to `problem`."""
    page = document("refimpl/theory/README.md")
    code = re.findall(r"```python\n(.*?)\n```", page, flags=re.S)[0].partition("found =")[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(code)
    (words,) = re.findall(r"^\$ refimpl theory (follow .*)$", page, flags=re.M)
    result = CliRunner().invoke(command, [*words.partition(" --figure")[0].split(), "-q"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("factors: 4 nodes, 22 numbers, 2 local steps")
