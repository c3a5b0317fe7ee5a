"""Compile what training, adaptation and evaluation need, by doing a little of each.

Numba compiles a function for the types it is first called with and keeps the machine code on disk; so one
step on a small network in each floating-point type is enough, whatever the networks used later.

Source: mathematics.md §4, §6 (what is computed once). Derived.
"""

from __future__ import annotations

import numpy as np

from refimpl.federated.adapt import AdaptSettings, report_node
from refimpl.federated.local import LocalSettings
from refimpl.federated.methods.metagater import MetaGater
from refimpl.federated.rounds import Participation, run_rounds
from refimpl.nn import zoo
from refimpl.nn.task import NetworkTask
from refimpl.optim import accel, prox
from refimpl.registry import PENALTIES
from refimpl.rng import SeedTree


def warm_up(dtype: str = "float32") -> None:
    """One round of MetaGater and one adaptation of a small gated CNN in `dtype`."""
    network, rng = zoo.digits((2, 2)), np.random.default_rng(0)
    x, y = rng.standard_normal((4, 1, 8, 8)).astype(dtype), np.array([0, 1, 0, 1])
    phi = network.layout.phi
    groups = prox.Groups(*network.gate_groups, size=phi.stop - phi.start)
    penalty = prox.Separable(((phi, prox.GroupLasso(groups, 0.01)),))
    method = MetaGater(LocalSettings(1.0, 0.1, 1), accel.GhadimiLan(0.5), penalty)
    w = network.layout.initialise(SeedTree(0), dtype)
    tasks = [NetworkTask(network, x, y, batch_size=2)]
    for state, _ in run_rounds(method, tasks, method.start(w), range(1, 2), Participation(), SeedTree(0)):
        report_node("", network, method.model(state), (x, y), (x, y), AdaptSettings(0.1, 0.1))


def warm_up_options(dtype: str = "float32") -> None:
    """What only some options need: a run with the usual ones would wait for it in vain."""
    v = np.ones(3, dtype)
    usual = {name: key.default for name, key in PENALTIES.keys().items()}
    for penalty in PENALTIES:
        PENALTIES.make(penalty, usual, groups=prox.Groups.from_sizes([v.size])).prox(v, 1.0, v)
