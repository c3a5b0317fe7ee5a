"""A node's side of a round: its own samples, and the work that the server asks for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from refimpl.data.arrays import read_arrays
from refimpl.data.catalog import load
from refimpl.data.node import Node
from refimpl.data.partition import fill
from refimpl.engine.job import Job
from refimpl.engine.messages import Hello, Question, Sealed, answer, opened, whole
from refimpl.errors import ConfigError, DataError, InputError
from refimpl.experiments.dealing import deal
from refimpl.experiments.experiment import Experiment
from refimpl.experiments.methods import build_method
from refimpl.files.paths import expanded
from refimpl.rng import SeedTree

_dataset = lru_cache(maxsize=1)(load)  # many nodes of a simulation are in one process


@dataclass(frozen=True)
class Worker:
    """Node `number` of a job. data: the file of its own samples, or the folder with the job's data set."""

    job: Job
    number: int
    data: str | Path | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.job.config.nodes:
            raise ConfigError(
                f"node: expected a partition-id from 0 to {self.job.config.nodes - 1}, got {self.number}"
            )

    @cached_property
    def node(self) -> Node:
        """The node's samples; those of other nodes are not kept."""
        config = self.job.config
        if not self.job.own:
            dataset = _dataset(config.dataset, self.data)
            (node,) = fill(dataset, [deal(config, dataset)[self.number]], config.dtype)
            return node
        if self.data is None:
            raise ConfigError('node: expected the file of its samples; give data="FILE.npz" in --node-config')
        dataset = read_arrays(expanded(self.data), self.job.classes)
        if dataset.shape != self.job.shape:
            raise DataError(f"{self.data}: expected samples of shape {self.job.shape}, got {dataset.shape}")
        part = slice(dataset.n_train)
        x, y = dataset.x(part, config.dtype), dataset.y[part]
        return Node(f"own-{self.number}", x, y, len(y), 0)

    @cached_property
    def experiment(self) -> Experiment:
        """The experiment with this node alone."""
        job, network = self.job, self.job.network()
        method, seeds = build_method(job.config, network), SeedTree(job.config.seed)
        return Experiment(job.config, network, (self.node,), (), method, seeds)

    def hello(self) -> Hello:
        """What the node says of itself when it is asked who it is."""
        return Hello(self.number, self.node.n_train)

    def answer(self, message: Sealed) -> Sealed:
        """Solve the local problem that the server asks for; `InputError` for a question of another kind."""
        one, who = self.experiment, f"node {self.number}"
        round_, number = (whole(who, message.numbers, name) for name in ("round", "node"))
        if number != self.number or not 1 <= round_ <= self.job.config.rounds:
            raise InputError(f"{who}: expected a question to it, got one to node {number} in round {round_}")
        point = opened(who, message, one.network.layout.size, self.job.config.dtype)
        (task,) = one.tasks(self.threads, round_)
        rng = one.seeds.generator("local", round_, number)
        return answer(Question(round_, number, point), one.method.local(task, point, rng))
