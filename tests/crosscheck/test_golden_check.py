"""Departures are found at the array where they begin, and the usual suspects are named.

The wrong implementations are in plain NumPy (`plain_metagater.py` and below), not the package's own.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import plain_metagater
import pytest

from refimpl.crosscheck import hints as hints_module
from refimpl.crosscheck.compare import as_theirs, compare, read_theirs, ulp_distance
from refimpl.crosscheck.conformance import Outcome, as_json, as_text
from refimpl.crosscheck.golden.describe import build
from refimpl.crosscheck.golden.file import Expected, Golden, golden_bytes, read_golden
from refimpl.crosscheck.golden.levels import build_cases
from refimpl.crosscheck.golden.ours import run
from refimpl.crosscheck.hints import examine, find_hints
from refimpl.crosscheck.report import as_html, as_markdown
from refimpl.crosscheck.suspects import suspects
from refimpl.errors import DataError
from refimpl.nn.layers import Back, Flow

LEVELS = ("ops", "local", "algorithm", "prox")
CASES = {case.name: case for level in LEVELS for case in build_cases(level)}
WHERE = {"network": "networks/mlp-hard-dense"}
CASES |= {case.name: case for case in build_cases("networks", models=["mlp"]) if case.name in WHERE.values()}


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """A file of all cases used here."""
    path = tmp_path_factory.mktemp("golden") / "golden.npz"
    path.write_bytes(golden_bytes([(case, run(case)) for case in CASES.values()], "refimpl"))
    return read_golden(path)


@cache
def remembered(case):
    """The suspects of a case, each of which is computed once for all tests of this module."""
    return [suspect._replace(outputs=cache(suspect.outputs)) for suspect in suspects(case)]


@pytest.fixture(autouse=True)
def suspects_are_computed_once(monkeypatch):
    monkeypatch.setattr(hints_module, "suspects", remembered)


def departure(golden, case, outputs):
    """First departing output and the rules named for one case's outputs."""
    theirs = as_theirs({case: outputs})
    comparison = compare(golden, theirs)
    hints = find_hints(golden, theirs, comparison)
    return comparison.departures[0].output, hints


def agrees(golden, case, outputs):
    return not compare(golden, as_theirs({case: outputs})).departures


# --- single operations, done wrong in NumPy ---------------------------------------------------------


def relu(case, at_zero):
    x, dy = case.inputs["x"], case.inputs["dy"]
    return {"y": np.maximum(x, 0), "grad.x": dy * np.where(x == 0, at_zero, x > 0)}


def linear(case, weight):
    x, dy = case.inputs["x"], case.inputs["dy"]
    gradients = {"grad.x": dy @ weight, "grad.weight": dy.T @ x, "grad.bias": dy.sum(axis=0)}
    return {"y": x @ weight.T + case.inputs["bias"], **gradients}


def max_pool(case, last):
    x, dy = case.inputs["x"], case.inputs["dy"]
    (rows, cols), (down, right) = case.settings["kernel"], case.settings["stride"]
    y, dx = np.empty_like(dy), np.zeros_like(x)
    for n, c, p, q in np.ndindex(*dy.shape):
        window = x[n, c, p * down : p * down + rows, q * right : q * right + cols]
        best = np.flatnonzero(window == window.max())[-1 if last else 0]
        y[n, c, p, q] = window.max()
        dx[n, c, p * down + best // cols, q * right + best % cols] += dy[n, c, p, q]
    return {"y": y, "grad.x": dx}


@pytest.mark.parametrize("name", ["ops/max_pool2d", "ops/max_pool2d-overlap"])
def test_in_the_pool_of_a_suspect_the_last_maximum_wins(name):
    case = CASES[name]
    entry = {"type": "max_pool2d", "name": "pool", **case.settings, "tie": "last"}
    (layer,) = build([entry])
    y, _, cache = layer.forward({}, case.inputs["x"], Flow())
    dx = layer.backward(case.inputs["dy"], cache, {}, {}, Back())
    expected = max_pool(case, last=True)
    assert np.array_equal(y, expected["y"])
    assert np.allclose(dx, expected["grad.x"], rtol=1e-14, atol=1e-14)


def batch_norm(case, ddof):
    x = case.inputs["x"]
    variance = x.var(axis=(0, 2, 3), ddof=ddof, keepdims=True)
    normalised = (x - x.mean(axis=(0, 2, 3), keepdims=True)) / np.sqrt(variance + case.settings["eps"])
    scale, shift = (case.inputs[key][None, :, None, None] for key in ("weight", "bias"))
    return {"y": scale * normalised + shift}


def cross_entropy(case, count):
    logits, labels = case.inputs["logits"], case.inputs["labels"]
    share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    one_hot = np.eye(logits.shape[1])[labels]
    return {"loss": -np.sum(one_hot * np.log(share)) / count, "grad.logits": (share - one_hot) / count}


def soft_threshold(case, threshold):
    v = case.inputs["v"]
    return {"prox": np.sign(v) * np.maximum(np.abs(v) - threshold, 0)}


SQUARE = CASES["ops/linear-square"].inputs["weight"]
OPERATIONS = (  # case, right, wrong, where it departs first, which rule is named, a word of the hint
    ("ops/relu", (relu, 0.0), (relu, 1.0), "grad.x", "ReLU'(0)", "it is 0"),
    ("ops/linear-square", (linear, SQUARE), (linear, SQUARE.T), "y", "transposed weight", "(out, in)"),
    ("ops/max_pool2d", (max_pool, False), (max_pool, True), "grad.x", "tie rule", "the first gets it"),
    ("ops/max_pool2d-overlap", (max_pool, False), (max_pool, True), "grad.x", "tie rule", "the first"),
    ("ops/batch_norm2d", (batch_norm, 0), (batch_norm, 1), "y", "biased BatchNorm variance", "n = 24"),
    ("ops/cross_entropy", (cross_entropy, 3), (cross_entropy, 1), "loss", "mean against sum loss", "3"),
    ("prox/l1", (soft_threshold, 0.7 * 0.6), (soft_threshold, 0.6), "prox", "prox step vs weight", "alone"),
    ("prox/l1", (soft_threshold, 0.7 * 0.6), (soft_threshold, 0.7), "prox", "prox step vs weight", "alone"),
)


@pytest.mark.parametrize(("name", "right", "wrong", "output", "rule", "word"), OPERATIONS)
def test_a_wrong_operation_is_caught_where_it_departs(golden, name, right, wrong, output, rule, word):
    compute, setting = right
    assert agrees(golden, name, compute(CASES[name], setting))
    compute, setting = wrong
    first, hints = departure(golden, name, compute(CASES[name], setting))
    assert first == output
    assert [hint.rule for hint in hints if hint.rule != "pattern"] == [rule]
    assert "pool" not in name or not any(hint.denied for hint in hints)
    assert any(word in hint.text for hint in hints)


# --- a whole implementation, done wrong -------------------------------------------------------------

MISTAKES = (  # what is wrong, level, where it departs first, the rule named
    ("ReLU'(0)", "local", "step1.gradient", "ReLU'(0)"),
    ("two-logit order", "local", "step1.loss", "two-logit order"),
    ("tie rule", "local", "step1.loss", "tie rule"),
    ("mean against sum loss", "local", "step1.loss", "mean against sum loss"),
    ("mask before/after ReLU", "local", "step1.gradient", "mask before/after ReLU"),
    ("twice lambda", "local", "step2.w", "lambda vs lambda/2"),
    ("half of lambda", "local", "step2.w", "lambda vs lambda/2"),
    ("two-logit order", "algorithm", "round1.g", "two-logit order"),
    ("logits in halves", "local", "step1.loss", "two-logit order"),
    ("logits in halves", "algorithm", "round1.g", "two-logit order"),
    ("tie rule", "algorithm", "round1.g", "tie rule"),
    ("ReLU'(0)", "algorithm", "round1.g", "ReLU'(0)"),
    ("mean against sum loss", "algorithm", "round1.g", "mean against sum loss"),
    ("twice lambda", "algorithm", "round1.g", "lambda vs lambda/2"),
    ("half of lambda", "algorithm", "round1.g", "lambda vs lambda/2"),
    ("weight alone", "algorithm", "round1.x", "prox step vs weight"),
    ("step alone", "algorithm", "round1.x", "prox step vs weight"),
    ("group weight", "algorithm", "round1.x", "group weight"),
    ("gate bias outside its group", "algorithm", "round1.x", "gate bias outside its group"),
    ("xag's prox with l", "algorithm", "round1.xag", "prox with the other point's step"),
    ("xag with l", "algorithm", "round1.xag", "prox with the other point's step"),
    ("x's prox with b", "algorithm", "round1.x", "prox with the other point's step"),
    ("md is x", "algorithm", "round2.md", "stale point"),
    ("md is xag", "algorithm", "round2.md", "stale point"),
    ("nodes at x", "algorithm", "round2.g", "stale point"),
    ("nodes at xag", "algorithm", "round2.g", "stale point"),
    ("xag from x", "algorithm", "round2.xag", "stale point"),
    ("xag from xag", "algorithm", "round2.xag", "stale point"),
    ("x from md", "algorithm", "round2.x", "stale point"),
    ("late momentum", "algorithm", "round2.md", "late momentum"),
    ("mean weighted by |D_i|", "algorithm", "round1.g", "mean weighted by |D_i|"),
    ("detached gate input", "network", "grad.x", "detached gate input"),
    ("summary over all channels", "network", "forward.fc1.gate.summary", "summary over all channels"),
)


@pytest.mark.parametrize("level", ["local", "algorithm", "network"])
def test_a_right_implementation_written_apart_conforms(golden, level):
    case = CASES[WHERE.get(level, f"{level}/hard")]
    assert agrees(golden, case.name, getattr(plain_metagater, level)(case))


@pytest.mark.parametrize(("wrong", "level", "output", "rule"), MISTAKES)
def test_a_wrong_implementation_is_caught_where_it_departs(golden, wrong, level, output, rule):
    case = CASES[WHERE.get(level, f"{level}/hard")]
    first, hints = departure(golden, case.name, getattr(plain_metagater, level)(case, wrong))
    assert first == output
    found = [hint for hint in hints if hint.rule != "pattern"]
    assert {hint.rule for hint in found} == {rule}
    assert all(hint.explains == hint.departing and not hint.denied for hint in found)


@pytest.mark.parametrize("name", ["hard", "soft-bounded", "ste-l1"])
@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_a_server_that_steps_with_a_wrong_g_is_explained_in_every_round(golden, name, factor):
    """Written out here: the schedule's steps times the factor, the thresholds of the prox as they were."""
    case = CASES[f"algorithm/{name}"]
    schedule, penalty = case.settings["schedule"], dict(case.settings["penalty"])
    penalty["rho"] /= factor
    wrong = {"schedule": {**schedule, "beta": schedule["beta"] * factor}, "penalty": penalty}
    outputs = run(replace(case, settings={**case.settings, **wrong}))
    outputs = {key: value * (factor if key.endswith(".g") else 1.0) for key, value in outputs.items()}
    first, hints = departure(golden, case.name, outputs)
    assert first == "round1.g"
    (hint,) = (hint for hint in hints if hint.rule != "pattern")
    assert hint.text == f"g is {factor:g} times lambda (md - mean of the nodes)"
    assert hint.explains == hint.departing > 30


def test_no_suspect_is_named_for_a_mistake_nobody_expects(golden):
    case = CASES["local/hard"]
    outputs = plain_metagater.local(case)
    outputs["step3.gradient"] = outputs["step3.gradient"].copy()
    outputs["step3.gradient"][7] += 1e-6
    first, hints = departure(golden, case.name, outputs)
    assert (first, hints) == ("step3.gradient", [])


def test_an_unexplained_departure_ends_with_the_three_closest_mistakes(golden):
    """Beside a known mistake by a thousandth, which is the closest; distances are worked out here."""
    case = CASES["algorithm/hard"]
    near = plain_metagater.algorithm(case, "step alone")["round1.x"]
    right = plain_metagater.algorithm(case)
    off = right | {"round1.x": near + 1e-3 * np.linalg.norm(near) / np.sqrt(near.size)}
    theirs = as_theirs({case.name: off})
    comparison = compare(golden, theirs)
    hints, (found,) = examine(golden, theirs, comparison)
    assert not [hint for hint in hints if hint.rule != "pattern"]
    assert found.array == "algorithm/hard/round1.x"
    assert len(found.closest) == 3
    assert [one.relative for one in found.closest] == sorted(one.relative for one in found.closest)
    assert found.closest[0].rule == "prox step vs weight"
    assert found.closest[0].relative == pytest.approx(1e-3, rel=1e-6)
    away = np.linalg.norm(off["round1.x"] - right["round1.x"]) / np.linalg.norm(right["round1.x"])
    assert found.relative == pytest.approx(away)
    outcome = Outcome(golden, comparison, hints, partial=True, unexplained=[found])
    for text in (as_text(outcome, every=False), as_markdown(outcome), as_html(outcome)):
        assert text.count("closest known mistake, ") == 3
        assert "closest known mistake, 1.0e-03 from algorithm/hard/round1.x: prox step vs weight" in text
    assert as_json(outcome)["unexplained"][0]["closest"][0]["rule"] == "prox step vs weight"


@pytest.mark.parametrize(
    "name", ["ops/conv-square", "ops/gated-gumbel-dense", "prox/group_lasso", "local/ste"]
)
def test_suspects_are_told_apart(golden, name):
    """What a suspect computes names that suspect and no other."""
    found = 0
    for suspect in suspects(CASES[name]):
        outputs = suspect.outputs()
        if not agrees(golden, name, outputs):
            _, hints = departure(golden, name, outputs)
            assert {hint.rule for hint in hints if hint.rule != "pattern"} == {suspect.rule}
            found += 1
    assert found >= 2


def test_a_case_that_makes_no_sense_has_no_suspects(golden):
    """Files may come from anyone: a departure is reported all the same."""
    case = replace(CASES["ops/relu"], settings={"gating": 3, "layers": 4}, outputs=("y", "grad.x"))
    odd = Golden("someone", (case,), {case.name: golden.expected[case.name]})
    theirs = as_theirs({case.name: {"y": np.zeros((3, 4, 5)), "grad.x": np.zeros((3, 4, 5))}})
    assert find_hints(odd, theirs, compare(odd, theirs)) == []


def test_a_file_whose_outputs_have_other_shapes_has_no_suspects(golden):
    case = CASES["ops/cross_entropy"]
    expected = golden.expected[case.name]
    flat = expected | {"loss": expected["loss"]._replace(value=expected["loss"].value.reshape(1))}
    odd = Golden("someone", (case,), {case.name: flat})
    right = run(case)
    theirs = as_theirs({case.name: {"loss": right["loss"] * 3, "grad.logits": right["grad.logits"] * 3}})
    assert not any(hint.rule != "pattern" for hint in find_hints(odd, theirs, compare(odd, theirs)))


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
    outcome = Outcome(golden, comparison, find_hints(golden, theirs, comparison), partial=True)
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
