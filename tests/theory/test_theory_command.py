"""`refimpl theory` as a user meets it, without the registration in the command table."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner

from refimpl import theory
from refimpl.cli.theory import SECTIONS, command
from refimpl.theory import lemmas, problems
from refimpl.theory.rows import at_most

GOOD = at_most("first", "family a", 0.5, 1.0, terms=(("half", 0.5),))
CLOSE = at_most("first", "family b", 0.99, 1.0)
ODD = at_most("first", "family e", -np.inf, 1.0)
BAD = at_most("second", "family c", 2.0, 1.0)


@pytest.fixture
def rows(monkeypatch):
    """What the sections return, to be filled by a test; every call is recorded."""
    held: dict[str, list] = {name: [GOOD, CLOSE] for name in SECTIONS}
    asked = []

    def section(name, seed, on_part):
        asked.append((name, seed))
        return held[name]

    monkeypatch.setattr(theory, "run_section", section)
    return held, asked


def test_sections_are_those_of_the_library():
    assert tuple(theory.SECTIONS) == tuple(SECTIONS)
    assert set(SECTIONS) | {"all", "follow"} == set(command.commands)


def test_all_is_the_default_and_the_tightest_row_is_shown(rows):
    result = CliRunner().invoke(command, ["-q", "--seed", "3"])
    assert result.exit_code == 0
    assert rows[1] == [(name, 3) for name in SECTIONS]
    assert "family b" in result.stdout
    assert "family a" not in result.stdout
    assert "2 of 2 hold" in result.stdout
    assert "10 rows, all hold" in result.stdout


def test_verbose_shows_every_row_and_its_terms(rows):
    result = CliRunner().invoke(command, ["gap", "-v", "-q"])
    assert "family a" in result.stdout
    assert "family b" in result.stdout
    assert "first; family a\n  half  0.5" in result.stdout
    assert rows[1] == [("gap", 0)]


def test_a_violation_is_shown_and_exits_with_one(rows):
    rows[0]["rates"] = [CLOSE, BAD, BAD._replace(family="family d")]
    result = CliRunner().invoke(command, ["rates", "-q"])
    assert result.exit_code == 1
    assert "family c" in result.stdout
    assert "family d" in result.stdout
    assert "3 rows, 2 VIOLATED" in result.stdout


def test_unchecked_rows_are_counted_and_shown(rows):
    rows[0]["rates"] = [GOOD, CLOSE, ODD, ODD._replace(family="family f")]
    result = CliRunner().invoke(command, ["rates", "-q"])
    assert result.exit_code == 0
    assert "2 of 2 hold, 2 unchecked" in result.stdout
    assert "family e" in result.stdout
    assert "family f" in result.stdout
    assert "4 rows, 2 UNCHECKED" in result.stdout
    found = json.loads(CliRunner().invoke(command, ["rates", "--json", "-q"]).stdout)
    assert (found["passed"], found["unchecked"]) == (True, 2)
    rows[0]["rates"].append(BAD)
    result = CliRunner().invoke(command, ["rates", "-q"])
    assert result.exit_code == 1
    assert "5 rows, 1 VIOLATED, 2 UNCHECKED" in result.stdout


def test_rows_that_are_all_unchecked_are_no_pass(rows):
    rows[0]["rates"] = [ODD]
    assert CliRunner().invoke(command, ["rates", "-q"]).exit_code == 1


def test_json_holds_every_row(rows):
    rows[0]["lemmas"] = [GOOD, BAD]
    result = CliRunner().invoke(command, ["lemmas", "--json", "-q"])
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["passed"] is False
    assert [row["verdict"] for row in found["sections"]["lemmas"]] == ["holds", "violated"]
    assert found["sections"]["lemmas"][0]["terms"] == [["half", 0.5]]


def test_nothing_checked_is_not_a_pass(rows):
    rows[0]["gap"] = []
    assert CliRunner().invoke(command, ["gap", "-q"]).exit_code == 1


def test_all_by_its_name(rows):
    result = CliRunner().invoke(command, ["all", "-q"])
    assert result.exit_code == 0
    assert rows[1] == [(name, 0) for name in SECTIONS]


def test_a_wrong_constant_reaches_the_exit_code(monkeypatch):
    """Lemma 3 with a factor a fifth too small, in the instance where it is attained."""
    problem, true = problems.attained(-1), lemmas.inexactness_factor

    def section(name, seed, on_part):
        return lemmas.inexactness_rows(problem, 2.5, np.random.default_rng(seed))

    monkeypatch.setattr(theory, "run_section", section)
    assert CliRunner().invoke(command, ["lemmas", "-q"]).exit_code == 0
    monkeypatch.setattr(lemmas, "inexactness_factor", lambda *a: 0.8 * true(*a))
    result = CliRunner().invoke(command, ["lemmas", "-q"])
    assert result.exit_code == 1
    assert "VIOLATED" in result.stdout


def test_one_real_section_with_progress(refimpl):
    code, out, err = refimpl("theory", "gap")
    assert code == 0
    assert "Lemma 2" in out
    first, *others = [line for line in err.splitlines() if line.startswith("theory  gap: ")]
    assert first == "theory  gap: quadratic"
    assert len(others) == theory.SECTIONS["gap"].parts - 1
    assert all(re.search(r"(/s|s each)  \d+:\d\d left$", line) for line in others)
