"""Level `baselines`: one round of each comparison method.

Kind `baseline`. Inputs: param.* (the server's w); x (n, D, B, *input_shape) and labels (n, D, B): the D
batches of every node, in the order in which the method uses them. Settings: those of a network, method,
nodes n and the method's numbers. g is the gradient on one batch; batches are used once, in order (pfedme:
one for each local step). Every node starts from the server's w and does `steps` steps:

| method | a step, and the server |
| --- | --- |
| fedavg | w <- w - eta g(w); mean |
| reptile | the same; w + eps (mean - w) |
| perfedavg | t = w - alpha g(w); w <- w - beta g'(t); mean |
| perfedavg-hf | t as before, v = g'(t), d = (g''(w + delta v) - g''(w - delta v))/(2 delta), w <- w - beta (v - alpha d); mean |
| fomaml | `inner_steps` steps t <- t - alpha g(t) from w; w <- w - beta g'(t); mean |
| maml | the same with the exact gradient of g'-batch's loss at t as a function of w; mean |
| pfedme | `prox_steps` steps t <- t - eta_prox (g(t) + lam (t - w)) from w on one batch; w <- w - eta lam (w - t); w + beta (mean - w) |

Outputs, as vectors: node<i>.w for every node, and w, the server's.

Source: mathematics.md §10. Derived.
"""  # noqa: E501 - a row of a table is one line

from collections.abc import Iterator
from typing import Any

import numpy as np

from refimpl.contracts import Method
from refimpl.crosscheck.golden.case import Arrays, Case
from refimpl.crosscheck.golden.draw import network_settings
from refimpl.crosscheck.golden.levels.algorithm import mean_of
from refimpl.crosscheck.golden.levels.local import NO_RANDOM_NUMBERS, batches_of, start
from refimpl.crosscheck.golden.models import tiny
from refimpl.crosscheck.golden.subject import Subject
from refimpl.nn.context import Gating
from refimpl.registry import METHODS, keys_of

NODES, STEPS, BATCH = 3, 2, 4

# By name: the batches of a step, and the method's numbers.
NUMBERS: dict[str, tuple[int, dict[str, Any]]] = {
    "fedavg": (1, {"eta": 0.2}),
    "reptile": (1, {"eta": 0.2, "eps": 0.6}),
    "perfedavg": (2, {"alpha": 0.15, "beta": 0.2}),
    "perfedavg-hf": (3, {"alpha": 0.15, "beta": 0.2, "delta": 0.01}),
    "fomaml": (3, {"alpha": 0.15, "beta": 0.2, "inner_steps": 2}),
    "maml": (3, {"alpha": 0.15, "beta": 0.2, "inner_steps": 2}),
    "pfedme": (1, {"lam": 1.5, "eta_prox": 0.1, "prox_steps": 3, "eta": 0.2, "beta": 0.8}),
}
# The names that the settings of a case have for a method's keys, where they differ.
NAMES_OF = {
    "fedavg": {"local_steps": "steps"},
    "reptile": {"local_steps": "steps", "mix": "eps"},
    "pfedme": {"local_steps": "steps", "mix": "beta", "alpha": "eta_prox", "inner_steps": "prox_steps"},
}
NAMES = {"local_steps": "steps", "eta": "beta"}  # for the other methods


def cases(seed: int, dtype: str) -> Iterator[Case]:
    """Cases of every method without gates, and of the meta-gradient methods also with soft gates."""
    for method in NUMBERS:
        yield _case(method, method, Subject(tiny(gated=False), BATCH), seed, dtype)
    for method in ("fedavg", "perfedavg", "maml"):
        yield _case(f"{method}-soft", method, Subject(tiny(), BATCH), seed, dtype)


def own_cases(own: Subject, seed: int, dtype: str) -> Iterator[Case]:
    """Cases of every method with a user's network, whose gates, if it has any, are soft."""
    for method in NUMBERS:
        yield _case(f"{own.name}-{method}", method, own, seed, dtype)


def _case(title: str, method: str, subject: Subject, seed: int, dtype: str) -> Case:
    batches, numbers = NUMBERS[method]
    draw, network = subject.draw(f"baselines {title}", seed, dtype), subject.network
    gating = Gating("soft" if subject.gated else "hard")
    inputs = draw.inputs(network, gating, NODES, batches * STEPS, subject.batch, zeros=False)
    settings = network_settings(network, gating)
    settings |= {"method": method, "nodes": NODES, "steps": STEPS, **numbers}
    outputs = (*(f"node{node}.w" for node in range(NODES)), "w")
    return Case(f"baselines/{title}", "baseline", dtype, inputs, settings, outputs)


# --- what this package computes ---------------------------------------------------------------------


def compute(case: Case) -> Arrays:
    """One round: the answers of the nodes and the new model of the server."""
    network, w = start(case)
    name = case.settings["method"]
    names = NAMES_OF.get(name, NAMES)
    values = {key: case.settings[names.get(key, key)] for key in keys_of(METHODS[name])}
    method: Method = METHODS.make(name, values)
    rows = []
    for node in range(case.settings["nodes"]):
        task = batches_of(case, network, case.inputs["x"][node], case.inputs["labels"][node], {})
        rows.append(method.local(task, w, NO_RANDOM_NUMBERS).w)
    state, _ = method.server(method.start(w), 1, w, mean_of(np.stack(rows)))
    return {f"node{node}.w": row for node, row in enumerate(rows)} | {"w": method.model(state)}


KINDS = {"baseline": compute}
