"""Few-shot tasks and tickets, written out in NumPy: they conform, and each usual mistake is found and named.

Second derivatives are those of gradients along an imaginary step, which are exact (Squire & Trapp 1998).
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from departures import agrees, assert_explained_alone

from refimpl.crosscheck.golden.file import golden_of
from refimpl.crosscheck.golden.levels import build_cases
from refimpl.crosscheck.golden.ours import run
from refimpl.crosscheck.suspects import suspects
from refimpl.crosscheck.template.head import named, parameters, vector
from refimpl.crosscheck.template.numpy_layers import LAYERS
from refimpl.crosscheck.template.numpy_network import logits_of, loss_and_gradient
from refimpl.errors import DataError

CASES = {case.name.split("/")[1]: case for case in build_cases("fewshot")}


@pytest.fixture(scope="module")
def golden():
    """All cases of the level."""
    return golden_of([(case, run(case)) for case in CASES.values()], "refimpl")


def computed(case, wrong=""):
    """The outputs of a case, in NumPy."""
    return ticket(case, wrong) if case.kind == "ticket" else episode(case, wrong)


# --- episodes


def over_all(case, parts):
    """One vector of a boolean, or an array, for each parameter."""
    return np.concatenate([np.ravel(parts(name, np.ones(shape, bool))) for name, shape in case["parameters"]])


def episode(case, wrong):
    s, given, method = case.settings, case.inputs, case.settings["method"]
    alive = over_all(s, lambda name, ones: given.get(f"mask.{name}", ones))
    head = over_all(s, lambda name, ones: ones & name.startswith("fc."))
    moves = {"anil": head, "boil": ~head}.get(method, np.ones_like(head))
    moves = {"exchanged": ~moves, "whole": np.ones_like(head)}.get(wrong, moves)
    moves = moves if wrong == "unmasked" else moves & alive
    joint = method == "reptile" and wrong != "support alone"
    x, y = (
        np.concatenate([given[f"{part}.{what}"] for part in ("support", "query")[: 1 + joint]])
        for what in ("x", "labels")
    )

    def gradient(w):
        return loss_and_gradient(w, x.astype(w.dtype), y, {}, s)[1]

    points = [alive * vector(named(given, "param."), s)]
    for _ in range(s["inner_steps"]):
        points.append(points[-1] - s["alpha"] * moves * gradient(points[-1]))
    found = {f"step{at}.w": point for at, point in enumerate(points[1:], 1)}
    if case.kind == "episode_test":
        return found | {"query.logits": classified(case, points[-1], wrong)}
    if method == "reptile":
        return found | {"gradient": points[0] - points[-1]}
    loss, v = loss_and_gradient(points[-1], given["query.x"], given["query.labels"], {}, s)
    if (method != "fomaml" and s.get("exact", True)) != (wrong == "order"):
        for at in reversed(points[:-1]):
            v = v - s["alpha"] * gradient(at + 1e-30j * (moves * v)).imag / 1e-30
    v = v if wrong in ("unmasked", "answer") else alive * v
    return found | {"query.loss": np.array(loss), "gradient": v}


def classified(case, w, wrong):
    """The logits of query samples, normalised with statistics of their own or of the support samples."""
    s, x, support = case.settings, case.inputs["query.x"], case.inputs["support.x"]
    if (s["statistics"] == "transductive") != (wrong == "statistics"):
        return logits_of(w, x, s)
    p = parameters(w, s)
    for entry in s["layers"]:
        own, kind = named(p, f"{entry['name']}."), entry["type"]
        if kind == "batch_norm2d":
            own |= {"running_mean": support.mean((0, 2, 3)), "running_var": support.var((0, 2, 3))}
            x, _ = LAYERS[kind]({**entry, "type": "frozen_norm2d"}, x, own)
        else:
            x, _ = LAYERS[kind](entry, x, own)
        support, _ = LAYERS[kind](entry, support, own)
    return x


# --- tickets


def first_ones(scores, count):
    mask = np.zeros(scores.size, dtype=bool)
    mask[sorted(range(scores.size), key=lambda i: (-scores.flat[i], i))[:count]] = True
    return mask.reshape(scores.shape)


def ticket(case, wrong):
    s, weights = case.settings, case.inputs["weights"]
    rows, names = [parameters(row, s) for row in weights], ["conv1.weight", "conv2.weight"]
    if s["finder"] == "pmt":
        found, masks, k = primary(case, rows, wrong)
    else:
        names += ["fc.weight"] if wrong == "head" else []
        found, masks, k = {}, magnitudes(case, rows[-1], names, wrong), s["rewind"]
    k = {"no rewind": len(rows) - 1, "theta_0": 0}.get(wrong, k)
    start = {name: value * masks.get(name, 1) for name, value in rows[k].items()}
    return found | {f"mask.{name}": masks[name] for name in names[:2]} | {"start": vector(start, s)}


def magnitudes(case, trained, names, wrong):
    keeps, sizes = 1 - case.settings["pruned"], [trained[name].size for name in names]
    if (case.settings["scope"] == "layers") != (wrong == "scope"):
        return {name: first_ones(abs(trained[name]), round(keeps * trained[name].size)) for name in names}
    together = np.concatenate([np.ravel(abs(trained[name])) for name in names])
    pieces = np.split(first_ones(together, round(keeps * together.size)), np.cumsum(sizes)[:-1])
    return {name: piece.reshape(trained[name].shape) for name, piece in zip(names, pieces, strict=True)}


def primary(case, rows, wrong):
    """Shares in the ratio 6 : 2 of the two layers' weights: no layer is full."""
    s, (first, second) = case.settings, (rows[0][f"conv{i}.weight"] for i in (1, 2))
    kept = round((1 - s["pruned"]) * (first.size + second.size))
    one = round(kept * 6 * first.size / (6 * first.size + 2 * second.size))
    masks = [first_ones(abs(rows[k]["conv1.weight"]), one) for k in range(0, len(rows), s["gamma"])]
    overlaps = [math.nan, *(np.sum(a & b) / one for a, b in pairwise(masks))]  # by the later mask
    overlaps[1] = math.nan  # of the weights before any training
    decide = max if (s["rule"] == "max") != (wrong == "rule") else min
    stop = next(k for k in range(3, len(masks)) if decide(overlaps[k - 1 : k + 1]) > s["delta"])
    both = {
        "conv1.weight": masks[stop],
        "conv2.weight": first_ones(case.inputs["random.conv2.weight"], kept - one),
    }
    found = {
        "overlaps": np.array(overlaps[stop - 1 : stop + 1]),
        "stopped": np.array(float(stop * s["gamma"])),
    }
    return found, both, 0


# --- tests


@pytest.mark.parametrize("title", CASES)
def test_right_outputs_written_apart_conform(golden, title):
    outputs = computed(CASES[title])
    assert set(outputs) == set(CASES[title].outputs)
    assert agrees(golden, f"fewshot/{title}", outputs)


EXCHANGED, ORDER, MASKED = "anil and boil exchanged", "second-order terms", "masked gradients"
MISTAKES = (  # the case, what is wrong, where it departs first, the rule named, and words of the hint
    ("anil", "exchanged", "step1.w", EXCHANGED, "as in boil; anil moves the last layer alone"),
    ("boil", "exchanged", "step1.w", EXCHANGED, "as in anil; boil moves all layers but the last"),
    ("boil-first-order", "exchanged", "step1.w", EXCHANGED, "as in anil"),
    ("support", "exchanged", "step1.w", EXCHANGED, "as in boil"),
    ("anil", "whole", "step1.w", "inner loop", "moved all layers; anil"),
    ("boil", "whole", "step1.w", "inner loop", "moved all layers; boil"),
    ("boil-first-order", "whole", "step1.w", "inner loop", "moved all layers; boil"),
    ("support", "whole", "step1.w", "inner loop", "moved all layers; anil"),
    ("reptile", "support alone", "step1.w", "inner loop", "took support samples alone"),
    *(
        (title, "order", "gradient", ORDER, "terms were left out")
        for title in ("maml", "anil", "boil", "masked")
    ),
    *(
        (title, "order", "gradient", ORDER, "went back")
        for title in ("fomaml", "boil-first-order", "masked-fomaml")
    ),
    *((title, "unmasked", "step1.w", MASKED, "moved away from") for title in ("masked", "masked-fomaml")),
    *((title, "answer", "gradient", MASKED, "the answer was not") for title in ("masked", "masked-fomaml")),
    ("transductive", "statistics", "query.logits", "statistics of a test", "were those of the support"),
    ("support", "statistics", "query.logits", "statistics of a test", "were those of the query"),
    ("global", "no rewind", "start", "no rewind", "from the weights after 3 iterations; it"),
    ("layers", "no rewind", "start", "no rewind", "from the weights after 3 iterations; it"),
    (
        "primary",
        "no rewind",
        "start",
        "no rewind",
        "from the weights after 12 iterations; it",
    ),
    ("global", "theta_0", "start", "no rewind", "after 0 iterations; it starts from those after 1"),
    ("layers", "theta_0", "start", "no rewind", "after 0 iterations; it starts from those after 2"),
    ("global", "head", "mask.conv2.weight", "head pruned", "keeps all of the head"),
    ("layers", "head", "start", "head pruned", "keeps all of the head"),
    ("global", "scope", "mask.conv1.weight", "scope of pruning", "in each layer by itself; the"),
    ("layers", "scope", "mask.conv1.weight", "scope of pruning", "over all layers together; the"),
    ("primary", "rule", "overlaps", "rule of the queue", "by the max of the queue"),
)


@pytest.mark.parametrize(("title", "wrong", "output", "rule", "words"), MISTAKES)
def test_a_mistake_is_caught_where_it_departs(golden, title, wrong, output, rule, words):
    outputs = computed(CASES[title], wrong)
    assert_explained_alone(golden, f"fewshot/{title}", outputs, output, rule, words)


def test_every_suspect_is_injected():
    """But for starts after other iterations, which differ in a number only."""
    for title, case in CASES.items():
        known = [row[-1] for row in MISTAKES if row[0] == title]
        own = [one.hint for one in suspects(case) if one.rule in {row[3] for row in MISTAKES}]
        missing = [hint for hint in own if not any(words in hint for words in known)]
        assert all("the ticket started from" in hint for hint in missing)


@pytest.mark.parametrize(
    ("title", "changes", "words"),
    [
        ("maml", {"method": "imaml"}, "method"),
        ("maml", {"inner_steps": 10**9}, "expected at most 1000 inner_steps"),
        ("support", {"statistics": "all"}, "statistics"),
        ("global", {"finder": "best"}, "unknown finder"),
        ("global", {"finder": "snip", "score": "product", "looks": 1}, "cannot compute"),
        ("global", {"scope": "channels"}, "scope"),
        ("layers", {"rewind": 4}, "out of bounds"),
        ("primary", {"rule": "median"}, "rule"),
        ("primary", {"gamma": 0}, "must not be zero"),
        ("primary", {"length": 10**9}, "expected at most 1000 length"),
    ],
)
def test_settings_that_make_no_sense_are_refused(title, changes, words):
    case = CASES[title]
    with pytest.raises(DataError, match=words) as caught:
        run(replace(case, settings={**case.settings, **changes}))
    assert case.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mask_of_another_network_is_refused():
    case = CASES["masked"]
    wide = {"mask.conv1.weight": np.ones((3, 1, 3, 3), bool)}
    with pytest.raises(DataError, match=r"fewshot/masked: .*conv1\.weight is"):
        run(replace(case, inputs=case.inputs | wide))


def test_a_search_that_looks_at_nothing_finds_no_stable_mask():
    case = CASES["primary"]
    found = run(replace(case, settings={**case.settings, "gamma": 99}))
    assert found["stopped"] == 0
    assert np.isnan(found["overlaps"]).all()
