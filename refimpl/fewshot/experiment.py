"""From settings to a trained meta-model: what a few-shot run adds to `experiments.experiment.train`.

Each meta-iteration is one round of `federated.rounds`, whose tasks are episodes of its own.

Source: mathematics.md §13; Finn et al. 2017, Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from refimpl.contracts import State
from refimpl.data.dataset import DataSet
from refimpl.data.episodes import ClassSplit, Episodes, class_split
from refimpl.data.identity import Identity, Recorded, identify
from refimpl.experiments.dealing import load_again
from refimpl.experiments.record import RunFolder
from refimpl.federated.rounds import Participation, run_rounds
from refimpl.fewshot.config import FewShotConfig, from_table
from refimpl.fewshot.evaluate import Measurement, accuracies
from refimpl.fewshot.learner import KINDS, Learner, movable
from refimpl.fewshot.outer import OUTER
from refimpl.fewshot.tasks import EpisodeTask
from refimpl.fewshot.tickets.ticket import load_ticket
from refimpl.files.environment import cores
from refimpl.nn.network import Network
from refimpl.nn.weightmask import WeightMask
from refimpl.registry import MODELS
from refimpl.rng import SeedTree


class Meta(NamedTuple):
    """A meta-iteration in numbers: means over its tasks, and sums of `gradients` and `flops`.

    loss: of the query samples after the inner steps; residual: norm of a task's meta-gradient; validation:
    mean accuracy of the validation episodes after it, NaN where there was no validation or one diverged.
    """

    round: int
    loss: float
    residual: float
    gradients: int
    flops: float
    seconds: float
    validation: float


@dataclass(frozen=True)
class FewShot:
    """A prepared few-shot run: settings, network, method, data, and how the classes are split.

    first: the weights w (d,) that it starts from; without, they are drawn. weights: those that are kept.
    """

    config: FewShotConfig
    network: Network
    method: Learner
    dataset: DataSet
    split: ClassSplit
    data: Identity
    first: np.ndarray | None = None
    weights: WeightMask | None = None

    @property
    def seeds(self) -> SeedTree:
        """The root of all random numbers of the training."""
        return SeedTree(self.config.seed)

    def start(self) -> State:
        """The method's state before meta-iteration 1."""
        seed = self.config.seed if self.config.start_seed < 0 else self.config.start_seed
        drawn = self.network.layout.initialise(SeedTree(seed), self.config.dtype)
        return self.method.start(drawn if self.first is None else self.first)

    def under(self, mask: np.ndarray, start: np.ndarray) -> FewShot:
        """This run, started from the weights `start` (d,), which stay zero where the mask (d,) is zero."""
        method = build_learner(self.config, self.network, mask)
        return replace(self, method=method, first=start, weights=WeightMask(self.network.layout, mask))

    def with_ticket(self, folder: Path) -> FewShot:
        """This run under the finished ticket in a folder."""
        mask, start = load_ticket(folder, self.network.layout, self.config.dtype)
        run = replace(self, config=replace(self.config, ticket=str(folder.absolute())))
        return run.under(mask.over(self.network.layout), start)

    def tasks(self, round_: int) -> list[EpisodeTask]:
        """The episodes of a meta-iteration."""
        return self._tasks(self.training, self.seeds, "episode", round_, self.config.tasks)

    def _tasks(
        self, episodes: Episodes, seeds: SeedTree, purpose: str, round_: int, count: int
    ) -> list[EpisodeTask]:
        """The first `count` episodes that the seeds have for the purpose and the round."""
        first = EpisodeTask(
            self.network, episodes, seeds, purpose, round_, 0, self.config.dtype, self.weights
        )
        return [replace(first, number=number) for number in range(count)]

    @cached_property
    def training(self) -> Episodes:
        """The training episodes."""
        config = self.config
        queries = config.queries or config.shots
        return Episodes(self.dataset, config.ways, config.shots, queries, 0, self.split.train, config.turned)

    def test(self, part: str = "test", episodes: int | None = None) -> Measurement:
        """The test on classes of the part `test` or `validation`."""
        config = self.config
        queries = config.test_queries or config.shots
        classes = getattr(self.split, part)
        drawn = Episodes(self.dataset, config.ways, config.shots, 0, queries, classes, config.turned)
        learner = replace(self.method, alpha=config.test_alpha or config.alpha)
        count = episodes or config.test_episodes
        tasks = self._tasks(drawn, SeedTree(config.test_seed), part, 0, count)
        return Measurement(learner, config.test_steps, config.statistics, tasks)

    def rounds(
        self, state: State, rounds: range, threads: int | None = None, first_loss: float = math.nan
    ) -> Iterator[tuple[State, Meta]]:
        """Run the meta-iterations `rounds` from `state`, with all cores unless told otherwise."""
        threads, config = threads or cores(), self.config
        validation = self.test("validation", config.validation_episodes) if config.validate_every else None
        for number in rounds:
            only, tasks = range(number, number + 1), self.tasks(number)
            ((state, record),) = run_rounds(
                self.method, tasks, state, only, Participation(), self.seeds, threads, first_loss
            )
            first_loss = record.loss if math.isnan(first_loss) else first_loss
            found = math.nan
            if validation is not None and config.validates(number):
                found = float(np.mean(accuracies(validation, self.method.model(state), threads)))
            fields = {name: getattr(record, name) for name in Meta._fields if name != "validation"}
            yield state, Meta(**fields, validation=found)


def prepare(
    config: FewShotConfig,
    data_dir: str | Path | None = None,
    recorded: Recorded | None = None,
    known: DataSet | None = None,
) -> FewShot:
    """Load the data, split their classes, build network and method.

    recorded: the data that the run was begun with; known: a data set in memory, which is used if it is the
    recorded one.
    """
    dataset = load_again(config.dataset, data_dir, recorded, known)
    network = MODELS.make(config.model, config.table()).build(dataset.shape, config.ways)
    method = build_learner(config, network)
    run = FewShot(config, network, method, dataset, class_split(dataset), identify(dataset))
    for episodes in (run.training, run.test("validation", 2), run.test("test", 2)):
        assert episodes  # building them checks that there are enough classes and samples
    return run.with_ticket(Path(config.ticket)) if config.ticket else run


def build_learner(config: FewShotConfig, network: Network, mask: np.ndarray | None = None) -> Learner:
    """The configured method for a network."""
    kind = KINDS[config.method]
    return Learner(
        name=config.method,
        outer=OUTER[config.outer](config.eta),
        alpha=config.alpha,
        inner_steps=config.inner_steps,
        exact=kind.exact and (config.exact or config.method == "maml"),
        follows=kind.follows,
        batch_size=config.batch_size,
        moves=movable(network.layout, kind.moves, mask),
        mask=mask,
    )


def reopen(folder: RunFolder, data_dir: str | Path | None = None, known: DataSet | None = None) -> FewShot:
    """A recorded run, on the data it was begun with, which may be `known` from another run."""
    config = from_table(folder.config, str(folder.path))
    return prepare(config, data_dir, folder.data, known=known)
