"""Injected mistakes are found at the array where they begin, and the suspect that explains them is named.

The wrong implementations are in plain NumPy (`plain_metagater.py` and below), not the package's own.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import plain_metagater
import pytest
from departures import CASES, WHERE, agrees, departure, golden_at

from refimpl.crosscheck import hints as hints_module
from refimpl.crosscheck.compare import as_theirs, compare
from refimpl.crosscheck.conformance import Outcome, as_json, as_text
from refimpl.crosscheck.golden.describe import build
from refimpl.crosscheck.golden.file import Golden
from refimpl.crosscheck.golden.ours import run
from refimpl.crosscheck.hints import examine
from refimpl.crosscheck.report import as_html, as_markdown
from refimpl.crosscheck.suspects import suspects
from refimpl.nn.layers import Back, Flow


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """A file of all cases used here."""
    return golden_at(tmp_path_factory.mktemp("golden") / "golden.npz")


@cache
def remembered(case):
    """The suspects of a case, each of which is computed once for all tests of this module."""
    return [suspect._replace(outputs=cache(suspect.outputs)) for suspect in suspects(case)]


@pytest.fixture(autouse=True)
def suspects_are_computed_once(monkeypatch):
    monkeypatch.setattr(hints_module, "suspects", remembered)


# --- single operations, done wrong in NumPy ---------------------------------------------------------


def relu(case, at_zero):
    x, dy = case.inputs["x"], case.inputs["dy"]
    return {"y": np.maximum(x, 0), "grad.x": dy * np.where(x == 0, at_zero, x > 0)}


def linear(case, weight):
    x, dy = case.inputs["x"], case.inputs["dy"]
    gradients = {"grad.x": dy @ weight, "grad.weight": dy.T @ x, "grad.bias": dy.sum(axis=0)}
    return {"y": x @ weight.T + case.inputs["bias"], **gradients}


def conv(case, change):
    """A convolution whose weights are changed by `change` before they are used, and stored as given."""
    x, dy, w = case.inputs["x"], case.inputs["dy"], change(case.inputs["weight"])
    padded, y, dw = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), 0, np.empty_like(w)
    dx, (height, width) = np.zeros_like(padded), x.shape[2:]
    for i, j in np.ndindex(3, 3):
        here = (..., slice(i, i + height), slice(j, j + width))
        y = y + np.einsum("kc,nchw->nkhw", w[:, :, i, j], padded[here])
        dx[here] += np.einsum("kc,nkhw->nchw", w[:, :, i, j], dy)
        dw[:, :, i, j] = np.einsum("nkhw,nchw->kc", dy, padded[here])
    y = y + case.inputs["bias"][:, None, None]
    return {"y": y, "grad.x": dx[..., 1:-1, 1:-1], "grad.weight": change(dw), "grad.bias": dy.sum((0, 2, 3))}


def exchanged(weight):
    return weight.swapaxes(0, 1)


def flipped(kernel):
    return kernel[:, :, ::-1, ::-1]


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
    ("ops/relu", (relu, 0.0), (relu, 0.5), "grad.x", "ReLU'(0)", "taken as 1/2"),
    ("ops/conv", (conv, np.array), (conv, flipped), "y", "flipped kernel", "it does not convolve"),
    ("ops/conv-square", (conv, np.array), (conv, exchanged), "y", "transposed weight", "height, width)"),
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

MISTAKES = (  # what is wrong, level, where it departs first, the rule named, and words of the hint
    ("ReLU'(0)", "local", "step1.gradient", "ReLU'(0)", "ReLU at 0 was taken as 1;"),
    ("two-logit order", "local", "step1.loss", "two-logit order", "read as (on, off)"),
    ("tie rule", "local", "step1.loss", "tie rule", "with d = 0 was left on"),
    ("mean against sum loss", "local", "step1.loss", "mean against sum loss", "was summed over"),
    ("mask before/after ReLU", "local", "step1.gradient", "mask before/after ReLU", "before ReLU; gate_grad"),
    ("twice lambda", "local", "step2.w", "lambda vs lambda/2", "twice lambda in"),
    ("half of lambda", "local", "step2.w", "lambda vs lambda/2", "half of lambda in"),
    ("two-logit order", "algorithm", "round1.g", "two-logit order", "read as (on, off)"),
    ("logits in halves", "local", "step1.loss", "two-logit order", "all off, then all on"),
    ("logits in halves", "algorithm", "round1.g", "two-logit order", "all off, then all on"),
    ("tie rule", "algorithm", "round1.g", "tie rule", "with d = 0 was left on"),
    ("ReLU'(0)", "algorithm", "round1.g", "ReLU'(0)", "ReLU at 0 was taken as 1;"),
    ("mean against sum loss", "algorithm", "round1.g", "mean against sum loss", "was summed over"),
    ("twice lambda", "algorithm", "round1.g", "lambda vs lambda/2", "twice lambda in"),
    ("half of lambda", "algorithm", "round1.g", "lambda vs lambda/2", "half of lambda in"),
    ("weight alone", "algorithm", "round1.x", "prox step vs weight", "the weight rho alone"),
    ("step alone", "algorithm", "round1.x", "prox step vs weight", "the step alone"),
    ("group weight", "algorithm", "round1.x", "group weight", "had the weight 1"),
    (
        "gate bias outside its group",
        "algorithm",
        "round1.x",
        "gate bias outside its group",
        "were in no group",
    ),
    (
        "xag's prox with l",
        "algorithm",
        "round1.xag",
        "prox with the other point's step",
        "xag was taken with the step l",
    ),
    ("xag with l", "algorithm", "round1.xag", "prox with the other point's step", "xag made a step l"),
    (
        "x's prox with b",
        "algorithm",
        "round1.x",
        "prox with the other point's step",
        "x was taken with the step b",
    ),
    ("md is x", "algorithm", "round2.md", "stale point", "md was the last x;"),
    ("md is xag", "algorithm", "round2.md", "stale point", "md was the last xag;"),
    ("nodes at x", "algorithm", "round2.g", "stale point", "started at the last x "),
    ("nodes at xag", "algorithm", "round2.g", "stale point", "started at the last xag "),
    ("xag from x", "algorithm", "round2.xag", "stale point", "xag stepped from the last x "),
    ("xag from xag", "algorithm", "round2.xag", "stale point", "xag stepped from the last xag "),
    ("x from md", "algorithm", "round2.x", "stale point", "x stepped from md"),
    ("late momentum", "algorithm", "round2.md", "late momentum", "momentum a was that of"),
    ("mean weighted by |D_i|", "algorithm", "round1.g", "mean weighted by |D_i|", "as weights"),
    ("detached gate input", "network", "grad.x", "detached gate input", "inputs were detached"),
    (
        "summary over all channels",
        "network",
        "forward.fc1.gate.summary",
        "summary over all channels",
        "over all channels;",
    ),
    ("ReLU'(0) of gates", "local", "step1.gradient", "ReLU'(0)", "units at 0 was taken as 1;"),
    ("ReLU'(0) of layers", "local", "step1.gradient", "ReLU'(0)", "layers at 0 was taken as 1;"),
    ("half of ReLU'(0)", "network", "grad.fc1.weight", "ReLU'(0)", "ReLU at 0 was taken as 1/2"),
    (
        "half of ReLU'(0) of gates",
        "network",
        "grad.fc1.gate.fc1.weight",
        "ReLU'(0)",
        "units at 0 was taken as 1/2",
    ),
    ("half of ReLU'(0) of layers", "network", "grad.fc1.weight", "ReLU'(0)", "layers at 0 was taken as 1/2"),
    ("twice lambda, also in g", "algorithm", "round1.g", "lambda vs lambda/2", "twice lambda, in"),
    ("half of lambda, also in g", "algorithm", "round1.g", "lambda vs lambda/2", "half of lambda, in"),
    ("stored g", "algorithm", "round1.g", "lambda vs lambda/2", "where it is stored only"),
    ("step twice", "algorithm", "round1.x", "prox step vs weight", "taken twice in a prox"),
    ("late round", "algorithm", "round1.x", "late momentum", "a, b and l were"),
)


@pytest.mark.parametrize("level", ["local", "algorithm", "network"])
def test_a_right_implementation_written_apart_conforms(golden, level):
    case = CASES[WHERE.get(level, f"{level}/hard")]
    assert agrees(golden, case.name, getattr(plain_metagater, level)(case))


@pytest.mark.parametrize(("wrong", "level", "output", "rule", "words"), MISTAKES)
def test_a_wrong_implementation_is_caught_where_it_departs(golden, wrong, level, output, rule, words):
    case = CASES[WHERE.get(level, f"{level}/hard")]
    first, hints = departure(golden, case.name, getattr(plain_metagater, level)(case, wrong))
    assert first == output
    found = [hint for hint in hints if hint.rule != "pattern"]
    assert {hint.rule for hint in found} == {rule}
    assert any(words in hint.text for hint in found)
    assert all(hint.explains == hint.departing and not hint.denied for hint in found)


ELSEWHERE = (  # words of hints that other tests inject, here, with PyTorch or in templates
    "a gradient passed from a gate to its input",
    "the mask was applied after ReLU; gate_grad `active`",
    "the outputs of a block's layers are those without it",
    "times lambda (md - mean of the nodes)",
    "the mask was applied before the pool of its block",
)


def test_every_suspect_is_injected_somewhere():
    words = [row[-1] for row in (*OPERATIONS, *MISTAKES)]
    for case in CASES.values():
        for suspect in suspects(case):
            assert any(some in suspect.hint for some in (*words, *ELSEWHERE)), suspect.hint


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
    assert examine(odd, theirs, compare(odd, theirs)).hints == []


def test_a_file_whose_outputs_have_other_shapes_has_no_suspects(golden):
    case = CASES["ops/cross_entropy"]
    expected = golden.expected[case.name]
    flat = expected | {"loss": expected["loss"]._replace(value=expected["loss"].value.reshape(1))}
    odd = Golden("someone", (case,), {case.name: flat})
    right = run(case)
    theirs = as_theirs({case.name: {"loss": right["loss"] * 3, "grad.logits": right["grad.logits"] * 3}})
    assert not any(hint.rule != "pattern" for hint in examine(odd, theirs, compare(odd, theirs)).hints)
