"""Departures are found at the array where they begin, and told in every form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import plain_metagater
import pytest
from departures import CASES, departure, golden_at

from refimpl.crosscheck.compare import as_theirs, compare, read_theirs, ulp_distance
from refimpl.crosscheck.conformance import Outcome, as_json, as_text
from refimpl.crosscheck.golden.file import Expected, Golden, golden_bytes
from refimpl.crosscheck.golden.levels import build_cases
from refimpl.crosscheck.golden.ours import run
from refimpl.crosscheck.hints import examine
from refimpl.crosscheck.report import as_html, as_markdown
from refimpl.errors import DataError


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """A file of all cases used here."""
    return golden_at(tmp_path_factory.mktemp("golden") / "golden.npz")


# --- what is said -----------------------------------------------------------------------------------


def test_patterns_say_how_an_array_relates_to_the_expected_one(golden):
    right = run(CASES["ops/conv"])
    for changed, words in (
        ({"grad.bias": -right["grad.bias"]}, "-1 times"),
        ({"y": right["y"] * 3}, "3 times"),
        ({"y": np.ascontiguousarray(right["y"].transpose(0, 2, 3, 1))}, "channels last"),
        ({"y": right["y"].reshape(-1)}, "another shape"),
        ({"grad.bias": right["grad.bias"][::-1]}, "another order"),
    ):
        output, hints = departure(golden, "ops/conv", right | changed)
        assert output in changed
        assert any(words in hint.text for hint in hints)
    right = run(CASES["ops/linear"])
    output, hints = departure(golden, "ops/linear", right | {"grad.weight": right["grad.weight"].T})
    assert (output, hints[0].text) == ("grad.weight", "is the expected array transposed")


def test_a_lone_number_is_a_multiple_only_by_a_whole_factor(golden):
    """Any number is some multiple of any other."""
    right = run(CASES["ops/cross_entropy"])
    for factor, said in ((3.0, True), (1 / 3, True), (-1.0, True), (1.2345, False)):
        _, hints = departure(golden, "ops/cross_entropy", right | {"loss": right["loss"] * factor})
        assert any("times the expected array" in hint.text for hint in hints) == said


@pytest.mark.parametrize("wide", [np.float64, np.longdouble])
def test_numbers_beyond_float64_depart_without_a_warning(golden, wide):
    right = run(CASES["ops/relu"])
    huge = np.full((3, 4, 5), np.finfo(wide).max)
    outputs = {"y": right["y"], "grad.x": huge}
    assert departure(golden, "ops/relu", outputs) == ("grad.x", [])
    if wide is np.float64:
        expected = {"ops/relu": golden.expected["ops/relu"] | {"grad.x": Expected(-huge, 1e-10, 1.0)}}
        odd = Golden("someone", (CASES["ops/relu"],), expected)
        (row,) = compare(odd, as_theirs({"ops/relu": outputs})).departures
        assert row.max_abs == np.inf


def test_a_departure_in_a_vector_names_the_parameter(golden):
    outputs = run(CASES["local/hard"])
    outputs["step2.w"][3] += 1.0
    row = compare(golden, as_theirs({"local/hard": outputs})).departures[0]
    assert (row.name, row.where) == ("local/hard/step2.w", "fc1.weight[0, 3]")


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (np.full((3, 4, 5), np.nan), "not finite"),
        (np.zeros((3, 4)), "shape"),
        (np.zeros((3, 4, 5), dtype="<U3"), "dtype"),
        (np.zeros((3, 4, 5)), "departs"),
        (np.zeros((3, 4, 5), dtype=np.int8), "departs"),
        (np.full((3, 4, 5), 1e300), "departs"),
    ],
)
def test_whatever_is_in_place_of_an_array_is_reported(golden, value, status):
    row = compare(golden, as_theirs({"ops/relu": run(CASES["ops/relu"]) | {"grad.x": value}})).departures[0]
    assert (row.output, row.status) == ("grad.x", status)


def test_missing_and_extra_arrays_are_named_and_missing_ones_do_not_conform(golden):
    outputs = run(CASES["ops/relu"])
    theirs = as_theirs({"ops/relu": {"y": outputs["y"], "z": outputs["y"]}})
    comparison = compare(golden, theirs)
    assert comparison.extra == ("ops/relu/z",)
    misspelt = as_theirs({"ops/relu": {"y": outputs["y"], "grad_x": outputs["grad.x"]}})
    text = as_text(Outcome(golden, compare(golden, misspelt), [], partial=True), every=False)
    assert "left out: ops/relu/grad_x (did you mean ops/relu/grad.x?)" in text
    assert "ops/relu/grad.x" in {row.name for row in comparison.missing}
    assert not Outcome(golden, comparison, [], partial=False).conforms
    assert Outcome(golden, comparison, [], partial=True).conforms
    assert not Outcome(
        golden, compare(golden, as_theirs({})), [], partial=True
    ).conforms  # nothing is no proof


def test_one_outcome_in_all_its_forms(golden):
    case = CASES["local/hard"]
    theirs = as_theirs({case.name: plain_metagater.local(case, "twice lambda")})
    comparison = compare(golden, theirs)
    outcome = Outcome(golden, comparison, examine(golden, theirs, comparison).hints, partial=True)
    data = as_json(outcome)
    assert data["first_departure"] == "local/hard/step2.w"
    assert not data["conforms"]
    for text in (as_text(outcome, every=False), as_markdown(outcome), as_html(outcome)):
        assert "local/hard/step2.w" in text
        assert "twice lambda in the proximal term" in text
        assert "DOES NOT CONFORM" in text
    assert "ops/conv/y" in as_text(outcome, every=True)
    assert as_html(outcome).count('class="bad"') > len(comparison.departures)


def test_hostile_names_become_neither_markup_nor_commands_of_a_terminal(golden, tmp_path):
    hostile = {"<script>": 1, "\x1b[2J": 2, "[a](b)": 3, "`x|y`": 4, "a\nb": 5}
    comparison = compare(golden, as_theirs({"ops/relu": {key: np.zeros(2) for key in hostile}}))
    outcome = Outcome(golden, comparison, [], partial=True)
    for text in (as_html(outcome), as_markdown(outcome), as_text(outcome, every=True)):
        assert r"ops/relu/\x3cscript\x3e" in text
        assert not any(name in text for name in hostile)
    np.savez(tmp_path / "theirs.npz", **{"\x1b[2J": np.zeros(2)})
    with pytest.raises(DataError, match=r"found \\x1b\\x5b2J"):
        read_theirs(tmp_path / "theirs.npz", golden)


def test_the_terminal_shows_departing_arrays_alone_and_says_how_many_it_leaves_out(golden):
    names = [case.name for case in build_cases("algorithm")]
    wrong = {name: {key: value + 1 for key, value in run(CASES[name]).items()} for name in names}
    wrong[names[0]]["round1.md"] -= 1
    comparison = compare(golden, as_theirs(wrong))
    text = as_text(Outcome(golden, comparison, [], partial=True), every=False)
    lines = [line for line in text.splitlines() if line.startswith("algorithm/")]
    shown = [line for line in lines if "departs" in line]
    assert len(shown) == len(lines) == 40
    assert f"and {len(comparison.departures) - 40} more that depart" in text
    assert "more that depart" not in as_text(Outcome(golden, comparison, [], partial=True), every=True)


def test_ulp_distance_counts_floats_between():
    one = np.float32([1.0, -1.0, 0.0, 1e-45])
    assert ulp_distance(one, one) == 0
    assert ulp_distance(one, np.nextafter(one, np.float32(9))) == 1
    assert ulp_distance(np.float32([-1e-45]), np.float32([1e-45])) == 2


# --- reading THEIRS ---------------------------------------------------------------------------------


def test_arrays_that_do_not_fit_are_never_read(golden, tmp_path):
    path = tmp_path / "theirs.npz"
    outputs = run(CASES["ops/relu"])
    np.savez(
        path, **{"ops/relu/y": outputs["y"], "ops/relu/grad.x": np.zeros(10**5), "other": np.zeros(10**6)}
    )
    theirs = read_theirs(path, golden)
    assert set(theirs.headers) == {"ops/relu/y", "ops/relu/grad.x", "other"}
    assert set(theirs.arrays) == {"ops/relu/y"}


def test_a_file_of_other_names_is_refused_with_an_example(golden, tmp_path):
    path = tmp_path / "theirs.npz"
    np.savez(path, y=np.zeros(3))
    with pytest.raises(DataError, match=r"names are like ops/conv/y, found y$"):
        read_theirs(path, golden)
    np.savez(path, **{"ops/relu.y": np.zeros(3)})
    with pytest.raises(DataError, match=r"found ops/relu.y \(did you mean ops/relu/y\?\)"):
        read_theirs(path, golden)


def test_a_golden_file_of_other_settings_is_refused(golden, tmp_path):
    case = CASES["prox/l1"]
    other = replace(case, settings={**case.settings, "step": 0.9})
    (tmp_path / "theirs.npz").write_bytes(golden_bytes([(other, run(other))], "other"))
    with pytest.raises(DataError, match="prox/l1 has other inputs there, or settings"):
        read_theirs(tmp_path / "theirs.npz", golden)


def test_a_golden_file_of_another_seed_is_refused(golden, tmp_path):
    path = tmp_path / "theirs.npz"
    path.write_bytes(golden_bytes([(case, run(case)) for case in build_cases("prox", seed=1)], "other"))
    with pytest.raises(DataError, match="other inputs there"):
        read_theirs(path, golden)
