"""What a check says: hints of several cases as one, patterns as such, digits, what was compared."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest

from refimpl._version import __version__
from refimpl.crosscheck.compare import as_theirs, compare
from refimpl.crosscheck.conformance import Outcome, as_json, as_text, statements
from refimpl.crosscheck.golden.case import Arrays
from refimpl.crosscheck.golden.file import Golden, golden_bytes, golden_of
from refimpl.crosscheck.golden.levels import build_cases
from refimpl.crosscheck.golden.ours import run
from refimpl.crosscheck.hints import examine
from refimpl.crosscheck.report import about, as_html, as_markdown

NAMES = ("ops/conv", "ops/conv-square", "ops/linear", "ops/relu", "ops/tanh", "ops/gated-soft-dense")


@pytest.fixture(scope="module")
def golden():
    """Some cases of single operations, in memory."""
    cases = [case for case in build_cases("ops") if case.name in NAMES]
    return golden_of([(case, run(case)) for case in cases], "refimpl")


@pytest.fixture(scope="module")
def right(golden):
    """What agrees, by case and output."""
    return {case.name: run(case) for case in golden.cases}


def outcome_of(golden: Golden, given: dict[str, Arrays], partial: bool = False) -> Outcome:
    theirs = as_theirs(given)
    comparison = compare(golden, theirs)
    return Outcome(golden, comparison, examine(golden, theirs, comparison).hints, partial)


def times(arrays: Arrays, factor: float) -> Arrays:
    return {name: array * array.dtype.type(factor) for name, array in arrays.items()}


def test_what_is_said_of_several_cases_is_said_once(golden, right):
    wrong = right | {name: times(right[name], 3.0) for name in ("ops/conv", "ops/linear", "ops/tanh")}
    lines = [line for line in statements(outcome_of(golden, wrong)) if "3 times" in line]
    assert lines == ["pattern: ops/conv/y is 3 times the expected array; so in 2 more cases"]


def test_a_rule_of_several_cases_counts_their_arrays_and_leaves_no_pattern_beside_it():
    cases = [case for case in build_cases("networks", models=("mlp",)) if "-active" in case.name]
    golden = golden_of([(case, run(case)) for case in cases], "refimpl")
    wrong = {}
    for case in cases:  # the sum over 3 samples
        later = case.outputs[case.outputs.index("loss") :]
        wrong[case.name] = {n: a * (3 if n in later else 1) for n, a in run(case).items() if a.dtype != bool}
        wrong[case.name] |= {n: a for n, a in run(case).items() if a.dtype == bool}
    (line,) = (line for line in statements(outcome_of(golden, wrong)) if line.startswith(("hint", "pattern")))
    assert line.startswith("hint for 4 cases, first networks/mlp-hard-active: mean against sum loss: ")
    departing = sum(len(case.outputs) - case.outputs.index("loss") for case in cases)
    assert line.endswith(f"which reproduces {departing} of {departing} departing arrays")


def test_a_rule_that_arrays_deny_says_so_and_the_pattern_stays(golden):
    """Only the mask's array is inverted: whoever read the logits in another order has other gradients too."""
    (case,) = (case for case in build_cases("networks") if case.name == "networks/residual-hard-dense")
    outputs = run(case)
    golden = golden_of([(case, outputs)], "refimpl")
    mask = "forward.conv2.gate.mask"
    lines = statements(outcome_of(golden, {case.name: outputs | {mask: ~outputs[mask]}}))
    (hint,) = (line for line in lines if line.startswith("hint"))
    assert "two-logit order" in hint
    assert "1 of 1 departing arrays, but would change 33 that agree" in hint
    assert f"pattern: {case.name}/{mask} is the expected mask inverted" in lines


def test_cases_that_were_not_examined_are_counted(golden, right, monkeypatch):
    monkeypatch.setattr("refimpl.crosscheck.conformance.EXAMINED", 2)
    wrong = {name: times(arrays, 1.5) for name, arrays in right.items()}
    assert "4 more departing cases not examined for hints" in statements(outcome_of(golden, wrong))


def test_every_case_is_told_before_it_is_examined(golden, right):
    theirs, told = as_theirs({name: times(arrays, 1.5) for name, arrays in right.items()}), []
    examine(golden, theirs, compare(golden, theirs), tell=told.append)
    assert told == [case.name for case in golden.cases]


@pytest.mark.parametrize(
    ("given", "expected", "advice"),
    [
        ("float32", "float64", "compute in float64, or check against a file of `refimpl golden make"),
        ("float16", "float32", "the file is float32: compute in float32"),
    ],
)
def test_an_implementation_of_fewer_digits_is_told_so(given, expected, advice):
    cases = [case for case in build_cases("ops", dtype=expected) if case.name == "ops/conv"]
    golden = golden_of([(case, run(case)) for case in cases], "refimpl")
    rounded = {name: array.astype(given) for name, array in run(cases[0]).items()}
    (line,) = (
        line for line in statements(outcome_of(golden, {"ops/conv": rounded})) if "given as" in line[:40]
    )
    assert line.startswith(f"4 departing arrays given as {given}, ")
    assert advice in line


def test_more_digits_than_expected_are_no_matter():
    cases = [case for case in build_cases("ops", dtype="float32") if case.name == "ops/conv"]
    golden = golden_of([(case, run(case)) for case in cases], "refimpl")
    wide = {name: array.astype(np.float64) * 2 for name, array in run(cases[0]).items()}
    assert not any("compute in" in line for line in statements(outcome_of(golden, {"ops/conv": wide})))


def test_the_verdict_says_what_was_given(golden, right):
    total = sum(len(case.outputs) for case in golden.cases)
    some = {"ops/relu": right["ops/relu"]}
    *_, verdict = statements(outcome_of(golden, some, partial=True))
    assert (
        verdict == f"2 of 2 arrays agree with refimpl: conforms in the 2 of {total} arrays given (--partial)"
    )
    most = right | {"ops/relu": {"y": right["ops/relu"]["y"]}}
    *_, verdict = statements(outcome_of(golden, most))
    agree = f"{total - 1} of {total - 1} arrays agree with refimpl"
    assert verdict == f"{agree}: DOES NOT CONFORM; 1 array missing, which --partial allows"
    *_, verdict = statements(outcome_of(golden, right))
    assert verdict == f"{total} of {total} arrays agree with refimpl: conforms"


def test_missing_arrays_are_marked_only_where_they_may_not_be_missing(golden, right):
    some, total = {"ops/relu": right["ops/relu"]}, sum(len(case.outputs) for case in golden.cases)
    assert as_html(outcome_of(golden, some, partial=True)).count('class="bad"') == 0
    assert as_html(outcome_of(golden, some)).count('class="bad"') == total - 2 + 1  # and the level's line


def test_a_report_says_what_was_compared_and_what_its_columns_mean(golden, right, tmp_path):
    expected, given = tmp_path / "expected.npz", tmp_path / "<b>given.npz"
    pairs = [(case, right[case.name]) for case in golden.cases]
    expected.write_bytes(golden_bytes(pairs, "refimpl", seed=7))
    given.write_bytes(b"abc")
    facts = about(expected, given, Golden("refimpl", golden.cases, golden.expected, 7), date(2020, 2, 3))
    outcome = outcome_of(golden, right)._replace(about=facts)
    for text in (as_markdown(outcome), as_html(outcome)):
        for word in ("expected.npz, sha256 ", "ba7816bf8f01cfea", "float64", "version 1", "2020-02-03"):
            assert word in text
        assert f"by refimpl {__version__}" in text
        assert "units in the last place" in text
        assert "0.001 times that of the case's largest array" in text.replace("&#x27;", "'")
        assert "<b>" not in text
    assert as_json(outcome)["about"]["seed of the inputs"] == "7"
    assert "sha256" not in as_text(outcome, every=False)


def test_what_this_installation_computed_and_an_unknown_seed_are_called_so(golden, tmp_path):
    path = tmp_path / "expected.npz"
    path.write_bytes(b"")
    facts = about(path, None, golden, date(2020, 2, 3))
    assert (facts["given"], facts["seed of the inputs"]) == (
        "computed by this installation",
        "the file does not say",
    )
