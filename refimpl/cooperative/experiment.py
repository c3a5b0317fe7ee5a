"""From settings to a trained team: what a cooperative run adds to `experiments.experiment.train`.

An epoch is a round. Each step draws nothing but from (seed, purpose, epoch), so a run that is stopped and
resumed ends in the same bytes, for any number of threads.

Source: mathematics.md §15.2, §15.4, §15.7. Reconstructed.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from refimpl.contracts import State
from refimpl.cooperative.config import CooperativeConfig, from_table
from refimpl.cooperative.descent import Momentum
from refimpl.cooperative.objective import TeamObjective, step_work
from refimpl.cooperative.samples import Augmentation, Batches, Split, split
from refimpl.cooperative.schemes import Depths, Scheme, Student, Weights, divide
from refimpl.cooperative.team import LEADER, Part, Team
from refimpl.data.dataset import DataSet
from refimpl.data.identity import Identity, Recorded, identify
from refimpl.errors import ConfigError, DivergenceError
from refimpl.experiments.dealing import load_again
from refimpl.experiments.record import RunFolder
from refimpl.files.environment import cores
from refimpl.nn.context import Gating
from refimpl.nn.predict import Predictor
from refimpl.nn.work import dense_work
from refimpl.optim.prox import GroupLasso, Groups
from refimpl.registry import MODELS, SCHEMES
from refimpl.rng import SeedTree


class Epoch(NamedTuple):
    """An epoch in numbers.

    round: its number, from 1; loss: of all students together, mean over the steps; rate: the learning rate at
    the first step; flops: of all steps, as if all channels were open; seconds: how long it took; validation:
    accuracy of every sub-network of the team after it, in their order, or none.
    """

    round: int
    loss: float
    rate: float
    flops: float
    seconds: float
    validation: tuple[float, ...]


@dataclass(frozen=True)
class Cooperative:
    """A prepared run.

    config: its settings; network: the team of sub-networks; scheme: who learns from whom; depths: the depths
    of the members; dataset: all samples; split: which of them are for training, validation and test; data:
    what identifies the data set, so that a later command can refuse another one.
    """

    config: CooperativeConfig
    network: Team
    scheme: Scheme
    depths: Depths
    dataset: DataSet
    split: Split
    data: Identity

    @property
    def seeds(self) -> SeedTree:
        """The root of all random numbers of the training."""
        return SeedTree(self.config.seed)

    @property
    def weights(self) -> Weights:
        """The weights of the kinds of teaching."""
        return Weights(self.config.a, self.config.b, self.config.c)

    @property
    def method(self) -> Momentum:
        """The descent; only trainable weights decay."""
        config, layout = self.config, self.network.layout
        return Momentum(config.rate, config.momentum, config.decay, config.schedule, layout.theta.stop)

    @property
    def batches(self) -> Batches:
        """The training samples."""
        config = self.config
        change = Augmentation(config.crop, config.flip)
        return Batches(self.dataset, self.split.train, config.batch_size, change, config.dtype)

    def start(self) -> State:
        """The state before epoch 1."""
        w = self.network.layout.initialise(self.seeds, self.config.dtype)
        return self.method.start(self._calibrated(w) if self.network.normalises_gated else w)

    @np.errstate(all="ignore")  # `rounds` reports overflow
    def _calibrated(self, w: np.ndarray) -> np.ndarray:
        """w with the statistics of the first training samples."""
        return self.network.calibrated(w, self.samples("calibration")[0])

    def students(self, rng: np.random.Generator) -> tuple[Student, ...]:
        """Who learns in a step."""
        return self.scheme.students(self.depths, self.weights, rng)

    def rounds(
        self, state: State, rounds: range, threads: int | None = None, first_loss: float = math.nan
    ) -> Iterator[tuple[State, Epoch]]:
        """Train the epochs `rounds` from `state`, with all cores unless told otherwise."""
        for epoch in rounds:
            started = time.perf_counter()
            state, loss, flops = self._epoch(state, epoch, threads or cores())
            every, last = self.config.validate_every, epoch == self.config.epochs
            checked = bool(every) and epoch % every == 0
            if last or checked or self.network.normalises_gated:
                state = {**state, "w": self._calibrated(state["w"])}
            if not all(np.isfinite(array).all() for array in state.values()):
                raise DivergenceError(
                    f"cooperative: parameters are not finite after epoch {epoch}; try a smaller rate"
                )
            accuracies = self.accuracies(state["w"], "validation") if checked else ()
            rate = self.method.rate_at((epoch - 1) / self.config.epochs)
            yield state, Epoch(epoch, loss, rate, flops, time.perf_counter() - started, accuracies)

    def _epoch(self, state: State, epoch: int, threads: int) -> tuple[State, float, float]:
        """The state after an epoch, the mean loss of its steps, and its FLOPs."""
        batches, rng = self.batches, self.seeds.generator("students", epoch)
        losses, flops, gradient = [], 0.0, np.empty_like(state["w"])
        for number, (x, y) in enumerate(batches.of(self.seeds, epoch)):
            students = self.students(rng)
            objective = TeamObjective(
                self.network, students, x, y, self.config.temperature, self.gating, threads
            )
            losses.append(objective(state["w"], gradient))
            if not math.isfinite(losses[-1]):
                raise DivergenceError(
                    f"cooperative: the loss of step {number + 1} in epoch {epoch} is {losses[-1]}; "
                    "try a smaller rate"
                )
            done = (epoch - 1 + number / len(batches)) / self.config.epochs
            state = self.method.step(state, gradient, done)
            self._shrink(state["w"], self.method.rate_at(done))
            flops += objective.flops
        return state, math.fsum(losses) / len(losses), flops

    @property
    def gating(self) -> Gating:
        """How gates decide in training."""
        return Gating(self.config.gate_mode)

    @cached_property
    def _gates(self) -> list[tuple[np.ndarray, GroupLasso]]:
        """Where the gates of each gated member lie in w, and their penalty."""
        deepest = {part.member: part for part in sorted(self.network.parts, key=lambda part: part.depth)}
        found = []
        for part in deepest.values():
            own = self.network.training(part)
            if own.gates and self.config.rho:
                phi = own.layout.phi
                groups = Groups(*own.gate_groups, size=phi.stop - phi.start)
                found.append((self.network.entries(part)[phi], GroupLasso(groups, self.config.rho)))
        return found

    def _shrink(self, w: np.ndarray, step: float) -> None:
        """A proximal step of the group lasso on all gates, in place. Source: mathematics.md §15.7."""
        for where, penalty in self._gates:
            shrunk = w[where]
            if not np.isfinite(shrunk).all():
                raise DivergenceError("cooperative: the gates are not finite; try a smaller rate")
            penalty.prox(shrunk.copy(), step, shrunk)
            w[where] = shrunk

    def samples(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Samples x and labels y of the part `train`, `validation` or `test`, or those for `calibration`."""
        if part == "calibration":
            chosen = self.split.train[: self.config.calibration]
        else:
            chosen = getattr(self.split, part)
        return self.dataset.x(chosen, self.config.dtype), self.dataset.y[chosen]

    @np.errstate(all="ignore")  # `accuracy` reports overflow
    def accuracies(self, w: np.ndarray, part: str, threads: int = 1) -> tuple[float, ...]:
        """The accuracy of every sub-network of the team at the calibrated w (d,), in their order."""
        x, y = self.samples(part)
        found = []
        for one in self.network.parts:
            own = w[self.network.entries(one, at_rest=True)]
            logits = Predictor(self.network.at_rest(one), own, threads=threads)(x).logits
            found.append(accuracy(one, logits, y))
        return tuple(found)

    def deployed(self, validation: Sequence[float]) -> dict[int, Part]:
        """The sub-network that is used at each depth, given all their accuracies on validation samples.

        It belongs to the best member that has the depth: the one with the highest mean accuracy over the
        depths that all members have. The Leader is used only if nobody else is there.
        """
        mates = [part for part in self.network.parts if part.member != LEADER] or [*self.network.parts]
        depths = {member: {part.depth for part in mates if part.member == member} for member, _ in mates}
        common = set.intersection(*depths.values())
        accuracy = dict(zip(self.network.parts, validation, strict=True))

        def rank(part: Part) -> float:
            return -sum(accuracy[Part(part.member, depth)] for depth in common)

        ranked = sorted(mates, key=rank)  # of equal ones the first comes first
        found = sorted({part.depth for part in mates})
        return {depth: next(part for part in ranked if part.depth == depth) for depth in found}

    @property
    def cost(self) -> float:
        """Dense FLOPs of a step of all students, as a multiple of training the full network alone.

        Where students are drawn, those of the first step.
        """
        step = step_work(self.network, self.students(self.seeds.generator("students", 1)), 1)
        return step / dense_work(self.network.network, 1, ("theta",)).total


def accuracy(part: Part, logits: np.ndarray, y: np.ndarray) -> float:
    """The share of samples that logits (n, classes) classify as y (n,); refuses a diverged sub-network's."""
    if not np.isfinite(logits).all():
        raise DivergenceError(
            f"cooperative: depth {part.depth} of {part.member} has diverged (its outputs are not finite); "
            "train at a smaller rate"
        )
    return float((logits.argmax(axis=1) == y).mean())


def prepare(
    config: CooperativeConfig,
    data_dir: str | Path | None = None,
    recorded: Recorded | None = None,
    known: DataSet | None = None,
) -> Cooperative:
    """Load and divide the data, and build the team.

    recorded: the data that the run was begun with; known: a data set in memory, which is used if it is the
    recorded one.
    """
    dataset = load_again(config.dataset, data_dir, recorded, known)
    model = MODELS.make(config.model, config.table())
    plain = model.build(dataset.shape, dataset.classes)
    network = model.build(dataset.shape, dataset.classes, model.usual_gates) if config.gated else plain
    for depth in config.depths:
        network.at_depth(depth)  # raises where it has no such depth
    if network.depth < 1:
        raise ConfigError(f"config: model {config.model} has no stages; choose another, such as resnet20")
    depths = divide(config.depths or range(1, network.depth), network.depth, config.sets == "complementary")
    scheme: Scheme = SCHEMES.make(config.scheme, {})
    members = scheme.parts(depths, Weights(config.a, config.b, config.c))
    team = Team(network, members, config.own_norms, plain)
    sizes = (config.validation, config.test, config.train_samples, config.test_samples)
    parts = split(dataset, config.split_seed, *sizes)
    return Cooperative(config, team, scheme, depths, dataset, parts, identify(dataset))


def reopen(
    folder: RunFolder, data_dir: str | Path | None = None, known: DataSet | None = None
) -> Cooperative:
    """A recorded run, on the data it was begun with, which may be `known` from another run."""
    return prepare(from_table(folder.config, str(folder.path)), data_dir, folder.data, known)
