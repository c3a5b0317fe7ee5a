"""The loss of a team, written out in NumPy: it conforms, and each usual mistake in it is found and named."""

from __future__ import annotations

import numpy as np
import pytest
from departures import agrees, assert_explained_alone

from refimpl.crosscheck.golden.file import golden_of
from refimpl.crosscheck.golden.levels import build_cases
from refimpl.crosscheck.golden.ours import run
from refimpl.crosscheck.suspects import suspects
from refimpl.crosscheck.template.numpy_network import Pass

CASES = {case.name.split("/")[1]: case for case in build_cases("cooperative")}


@pytest.fixture(scope="module")
def golden():
    """All cases of the level."""
    return golden_of([(case, run(case)) for case in CASES.values()], "refimpl")


def softened(z, temperature):
    p = np.exp(z / temperature)
    return p / p.sum(axis=1, keepdims=True)


def team(case, wrong=""):
    """The outputs, with gradients through the layers of the template, which is plain NumPy."""
    s, x, y = case.settings, case.inputs["x"], case.inputs["labels"]
    weights, t, grad = (
        dict(s["weights"]),
        s["temperature"],
        {n: np.zeros(shape) for n, shape in s["parameters"]},
    )
    for pair in ("ab", "ac", "bc"):
        if wrong == pair:
            weights[pair[0]], weights[pair[1]] = weights[pair[1]], weights[pair[0]]
    passes, logits, back, slope = {}, {}, {}, {}
    for name, part in s["parts"].items():
        own = {mine: case.inputs[f"param.{whole}"] for mine, whole in part["parameters"]}
        passes[name] = Pass(own, s["gating"], {})
        logits[name], back[name] = passes[name].chain(part["layers"], x)
        slope[name] = np.zeros_like(logits[name])
    found = {f"logits.{name}": z for name, z in logits.items()}
    terms = {}
    for student in s["students"]:
        name, labels = student["part"], student["labels"]
        if labels:
            p, truth = softened(logits[name], 1), np.eye(3)[y]
            terms[f"{name}.labels.loss"] = -labels * np.log((p * truth).sum(axis=1)).mean()
            slope[name] += labels * (p - truth) / len(y)
        for teacher, letter in student["teachers"].items():
            p, q = softened(logits[teacher], t), softened(logits[name], t)
            factor = weights[letter] * {"no T^2": 1, "classes": t**2 / 3}.get(wrong, t**2) / len(y)
            first, second = (q, p) if wrong == "turned" else (p, q)
            ratio = np.log(first / second)
            each = (first * ratio).sum(axis=1, keepdims=True)
            terms[f"{name}.from.{teacher}.loss"] = factor * each.sum()
            of_first, of_second = factor * first * (ratio - each) / t, factor * (second - first) / t
            slope[name] += of_first if wrong == "turned" else of_second
            if wrong == "attached":
                slope[teacher] += of_first
    for name, part in s["parts"].items():
        back[name](slope[name])
        for mine, whole in part["parameters"]:
            grad[whole] = grad[whole] + passes[name].notes[f"grad.{mine}"]
    whole = np.concatenate([np.ravel(grad[name]) for name, _ in s["parameters"]])
    numbers = {name: np.array(value) for name, value in terms.items()}
    return found | numbers | {"total.loss": np.array(sum(terms.values())), "gradient": whole}


@pytest.mark.parametrize("title", CASES)
def test_a_right_team_written_apart_conforms(golden, title):
    outputs = team(CASES[title])
    assert set(outputs) == set(CASES[title].outputs)
    assert agrees(golden, f"cooperative/{title}", outputs)


FIRST = "a.depth3.from.leader.depth3.loss"
MISTAKES = (  # what is wrong, where it departs first, the rule named, and words of the hint
    ("no T^2", FIRST, "temperature squared", "lacked the factor T^2"),
    ("classes", FIRST, "mean over classes", "a mean over the classes too"),
    ("ab", FIRST, "weights of the team exchanged", "exchanged with b,"),
    ("ac", FIRST, "weights of the team exchanged", "a, the weight of what the Leader teaches, was exch"),
    ("bc", "a.depth3.from.b.depth3.loss", "weights of the team exchanged", "b, the weight of what Teammates"),
    ("turned", FIRST, "divergence turned round", "KL(student || teacher)"),
    ("attached", "gradient", "teacher not detached", "passed into the teachers"),
)


@pytest.mark.parametrize(("wrong", "output", "rule", "words"), MISTAKES)
def test_a_wrong_team_is_caught_where_it_departs(golden, wrong, output, rule, words):
    outputs = team(CASES["cooperative"], wrong)
    assert_explained_alone(golden, "cooperative/cooperative", outputs, output, rule, words)


def test_every_suspect_of_teaching_is_injected():
    hints = [s.hint for s in suspects(CASES["cooperative"]) if s.rule in RULES]
    assert len(hints) == len(MISTAKES)
    assert all(any(row[-1] in hint for row in MISTAKES) for hint in hints)


RULES = {row[2] for row in MISTAKES}
