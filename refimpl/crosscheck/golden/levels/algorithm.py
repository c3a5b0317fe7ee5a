"""Level `algorithm`: rounds of Algorithm 1 with given nodes, batches and noise.

Kind `algorithm`. Inputs: param.* (w_0), indptr and indices: the groups of the penalty, of entries of phi
(0 is the first entry of w behind the backbone); node<i>.x (M_i, *input_shape) and node<i>.labels (M_i,) for
i = 0..n-1; batches (K, n, S, B): the samples of round k, node i, step s; noise.<gate> (K, n, S, B, channels)
in mode `gumbel`. Settings: those of a network, lam, eta, steps S (local ones), rounds K, nodes n, schedule
({"name", "beta"}) and penalty (`levels/prox.py`; it acts on phi only, and on nothing without gates).

Some settings are there only where a case uses them. eta_gate: the step size of phi in the local steps.
rho_rise: the penalty of round k is min(1, k/rho_rise) times the given one. tau_end: the temperature of round
k is tau (tau_end/tau)^((k - 1)/(K - 1)).

x_0 = xag_0 = w_0. Round k = 1..K: md = (1 - a) xag + a x; every node runs S local steps from md, as in
`levels/local.py`; g = lam (md - mean of the nodes' w); x <- prox_{l h}(x - l g); xag <- prox_{b h}(md - b g).

| schedule | a | b | l |
| --- | --- | --- | --- |
| ghadimi-lan | 2/(k+1) | beta | k beta/2 |
| nesterov | 2/(k+1) | beta | (k+1) beta/2 |
| proximal-gradient | 1 | beta | beta |

Outputs, for every round, as vectors: round<k>.md, round<k>.g, round<k>.x, round<k>.xag. With
these settings xag alone.

Source: mathematics.md §4. Derived.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from refimpl.contracts import Penalty
from refimpl.crosscheck.golden.case import NOISE, Arrays, Case
from refimpl.crosscheck.golden.draw import Draw, gates_of, network_settings
from refimpl.crosscheck.golden.levels.local import NO_RANDOM_NUMBERS, GivenBatches, batches_of, start
from refimpl.crosscheck.golden.levels.prox import penalty_of
from refimpl.crosscheck.golden.models import tiny
from refimpl.crosscheck.golden.subject import Subject
from refimpl.federated.local import LocalSettings
from refimpl.federated.methods.metagater import MetaGater
from refimpl.kernels import vector
from refimpl.nn.context import Gating
from refimpl.nn.network import Network
from refimpl.optim.prox import Rising, Separable, Zero
from refimpl.registry import SCHEDULES

ROUNDS, NODES, STEPS, BATCH = 10, 3, 2, 4
MORE = (2, 5, 3)  # samples of the nodes beyond one batch
OWN_ROUNDS = 3  # with a user's network, which may have many parameters
LAM, ETA, BETA = 2.0, 0.2, 0.2
GROUP_LASSO = {"type": "group_lasso", "rho": 0.05}
# Settings of the case `options`, whose groups hold no biases.
OPTIONS = {"eta_gate": 0.3, "rho_rise": 4.0, "tau_end": 0.25}

Row = tuple[str, str, str, dict[str, Any] | None]
# title: gating, schedule, penalty (None: no gates)
_CASES: tuple[Row, ...] = (
    ("ungated", "hard", "ghadimi-lan", None),
    ("hard", "hard", "ghadimi-lan", GROUP_LASSO),
    ("gumbel", "gumbel", "ghadimi-lan", GROUP_LASSO),
    ("soft-bounded", "soft", "nesterov", {"type": "bounded_group_lasso", "rho": 0.05, "radius": 1.2}),
    ("ste-l1", "ste", "proximal-gradient", {"type": "l1", "rho": 0.05}),
    ("options", "soft", "ghadimi-lan", GROUP_LASSO),
)


def cases(seed: int, dtype: str) -> Iterator[Case]:
    """Cases for schedules, penalties and modes."""
    for row in _CASES:
        yield _case(row[0], Subject(tiny(gated=row[-1] is not None), BATCH), row, ROUNDS, seed, dtype)


def own_cases(own: Subject, seed: int, dtype: str) -> Iterator[Case]:
    """The same schedules, penalties and modes with a user's network, for some rounds."""
    for row in _CASES:
        if own.gated == (row[-1] is not None):
            yield _case(f"{own.name}-{row[0]}", own, row, OWN_ROUNDS, seed, dtype)


def _case(title: str, subject: Subject, row: Row, rounds: int, seed: int, dtype: str) -> Case:
    """A case with the gating, schedule and penalty of a row."""
    name, mode, schedule, penalty = row
    draw, network = subject.draw(f"algorithm {title}", seed, dtype), subject.network
    settings = network_settings(network, Gating(mode)) | {
        "lam": LAM,
        "eta": ETA,
        "steps": STEPS,
        "rounds": rounds,
        "nodes": NODES,
        "schedule": {"name": schedule, "beta": BETA},
        "penalty": penalty or {"type": "zero"},
        **(OPTIONS if name == "options" else {}),
    }
    inputs = _inputs(draw, subject, settings)
    values = ("xag",) if name == "options" else ("md", "g", "x", "xag")
    outputs = tuple(f"round{k}.{value}" for k in range(1, rounds + 1) for value in values)
    return Case(f"algorithm/{title}", "algorithm", dtype, inputs, settings, outputs)


def _inputs(draw: Draw, subject: Subject, settings: Mapping[str, Any]) -> Arrays:
    network, batch = subject.network, subject.batch
    inputs = draw.params(network.layout, subject.zeros)
    inputs["indptr"], inputs["indices"] = network.grouped_gates(with_bias="rho_rise" not in settings)
    sizes = [batch + more for more in MORE]
    for node, size in enumerate(sizes):
        inputs[f"node{node}.x"], inputs[f"node{node}.labels"] = draw.samples(network, size)
    shape = (settings["rounds"], NODES, STEPS, batch)
    batches = np.empty(shape, dtype=np.int64)
    for index in np.ndindex(*shape[:3]):
        batches[index] = draw.rng.permutation(sizes[index[1]])[:batch]
    inputs["batches"] = batches
    if settings["gating"]["mode"] == "gumbel":
        inputs |= draw.noise(gates_of(network), *shape)
    return inputs


# --- what this package computes ---------------------------------------------------------------------


class Rounds(NamedTuple):
    """What the rounds of a case are made of: its network, its start and its method."""

    case: Case
    network: Network
    w0: np.ndarray
    method: MetaGater

    @classmethod
    def of(cls, case: Case) -> Rounds:
        """What the rounds of this case are made of."""
        network, w = start(case)
        settings, phi = case.settings, network.layout.phi
        own = (phi.start, phi.stop, settings["eta_gate"]) if "eta_gate" in settings else None
        solver = LocalSettings(settings["lam"], settings["eta"], settings["steps"], own)
        schedule = SCHEDULES[settings["schedule"]["name"]](settings["schedule"]["beta"])
        penalty: Penalty = Zero()
        if network.gates:
            penalty = Separable(((phi, penalty_of(case, phi.stop - phi.start)),))
            penalty = Rising(penalty, settings["rho_rise"]) if "rho_rise" in settings else penalty
        return cls(case, network, w, MetaGater(solver, schedule, penalty))

    def penalty(self, k: int) -> Penalty:
        """The penalty of round k."""
        penalty = self.method.penalty
        return penalty.at(k) if isinstance(penalty, Rising) else penalty

    def mean(self, k: int, point: np.ndarray, sizes: Sequence[int] | None = None) -> np.ndarray:
        """The mean of the nodes' answers in round k to the point: uniform, or weighted by the sizes."""
        nodes, case = range(self.case.settings["nodes"]), cooled(self.case, k)
        tasks = [_node_task(case, self.network, k - 1, node) for node in nodes]
        answers = np.stack([self.method.local(task, point, NO_RANDOM_NUMBERS).w for task in tasks])
        return mean_of(answers) if sizes is None else np.average(answers, 0, sizes).astype(answers.dtype)


def compute(case: Case) -> Arrays:
    """md, g, x and xag of every round; the server computes g from the nodes' mean."""
    run = Rounds.of(case)
    method, found = run.method, dict[str, np.ndarray]()
    state = method.start(run.w0)
    for k in range(1, case.settings["rounds"] + 1):
        point = method.broadcast(state, k)
        mean = run.mean(k, point)
        state, _ = method.server(state, k, point, mean)
        gradient = point.dtype.type(case.settings["lam"]) * (point - mean)
        values = {"md": point, "g": gradient, "x": state["x"], "xag": state["ag"]}
        found |= {f"round{k}.{name}": value for name, value in values.items()}
    return found


def cooled(case: Case, k: int) -> Case:
    """The case with the temperature of round k."""
    settings, gating = case.settings, case.settings["gating"]
    if "tau_end" not in settings:
        return case
    share = (k - 1) / max(1, settings["rounds"] - 1)
    tau = gating["tau"] * (settings["tau_end"] / gating["tau"]) ** share
    return replace(case, settings={**settings, "gating": {**gating, "tau": tau}})


def _node_task(case: Case, network: Network, k: int, node: int) -> GivenBatches:
    """The batches of node `node` in round k (counted from 0)."""
    chosen = case.inputs["batches"][k, node]
    x, labels = case.inputs[f"node{node}.x"][chosen], case.inputs[f"node{node}.labels"][chosen]
    noise = {gate: array[k, node] for gate, array in case.named(NOISE).items()}
    return batches_of(case, network, x, labels, noise)


def mean_of(rows: np.ndarray) -> np.ndarray:
    """The uniform mean, as the server computes it."""
    mean = np.empty_like(rows[0])
    vector.mean_of_rows(rows, np.full(len(rows), 1 / len(rows)), mean)
    return mean


KINDS = {"algorithm": compute}
