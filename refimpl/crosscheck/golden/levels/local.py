"""Level `local`: the iterates of a node's local problem.

Kind `local`. Inputs: param.* (the centre), x (S, B, *input_shape) and labels (S, B): the batch of every
step; noise.<gate> (S, B, K) in mode `gumbel`. Settings: those of a network (`levels/networks.py`), lam, eta,
steps S. Step s = 1..S, from w = centre: w <- w - eta (g(w) + lam (w - centre)), g the gradient of the mean
cross-entropy on the step's batch. Outputs, for every step: step<s>.loss at w before it, step<s>.gradient =
g(w), step<s>.w after it, as vectors.

Source: mathematics.md §3. Derived.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from refimpl.contracts import Objective
from refimpl.crosscheck.golden.case import NOISE, Arrays, Case
from refimpl.crosscheck.golden.describe import network_of
from refimpl.crosscheck.golden.draw import network_settings
from refimpl.crosscheck.golden.levels.networks import context_of
from refimpl.crosscheck.golden.models import model, tiny
from refimpl.crosscheck.golden.subject import Subject
from refimpl.federated.local import LocalSettings, solve_local
from refimpl.nn.context import MODES, Gating
from refimpl.nn.network import Network
from refimpl.nn.objective import NetworkObjective

STEPS, BATCH = 4, 5
LAM, ETA = 1.5, 0.1


def cases(seed: int, dtype: str) -> Iterator[Case]:
    """Cases without gates, in every mode, and with a convolutional network."""
    for title, network, gating in (
        ("ungated", tiny(gated=False), Gating()),
        *((mode, tiny(), Gating(mode)) for mode in MODES),
        ("active", tiny(), Gating(gate_grad="active")),
        ("digits", model("digits"), Gating()),
    ):
        yield _case(title, Subject(network, BATCH), gating, seed, dtype)


def own_cases(own: Subject, seed: int, dtype: str) -> Iterator[Case]:
    """Cases of a user's network in every mode."""
    for title, gating in own.modes().items():
        yield _case(title, own, gating, seed, dtype)


def _case(title: str, subject: Subject, gating: Gating, seed: int, dtype: str) -> Case:
    draw, network = subject.draw(f"local {title}", seed, dtype), subject.network
    inputs = draw.inputs(network, gating, STEPS, subject.batch, zeros=subject.zeros)
    settings = network_settings(network, gating) | {"lam": LAM, "eta": ETA, "steps": STEPS}
    outputs = tuple(f"step{s}.{what}" for s in range(1, STEPS + 1) for what in ("loss", "gradient", "w"))
    return Case(f"local/{title}", "local", dtype, inputs, settings, outputs)


# --- what this package computes ---------------------------------------------------------------------

NO_RANDOM_NUMBERS = np.random.default_rng(0)  # batches and noise are given


@dataclass(frozen=True)
class GivenBatches:
    """A node's task whose batches are fixed beforehand."""

    objectives: Sequence[Objective]
    size: int = 1

    def draw(self, rng: np.random.Generator, count: int) -> Iterable[Objective]:
        """The first `count` batches."""
        return self.objectives[:count]


def start(case: Case) -> tuple[Network, np.ndarray]:
    """The network and the parameters of a case."""
    network = network_of(case.settings)
    return network, network.layout.from_arrays(case.params(), case.dtype)


def batches_of(
    case: Case, network: Network, x: np.ndarray, labels: np.ndarray, noise: Arrays
) -> GivenBatches:
    """The task with a batch for each of x (S, B, ...), labels (S, B) and, by gate, noise (S, B, K)."""
    contexts = [context_of(case, {gate: array[s] for gate, array in noise.items()}) for s in range(len(x))]
    return GivenBatches(
        [NetworkObjective(network, x[s], labels[s], context) for s, context in enumerate(contexts)]
    )


def compute(case: Case) -> Arrays:
    """Loss, gradient and iterate of every step; iterate s is the result of a solve with s steps."""
    network, centre = start(case)
    task = batches_of(case, network, case.inputs["x"], case.inputs["labels"], case.named(NOISE))
    found: Arrays = {}
    w = centre
    for s, objective in enumerate(task.objectives, start=1):
        gradient = np.empty_like(w)
        found[f"step{s}.loss"] = np.array(objective(w, gradient))
        found[f"step{s}.gradient"] = gradient
        solver = LocalSettings(case.settings["lam"], case.settings["eta"], s)
        w = found[f"step{s}.w"] = solve_local(task, centre, solver, NO_RANDOM_NUMBERS).w
    return found


KINDS = {"local": compute}
