"""Local problems, rounds, adaptation and baselines on given batches, computed by the methods themselves.

Source: mathematics.md §3, §4, §6, §10. Derived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refimpl.crosscheck.golden.case import NOISE, Arrays, Case
from refimpl.crosscheck.golden.describe import network_of
from refimpl.crosscheck.golden.ours.blocks import context_of
from refimpl.crosscheck.golden.ours.prox import penalty_of
from refimpl.federated.adapt import AdaptSettings, adapt
from refimpl.federated.local import LocalSettings, Objective, solve_local
from refimpl.federated.methods.fedavg import FedAvg
from refimpl.federated.methods.fomaml import FOMAML
from refimpl.federated.methods.maml import MAML
from refimpl.federated.methods.metagater import MetaGater
from refimpl.federated.methods.perfedavg import PerFedAvgFO
from refimpl.federated.methods.perfedavg_hf import PerFedAvgHF
from refimpl.federated.methods.pfedme import PFedMe
from refimpl.federated.methods.reptile import Reptile
from refimpl.federated.rounds import Method
from refimpl.kernels import vector
from refimpl.nn.context import Gating
from refimpl.nn.network import Network
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.predict import predict
from refimpl.optim import accel
from refimpl.optim.prox import Penalty, Separable, Zero

_NO_RANDOM_NUMBERS = np.random.default_rng(0)  # batches and noise are given


@dataclass(frozen=True)
class GivenBatches:
    """A node's task whose batches are fixed beforehand."""

    objectives: Sequence[Objective]
    size: int = 1

    def draw(self, rng: np.random.Generator, count: int) -> Iterable[Objective]:
        """The first `count` batches."""
        return self.objectives[:count]


def _start(case: Case) -> tuple[Network, np.ndarray]:
    network = network_of(case.settings)
    return network, network.layout.from_arrays(case.params(), case.dtype)


def _objectives(
    case: Case, network: Network, x: np.ndarray, labels: np.ndarray, noise: Arrays
) -> Iterator[NetworkObjective]:
    """An objective for each batch: x (S, B, ...), labels (S, B), noise (S, B, K) by gate."""
    for s in range(len(x)):
        context = context_of(case, {gate: array[s] for gate, array in noise.items()})
        yield NetworkObjective(network, x[s], labels[s], context)


def local(case: Case) -> Arrays:
    """Loss, gradient and iterate of every step; iterate s is the result of a solve with s steps."""
    network, centre = _start(case)
    lam, eta = case.settings["lam"], case.settings["eta"]
    batches = list(_objectives(case, network, case.inputs["x"], case.inputs["labels"], case.named(NOISE)))
    found: Arrays = {}
    w = centre
    for s, objective in enumerate(batches, start=1):
        gradient = np.empty_like(w)
        found[f"step{s}.loss"] = np.array(objective(w, gradient))
        found[f"step{s}.gradient"] = gradient
        solver = LocalSettings(lam, eta, s)
        w = solve_local(GivenBatches(batches), centre, solver, _NO_RANDOM_NUMBERS).w
        found[f"step{s}.w"] = w
    return found


_SCHEDULES: dict[str, Callable[[float], accel.Schedule]] = {
    "ghadimi-lan": accel.GhadimiLan,
    "nesterov": accel.Nesterov,
    "proximal-gradient": accel.ProximalGradient,
}


def algorithm(case: Case) -> Arrays:
    """md, g, x and xag of every round; the server computes g from the nodes' mean."""
    network, w = _start(case)
    settings, phi = case.settings, network.layout.phi
    solver = LocalSettings(settings["lam"], settings["eta"], settings["steps"])
    schedule = _SCHEDULES[settings["schedule"]["name"]](settings["schedule"]["beta"])
    penalty: Penalty = Zero()
    if network.gates:
        penalty = Separable(((phi, penalty_of(case, phi.stop - phi.start)),))
    method = MetaGater(solver, schedule, penalty)
    state = method.start(w)
    found: Arrays = {}
    for k in range(1, settings["rounds"] + 1):
        point = method.broadcast(state, k)
        mean = _mean_answer(method, point, [_node_task(case, network, k - 1, i) for i in _nodes(case)])
        state, _ = method.server(state, k, point, mean)
        gradient = point.dtype.type(settings["lam"]) * (point - mean)
        values = {"md": point, "g": gradient, "x": state["x"], "xag": state["ag"]}
        found |= {f"round{k}.{name}": value for name, value in values.items()}
    return found


def _nodes(case: Case) -> range:
    return range(case.settings["nodes"])


def _node_task(case: Case, network: Network, k: int, node: int) -> GivenBatches:
    """The batches of node `node` in round k (counted from 0)."""
    chosen = case.inputs["batches"][k, node]
    x, labels = case.inputs[f"node{node}.x"][chosen], case.inputs[f"node{node}.labels"][chosen]
    noise = {gate: array[k, node] for gate, array in case.named(NOISE).items()}
    return GivenBatches(list(_objectives(case, network, x, labels, noise)))


def _mean_answer(method: Method, point: np.ndarray, tasks: Sequence[GivenBatches]) -> np.ndarray:
    rows = np.stack([method.local(task, point, _NO_RANDOM_NUMBERS).w for task in tasks])
    return _mean(rows)


def _mean(rows: np.ndarray) -> np.ndarray:
    """The uniform mean, as the server computes it."""
    mean = np.empty_like(rows[0])
    vector.mean_of_rows(rows, np.full(len(rows), 1 / len(rows)), mean)
    return mean


def adaptation(case: Case) -> Arrays:
    """Both stages; stage I alone is an adaptation with a second rate of zero."""
    network, w = _start(case)
    gating = Gating(**case.settings["gating"])
    rates = {key: case.settings[key] for key in ("eta_phi", "eta_theta", "steps", "lam")}
    both, support = AdaptSettings(**rates, gating=gating), (case.inputs["x"], case.inputs["labels"])
    first = adapt(network, w, *support, replace(both, eta_theta=0.0)).w
    second = adapt(network, w, *support, both).w

    def logits(at: np.ndarray) -> np.ndarray:
        return predict(network, at, case.inputs["x_test"], gating).logits

    return {
        "before.logits": logits(w),
        "stage1.w": first,
        "stage2.w": second,
        "after.logits": logits(second),
    }


# The numbers of a method are the fields of its settings, under the same names.
_METHODS: dict[str, Callable[..., Any]] = {
    "fedavg": FedAvg,
    "reptile": Reptile,
    "perfedavg": PerFedAvgFO,
    "perfedavg-hf": PerFedAvgHF,
    "fomaml": FOMAML,
    "maml": MAML,
    "pfedme": PFedMe,
}
_NUMBERS = ("eta", "eps", "alpha", "beta", "delta", "inner_steps", "lam", "eta_prox", "prox_steps", "steps")


def baseline(case: Case) -> Arrays:
    """One round: the answers of the nodes and the new model of the server."""
    network, w = _start(case)
    numbers = {key: case.settings[key] for key in _NUMBERS if key in case.settings}
    method = _METHODS[case.settings["method"]](**numbers)
    rows = []
    for node in _nodes(case):
        batches = _objectives(case, network, case.inputs["x"][node], case.inputs["labels"][node], {})
        rows.append(method.local(GivenBatches(list(batches)), w, _NO_RANDOM_NUMBERS).w)
    state, _ = method.server(method.start(w), 1, w, _mean(np.stack(rows)))
    return {f"node{node}.w": row for node, row in enumerate(rows)} | {"w": method.model(state)}
