"""From a configuration to a trained meta-model and adapted target nodes: the library's front door.

`prepare` builds nodes, network and method; `train` runs the rounds into a run folder (or without one);
`adapt_targets` personalises at the target nodes. The command line only parses and prints.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from refimpl.contracts import Method, State, nothing
from refimpl.data.catalog import load
from refimpl.data.dataset import DataSet
from refimpl.data.identity import Identity, Recorded, identify
from refimpl.data.node import Node
from refimpl.data.partition import fill
from refimpl.errors import ConfigError, DataError, DivergenceError, InputError
from refimpl.experiments.config import Config, from_table
from refimpl.experiments.dealing import deal, load_again
from refimpl.experiments.methods import build_method, is_gated, prunes
from refimpl.experiments.record import RunFolder
from refimpl.federated.adapt import (
    AdaptSettings,
    NodeReport,
    Personal,
    Target,
    evaluate,
    report,
    unknown,
    usual_adaptation,
)
from refimpl.federated.rounds import Participation, RoundRecord, run_rounds
from refimpl.federated.warmup import warm_up
from refimpl.files.environment import cores
from refimpl.kernels.shaping import Shaping
from refimpl.nn.context import Gating
from refimpl.nn.layout import Layout
from refimpl.nn.network import Network
from refimpl.nn.norms import with_summaries
from refimpl.nn.task import NetworkTask
from refimpl.registry import METHODS, MODELS, STARTS
from refimpl.rng import SeedTree
from refimpl.threads import share

OnRound = Callable[[Any], None]  # is told the record of a round, a named tuple


class Parametrised(Protocol):
    """A network, or several networks, with parameters in one vector w."""

    @property
    def layout(self) -> Layout:
        """Where each parameter lies in w."""


class Modelled(Protocol):
    """The part of a `Method` that says what has been learnt."""

    def model(self, state: State) -> np.ndarray:
        """The meta-model."""


class Trainable(Protocol):
    """What `train` runs: rounds of a method for a network, with settings `rounds` and `checkpoint_every`."""

    @property
    def config(self) -> Any:
        """The settings."""

    @property
    def network(self) -> Parametrised:
        """The network."""

    @property
    def method(self) -> Modelled:
        """The method."""

    @property
    def data(self) -> Identity | None:
        """The data, if they are known."""

    def start(self) -> State:
        """The state before round 1."""

    def rounds(
        self, state: State, rounds: range, threads: int | None = None, first_loss: float = math.nan
    ) -> Iterator[tuple[State, Any]]:
        """The state and the record after each of the rounds."""


@dataclass(frozen=True)
class NodeTasks(Sequence[NetworkTask]):
    """The learning problem of each node's training samples, made when it is asked for.

    nodes: whose samples they are; first: the problem of the first node, which the others are like. Nothing is
    kept for a node but its samples. Source: mathematics.md §3 (L_i of node i).
    """

    nodes: Sequence[Node]
    first: NetworkTask

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, number: Any) -> Any:
        return self.first.on(*self.nodes[number].train)


@dataclass(frozen=True)
class Experiment:
    """A prepared run: configuration `config`, `network`, nodes, `method`, random numbers and data.

    train_nodes take part in the rounds, target_nodes adapt afterwards; seeds: the root of all random numbers;
    data: None where the nodes are arrays of the user's own; note: what a result should mention.
    """

    config: Config
    network: Network
    train_nodes: tuple[Node, ...]
    target_nodes: tuple[Node, ...]
    method: Method
    seeds: SeedTree
    data: Identity | None = None
    note: str = ""

    def __post_init__(self) -> None:
        for node in (*self.train_nodes, *self.target_nodes):
            who = f"node {node.name!r} with {self.network.name}"
            self.network.check_batch(who, node.x, node.x.dtype)
            self.network.check_labels(who, node.y, len(node.y))
        for node in self.target_nodes:
            if not (node.n_support and node.n_test):
                raise InputError(
                    f"node {node.name!r}: a target node needs samples to adapt on and to test on, "
                    f"got {node.n_support} and {node.n_test}"
                )

    @property
    def gating(self) -> Gating:
        """Gate settings of adaptation; pruning closes channels by gates that decide as usual."""
        if not is_gated(self.config):
            return Gating()
        return Gating(self.config.gate_mode, self.config.tau_end or self.config.tau, self.config.gate_grad)

    def gating_in(self, round_: int) -> Gating:
        """Gate settings of a round, counted from 1: tau goes geometrically to tau_end, shaping falls to 0."""
        gating, config = self.gating, self.config
        if not is_gated(config):
            return gating
        cooling = (gating.tau / config.tau) ** ((round_ - 1) / max(1, config.rounds - 1))
        fallen = min(1.0, round_ / (config.shaping_fall * config.rounds)) if config.shaping_fall else 0.0
        shaping = Shaping(config.shaping * (1 - fallen), config.shaping_a, config.shaping_b)
        return replace(gating, tau=config.tau * cooling, shaping=shaping)

    @property
    def anneals(self) -> bool:
        """Whether the gates' settings differ between rounds."""
        config = self.config
        changes = config.tau_end not in (0, config.tau) or (config.shaping and config.shaping_fall)
        return is_gated(config) and bool(changes)

    def tasks(self, threads: int = 1, round_: int = 1) -> NodeTasks:
        """The training nodes' learning problems (their test parts are not in them), with threads for each."""
        batch, gating = self.config.batch_size, self.gating_in(round_)
        first = NetworkTask(
            self.network, *self.train_nodes[0].train, gating, batch_size=batch, threads=threads
        )
        return NodeTasks(self.train_nodes, first)

    def start(self) -> State:
        """The method's state before round 1."""
        return self.method.start(self._first)

    @cached_property
    def _first(self) -> np.ndarray:
        """The first parameters w (d,), drawn from the seed; gates start as configured."""
        w = self.network.layout.initialise(self.seeds, self.config.dtype)
        start = STARTS.make(self.config.gate_start, self.config.table())
        return start.begin(self.network, w, [node.train[0] for node in self.train_nodes])

    def rounds(
        self, state: State, rounds: range, threads: int | None = None, first_loss: float = math.nan
    ) -> Iterator[tuple[State, RoundRecord]]:
        """Run `rounds` from `state`, with all cores unless told otherwise; see `run_rounds`.

        Threads are for nodes, and where these are fewer, for the samples of each.
        """
        nodes, threads = Participation(self.config.per_round, self.config.weighted), threads or cores()
        own = threads // max(1, self.config.per_round or len(self.train_nodes))
        parts = [range(k, k + 1) for k in rounds] if self.anneals else [rounds]
        for part in parts:
            tasks = self.tasks(own, part.start)
            found = run_rounds(self.method, tasks, state, part, nodes, self.seeds, threads, first_loss)
            for state, record in found:
                first_loss = record.loss if math.isnan(first_loss) else first_loss
                yield state, record


def build_network(config: Config, input_shape: Sequence[int], classes: int, gated: bool) -> Network:
    """The configured network for samples of `input_shape`; `gated` puts gates on `config.gates`."""
    model = MODELS.make(config.model, config.table())
    network = model.build(tuple(input_shape), classes, tuple(config.gates) if gated else ())
    return with_summaries(network, config.gate_summary)


def trained_network(config: Config, input_shape: Sequence[int], classes: int) -> Network:
    """The network that is trained; `InputError` also where it lacks layers that adaptation will prune."""
    if prunes(config):
        build_network(config, input_shape, classes, gated=True)
    return build_network(config, input_shape, classes, is_gated(config))


def prepare(
    config: Config, data_dir: str | Path | None = None, recorded: Recorded | None = None
) -> Experiment:
    """Load the data, cut it into nodes, build network and method.

    recorded: the data that the run was begun with; `RunError` says how others differ.
    """
    dataset = load_again(config.dataset, data_dir, recorded)
    shares = deal(config, dataset)
    data = identify(dataset, shares)
    if recorded is not None:
        recorded.check(data)
    nodes = fill(dataset, shares, config.dtype)
    train_nodes, target_nodes = tuple(nodes[: config.nodes]), tuple(nodes[config.nodes :])
    network = trained_network(config, dataset.shape, dataset.classes)
    method, seeds = build_method(config, network), SeedTree(config.seed)
    return Experiment(config, network, train_nodes, target_nodes, method, seeds, data, dataset.note)


class Sound(NamedTuple):
    """The data of a configuration that works, and what a result should mention."""

    data: Identity
    note: str


def try_out(configs: Iterable[tuple[str, Config]], data_dir: str | Path | None = None) -> list[Sound]:
    """Try out named configurations without training; an error says the name of the one that is wrong.

    Nodes are dealt without their samples. Network and method are built.
    """
    datasets: dict[str, DataSet] = {}
    found = []
    for name, config in configs:
        if config.dataset not in datasets:
            datasets[config.dataset] = load(config.dataset, data_dir)
        dataset = datasets[config.dataset]
        try:
            build_method(config, trained_network(config, dataset.shape, dataset.classes))
            found.append(Sound(identify(dataset, deal(config, dataset)), dataset.note))
        except InputError as error:
            raise ConfigError(f"{name}: {error}") from None
    return found


@dataclass(frozen=True)
class Trained:
    """Where a run stands: the method's `state` after `rounds` rounds, and the meta-model `w`."""

    state: State
    rounds: int
    w: np.ndarray


def train(
    experiment: Trainable,
    folder: RunFolder | None = None,
    *,
    resume: bool = False,
    threads: int | None = None,
    on_round: OnRound | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Meta-train; with a folder, record every round and checkpoint; `resume` goes on from its checkpoint.

    `stop` is asked after every round; when it says yes the checkpoint is saved and the run returns early.
    The result does not depend on `threads`, nor on how often the run was interrupted and resumed.
    """
    config = experiment.config
    if folder is not None and experiment.data is not None:
        folder.hold_data(experiment.data)
    state, done, first_loss = experiment.start(), 0, math.nan
    if resume and folder is not None:
        state, done, first_loss = _restore(folder, state)
    rounds = experiment.rounds(state, range(done + 1, config.rounds + 1), threads, first_loss)
    for state, record in rounds:
        done = record.round
        first_loss = record.loss if math.isnan(first_loss) else first_loss
        stopping = stop()
        if folder is not None:
            folder.append_metrics(record._asdict())
            if stopping or done == config.rounds or done % config.checkpoint_every == 0:
                folder.save_checkpoint(done, state, {"first_loss": first_loss})
        if on_round is not None:
            on_round(record)
        if stopping:
            break
    w = experiment.method.model(state)
    if folder is not None and done == config.rounds:
        folder.save_model(experiment.network.layout.to_arrays(w))
    return Trained(state, done, w)


def _restore(folder: RunFolder, fresh: State) -> tuple[State, int, float]:
    """State, round and first loss of the folder's checkpoint; the fresh start where there is none yet."""
    if not folder.has_checkpoint:
        folder.truncate_metrics(0)
        return fresh, 0, math.nan
    done, state, meta = folder.load_checkpoint(like=fresh)
    first_loss = meta.get("first_loss")
    if not isinstance(first_loss, float):
        raise DataError(f"{folder.path}: expected a checkpoint with round 1's loss, found {first_loss!r}")
    folder.truncate_metrics(done)
    return state, done, first_loss


def adapt_settings(experiment: Experiment, threads: int = 1) -> AdaptSettings:
    """The configured adaptation, with so many threads for a node."""
    config = experiment.config
    eta_phi = config.eta_phi if is_gated(config) else 0.0
    gating = experiment.gating
    return AdaptSettings(eta_phi, config.eta_theta, config.adapt_steps, gating, threads=threads)


@np.errstate(all="ignore")  # a rate too large is an answer, not a fault
def personalise(experiment: Experiment, w: np.ndarray, node: Node, threads: int = 1) -> Personal:
    """Adapt the meta-model w at a node as the configured method does; only its support samples are used.

    Where the rates are too large, parameters of the result are not finite.
    """
    config, network = experiment.config, experiment.network

    def gated() -> Network:
        return build_network(config, network.input_shape, network.classes, gated=True)

    target = Target(network, gated, w, *node.support, adapt_settings(experiment, threads))
    if METHODS[config.method].personalise is None:
        return usual_adaptation(target)
    try:
        personal: Personal = METHODS[config.method].personalise(build_method(config, network), target)
        return personal
    except DivergenceError:
        return unknown(network, w.dtype)


def adapt_targets(
    experiment: Experiment,
    w: np.ndarray,
    on_node: Callable[[NodeReport], None] = nothing,
    threads: int | None = None,
) -> list[NodeReport]:
    """Adapt and test the meta-model w at every target node; `on_node` is told of each, in their order.

    A node at which adaptation diverged has a report that says so (`NodeReport.diverged`). Kernels are
    compiled beforehand, so that no stage's seconds are the compiler's; but other nodes may be adapted at the
    same time. Threads (all cores unless told otherwise) are for nodes, and where these are fewer, for the
    samples of each.
    """
    warm_up(experiment.config.dtype, threads)
    nodes, threads = experiment.target_nodes, threads or cores()
    settings = adapt_settings(experiment, max(1, threads // max(1, len(nodes))))

    def adapted(number: int) -> NodeReport:
        node = nodes[number]
        before = evaluate(experiment.network, w, *node.test, settings.gating, settings.threads)
        personal = personalise(experiment, w, node, settings.threads)
        return report(node.name, before, personal, node.support, node.test, settings)

    return share(adapted, len(nodes), threads, lambda _, report: on_node(report))


UNRECORDED = "an older version began this and did not write down its data: not checked to be the same"


def prepare_again(
    folder: RunFolder, data_dir: str | Path | None = None, config: Config | None = None
) -> Experiment:
    """A recorded run's experiment, on the data it was begun with; `config` may differ in its adaptation."""
    experiment = prepare(config or from_table(folder.config, str(folder.path)), data_dir, folder.data)
    if folder.data is None and (folder.has_checkpoint or folder.has_model):
        return replace(experiment, note="; ".join(filter(None, (experiment.note, UNRECORDED))))
    return experiment


def reopen(folder: RunFolder, data_dir: str | Path | None = None) -> tuple[Experiment, np.ndarray]:
    """A finished run's experiment and its meta-model."""
    experiment = prepare_again(folder, data_dir)
    return experiment, meta_model(experiment, folder)


def meta_model(run: Trainable, folder: RunFolder) -> np.ndarray:
    """What the finished run in `folder` has learnt, as the run's network has it: w (d,)."""
    layout, dtype = run.network.layout, run.config.dtype
    arrays = folder.load_model(like=layout.views(np.empty(layout.size, dtype)))
    return layout.from_arrays(arrays, dtype)
