"""Wrong inner loops, answers, statistics and tickets: what they give for a case of the level `fewshot`.

Source: mathematics.md §13.2, §13.3, §14.1, §14.2. Derived.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from refimpl.crosscheck.golden.case import PARAM, Arrays, Case
from refimpl.crosscheck.golden.describe import network_of
from refimpl.crosscheck.golden.levels.fewshot import MASK, answer, learner_of, ticket_of
from refimpl.crosscheck.golden.levels.local import start
from refimpl.crosscheck.suspects.contract import Suspect, altered, suspect
from refimpl.fewshot.tickets.masks import SCOPES, choose_of, prunable

_MOVES = {"anil": "the last layer alone", "boil": "all layers but the last"}


def wrong_inner_loop(case: Case) -> Iterator[Suspect]:
    """The inner loop moves other layers than those of the method, or takes other samples."""
    method, kind = case.settings.get("method"), case.kind
    if kind not in ("episode", "episode_test"):
        return
    if method in _MOVES:
        right = f"; {method} moves {_MOVES[method]}"
        (other,) = _MOVES.keys() - {method}
        hint = f"the inner loop moved {_MOVES[other]}, as in {other}{right}"
        yield suspect("anil and boil exchanged", hint, altered(case, method=other))
        whole = "maml" if case.settings.get("exact", True) else "fomaml"
        yield suspect("inner loop", f"the inner loop moved all layers{right}", altered(case, method=whole))
    if kind == "episode" and method == "reptile":
        hint = "the steps of reptile took support samples alone; they take support and query samples together"
        same = {f"query.{name}": case.inputs[f"support.{name}"] for name in ("x", "labels")}
        yield suspect("inner loop", hint, altered(case, same))


def wrong_order(case: Case) -> Iterator[Suspect]:
    """The answer lacks its second-order terms, or has some."""
    method = case.settings.get("method")
    if case.kind != "episode" or method == "reptile":
        return
    first = method == "fomaml" or not case.settings.get("exact", True)
    hint = (
        "the gradient went back through the inner steps; in first order it is taken where they end"
        if first
        else "the second-order terms were left out; the gradient goes back through the inner steps"
    )
    changed = {"exact": first} if method in _MOVES else {"method": "maml" if first else "fomaml"}
    yield suspect("second-order terms", hint, altered(case, **changed))


def forgotten_mask(case: Case) -> Iterator[Suspect]:
    """A ticket's mask has an effect on the first weights, but none on gradients."""
    masks = case.named(MASK)
    if case.kind != "episode" or not masks:
        return
    pruned = {PARAM + name: case.inputs[PARAM + name] * mask for name, mask in masks.items()}
    dense = {name: value for name, value in case.inputs.items() if not name.startswith(MASK)} | pruned
    hint = "gradients were not masked, so weights that the ticket pruned moved away from zero"
    yield suspect("masked gradients", hint, replace(case, inputs=dense))
    hint = "the answer was not masked, only the inner steps were"
    yield Suspect("masked gradients", hint, partial(_only_steps_masked, replace(case, inputs=dense), case))


def _only_steps_masked(dense: Case, case: Case) -> Arrays:
    network, w = start(dense)
    learner = replace(learner_of(dense, network), moves=ticket_of(case, network.layout))
    found = answer(dense, network, w, learner)
    return {name: found[name].astype(case.dtype) for name in case.outputs}


def wrong_statistics(case: Case) -> Iterator[Suspect]:
    """The query samples of a test are normalised in the other way."""
    given = case.settings.get("statistics")
    words = {"transductive": "query", "support": "support"}
    if case.kind == "episode_test" and given in words:
        (other,) = words.keys() - {given}
        hint = f"the statistics were those of the {words[other]} samples; the setting statistics is {given}"
        yield suspect("statistics of a test", hint, altered(case, statistics=other))


def wrong_ticket(case: Case) -> Iterator[Suspect]:
    """A ticket starts from other weights, or its mask is chosen in another way."""
    if case.kind != "ticket":
        return
    settings = case.settings
    if settings["finder"] == "pmt":
        other = {"min": "max", "max": "min"}[settings["rule"]]
        hint = f"the search stopped by the {other} of the queue; the setting rule is {settings['rule']}"
        yield suspect("rule of the queue", hint, altered(case, rule=other))
    else:
        other = {"global": "layers", "layers": "global"}[settings["scope"]]
        words = {"global": "over all layers together", "layers": "in each layer by itself"}
        hint = f"weights were compared {words[other]}; the setting scope is {settings['scope']}"
        yield suspect("scope of pruning", hint, altered(case, scope=other))
        hint = "the last layer was pruned too; a ticket prunes convolutions and keeps all of the head"
        yield Suspect("head pruned", hint, partial(_with_head, case))
    yield from _elsewhere(case)


def _with_head(case: Case) -> Arrays:
    """The weight of the last layer competes with those of convolutions, or loses the same share."""
    layout, weights = network_of(case.settings).layout, case.inputs["weights"]
    head = layout.by_name[f"{layout.slots[-1].name.rpartition('.')[0]}.weight"]
    slots = [*prunable(layout), head]
    sizes = [slot.stop - slot.start for slot in slots]
    counts = SCOPES[case.settings["scope"]](sizes, case.settings["pruned"])
    mask = choose_of(slots, np.abs(weights[-1]), counts)
    first = weights[case.settings["rewind"]].copy()
    for slot in slots:
        first[slot.start : slot.stop] *= mask.layers[slot.name].ravel()
    return {MASK + name: kept for name, kept in mask.layers.items()} | {"start": first}


def _elsewhere(case: Case) -> Iterator[Suspect]:
    """The ticket starts from the weights of another iteration."""
    weights, right = case.inputs["weights"], case.settings.get("rewind", 0)
    for k in [k for k in range(len(weights)) if k != right]:
        moved = weights.copy()
        moved[right] = weights[k]
        hint = f"the ticket started from the weights after {k} iterations; it starts from those after {right}"
        yield suspect("no rewind", hint, altered(case, {"weights": moved}))
