"""From a configuration to a trained meta-model and adapted target nodes: the library's front door.

`prepare` builds nodes, network and method; `train` runs the rounds into a run folder (or without one);
`adapt_targets` personalises at the target nodes. The command line only parses and prints.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refimpl import accel, prox
from refimpl.config import Config
from refimpl.data.catalog import load
from refimpl.data.node import Node
from refimpl.data.partition import make_nodes
from refimpl.errors import InputError
from refimpl.federated.fedavg import FedAvg
from refimpl.federated.local import LocalSettings
from refimpl.federated.metagater import MetaGater
from refimpl.federated.perfedavg import PerFedAvgFO
from refimpl.federated.rounds import Method, RoundRecord, State
from refimpl.nn import zoo
from refimpl.nn.context import Gating
from refimpl.nn.network import Network
from refimpl.nn.objective import NetworkTask
from refimpl.rng import SeedTree

OnRound = Callable[[RoundRecord], None]


@dataclass(frozen=True)
class Experiment:
    """A prepared run: configuration, network, nodes, method, and the seed tree they came from."""

    config: Config
    network: Network
    train_nodes: tuple[Node, ...]
    target_nodes: tuple[Node, ...]
    method: Method
    seeds: SeedTree
    note: str = ""

    @property
    def gating(self) -> Gating:
        """Gate settings of training and adaptation."""
        return Gating(self.config.gate_mode, self.config.tau, self.config.gate_grad)

    def tasks(self) -> list[NetworkTask]:
        """The training nodes' learning problems (their test parts are not in them)."""
        return [
            NetworkTask(
                self.network, node.train.x, node.train.y, self.gating, batch_size=self.config.batch_size
            )
            for node in self.train_nodes
        ]

    def start(self) -> State:
        """The method's state before round 1."""
        return self.method.start(self.network.layout.initialise(self.seeds, self.config.dtype))


def default_threads() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def build_network(config: Config, input_shape: Sequence[int], classes: int, gated: bool) -> Network:
    """The configured network for samples of `input_shape`; `gated` puts gates on `config.gates`."""
    gates = tuple(config.gates) if gated else ()
    if config.model == "mlp":
        return zoo.mlp((int(np.prod(input_shape)), 100, classes), gates)
    if config.model == "digits":
        if tuple(input_shape) != (1, 8, 8):
            raise InputError(f"model digits reads 8x8 grey images, {config.dataset} has {tuple(input_shape)}")
        return zoo.digits(classes=classes, gates=gates)
    build = {"cnn3": zoo.cnn3, "cnn7": zoo.cnn7}[config.model]
    return build(tuple(input_shape), classes=classes, gates=gates)


def is_gated(config: Config) -> bool:
    """Whether the method meta-trains gates."""
    return config.method == "metagater"


def build_penalty(config: Config, network: Network) -> prox.Penalty:
    """h(w): zero on the backbone, the configured regulariser on phi."""
    phi = network.layout.phi
    if not network.gates or config.penalty == "zero" or config.rho == 0:
        return prox.Zero()
    indptr, indices = network.gate_groups
    gate: prox.Penalty
    if config.penalty == "l1":
        gate = prox.L1(config.rho)
    elif config.penalty == "group-lasso":
        gate = prox.GroupLasso(indptr, indices, config.rho)
    else:
        gate = prox.BoundedGroupLasso(indptr, indices, config.rho, config.radius)
    return prox.Separable(((phi, gate),))


SCHEDULES = {
    "ghadimi-lan": accel.GhadimiLan,
    "proximal-gradient": accel.ProximalGradient,
    "nesterov": accel.Nesterov,
}


def build_method(config: Config, network: Network) -> Method:
    """The configured federated method."""
    if config.method == "fedavg":
        return FedAvg(config.eta, config.local_steps)
    if config.method == "perfedavg":
        return PerFedAvgFO(config.alpha, config.eta, config.local_steps)
    local = LocalSettings(config.lam, config.eta, config.local_steps)
    schedule = SCHEDULES[config.schedule](config.beta)
    return MetaGater(local, schedule, build_penalty(config, network), config.method)


def prepare(config: Config, data_dir: str | Path | None = None) -> Experiment:
    """Load the data, cut it into nodes, build network and method."""
    seeds = SeedTree(config.seed)
    dataset = load(config.dataset, data_dir)
    train_nodes, target_nodes = make_nodes(
        dataset,
        seeds,
        nodes=config.nodes,
        targets=config.targets,
        classes_per_node=config.classes_per_node,
        sizes=(config.node_min, config.node_max),
        support=config.support,
        test_share=config.test_share,
        dtype=config.dtype,
    )
    network = build_network(config, dataset.sample_shape, dataset.classes, is_gated(config))
    method = build_method(config, network)
    return Experiment(config, network, tuple(train_nodes), tuple(target_nodes), method, seeds, dataset.note)
