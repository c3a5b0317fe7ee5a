"""The ways to find a ticket, chosen by name: MWT, PMT, IMP, and those that they are compared with.

A finder gets a `Search`, which has the dense run, trains it when asked to, and adds up what that costs.

Source: mathematics.md §14.2; Gao et al. 2022; Lee et al. 2018 (SNIP); Frankle & Carbin 2019 (IMP).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.contracts import State
from refimpl.errors import ConfigError, DivergenceError
from refimpl.experiments.experiment import OnRound, Trained, meta_model, train
from refimpl.experiments.record import CONFIG, RunFolder
from refimpl.federated.pruning.snip import best
from refimpl.fewshot.experiment import FewShot, Meta
from refimpl.fewshot.tickets.masks import SCOPES, Mask, choose, counts_in, kept_of, noise, prunable
from refimpl.fewshot.tickets.ticket import DENSE, TRACE, TRAINED, Settings, Ticket
from refimpl.nn.layout import Layout
from refimpl.registry import FINDERS, key
from refimpl.rng import SeedTree

# Shows a training in the folder of that name, of that many iterations.
Watch = Callable[[str, int], AbstractContextManager[OnRound]]


def _unseen(name: str, rounds: int) -> AbstractContextManager[OnRound]:
    return nullcontext(lambda record: None)


@dataclass
class Search:
    """What a finder has at hand, and what it has spent; `folder` keeps its trainings, which can be resumed.

    diverged: the error with which the dense training that it shares ended, if that diverged; notes: facts
    about the ticket that only its finder knows.
    """

    run: FewShot
    settings: Settings
    folder: Path
    threads: int | None = None
    watch: Watch = _unseen
    stop: Callable[[], bool] = lambda: False
    flops: float = 0.0
    seconds: float = 0.0
    diverged: DivergenceError | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """The table of the network's weights."""
        return self.run.network.layout

    @property
    def pruned(self) -> float:
        """The share to be pruned."""
        return self.settings.ticket.pruned

    def counts(self, scope: str) -> list[int]:
        """How many weights to keep, over all layers or in each."""
        return counts_in(self.layout, scope, self.pruned)

    def theta(self, iterations: int) -> np.ndarray:
        """theta_k (d,): the weights after so many iterations of the dense training, bit for bit."""
        if iterations > self.run.config.rounds:
            raise ConfigError(
                f"config: rewind must be at most {self.run.config.rounds} (rounds), got {iterations}"
            )
        state, first = self.run.start(), range(1, iterations + 1)
        for after, _ in self.run.rounds(state, first, self.threads):
            state = after
        return self.run.method.model(state)

    def dense(self) -> np.ndarray:
        """The weights (d,) after the dense training, which may be there already; or how that diverged."""
        if self.diverged is not None:
            raise self.diverged
        given, every = self.settings.ticket.dense, self.settings.ticket.every
        if given:
            with RunFolder.open(given, lock=False) as folder:
                self._count(folder)
                return meta_model(self.run, folder)
        traced = Traced(**_fields(self.run), settings=self.settings, folder=self.folder / TRACE)
        return self.train(DENSE, traced if every else self.run).w

    def sparse(self, name: str, ticket: Ticket) -> np.ndarray:
        """The weights (d,) after training a ticket."""
        path = self.folder / name
        ticket.save(path, self.layout, {"finder": self.settings.ticket.finder, "flops": 0, "seconds": 0})
        return self.train(f"{name}/{TRAINED}", self.run.with_ticket(path)).w

    def train(
        self, name: str, run: FewShot, enough: Callable[[State], bool] = lambda state: False
    ) -> Trained:
        """Train, or go on, in the folder of that name, until the run ends or its state is `enough`.

        Raises `KeyboardInterrupt` where a stop was asked for before.
        """
        path = self.folder / name
        if not (path / CONFIG).is_file():
            RunFolder.create(path, run.config.table(), threads=self.threads, data=run.data).close()
        with RunFolder.open(path) as folder:
            left = run.config.rounds - folder.rounds_saved
            with self.watch(str(path), left) as told:
                trained = train(run, folder, resume=True, threads=self.threads, on_round=told, stop=self.stop)
            if trained.rounds < run.config.rounds and not enough(trained.state):
                raise KeyboardInterrupt
            self._count(folder)
        return trained

    def _count(self, folder: RunFolder) -> None:
        records = folder.metrics()
        self.flops += math.fsum(record["flops"] for record in records)
        self.seconds += math.fsum(record["seconds"] for record in records)


def find(search: Search) -> Ticket:
    """Find the ticket and write it into its folder."""
    started = time.perf_counter()
    ticket: Ticket = search.settings.finder.find(search)
    whole = time.perf_counter() - started
    facts = {
        "finder": search.settings.ticket.finder,
        "flops": search.flops,
        "seconds": search.seconds or whole,
    }
    ticket.save(search.folder, search.layout, {**facts, **search.notes})
    return ticket


def _fields(run: FewShot) -> dict[str, Any]:
    """The fields of a run, to make one of another class."""
    return {one.name: getattr(run, one.name) for one in fields(FewShot)}


@dataclass(frozen=True, kw_only=True)
class Traced(FewShot):
    """A dense run that leaves the mask of every so many iterations in a folder."""

    settings: Settings
    folder: Path

    def rounds(
        self, state: State, rounds: range, threads: int | None = None, first_loss: float = math.nan
    ) -> Iterator[tuple[State, Meta]]:
        """The states and records of the dense run, whose masks are saved on the way."""
        layout, ticket = self.network.layout, self.settings.ticket
        self.folder.mkdir(exist_ok=True)
        for after, record in super().rounds(state, rounds, threads, first_loss):
            if record.round % ticket.every == 0:
                counts = counts_in(layout, "global", ticket.pruned)
                mask = choose(layout, np.abs(self.method.model(after)), counts)
                mask.save(self.folder / f"{record.round:08d}.npz")
            yield after, record


# --- after dense training


def rewind_key() -> Any:
    """The key of the finders that rewind."""
    return key(0, "iterations k of dense training after which the ticket starts", at_least=0)


@dataclass(frozen=True, kw_only=True)
class Magnitude:
    """The mask of the largest weights after dense training."""

    scope: str = key("global", "which layers compete for the weights that are kept", choices=tuple(SCOPES))

    def mask(self, search: Search) -> Mask:
        """The mask."""
        return choose(search.layout, np.abs(search.dense()), search.counts(self.scope))


@FINDERS.register("mwt")
@dataclass(frozen=True, kw_only=True)
class MWT(Magnitude):
    """A meta winning ticket: train dense, prune once, rewind to theta_k."""

    rewind: int = rewind_key()

    def find(self, search: Search) -> Ticket:
        """The ticket."""
        return Ticket(self.mask(search), search.theta(self.rewind))


@FINDERS.register("rr")
@dataclass(frozen=True, kw_only=True)
class RR(Magnitude):
    """The mask of MWT with new weights."""

    def find(self, search: Search) -> Ticket:
        """The ticket."""
        seed = int(search.run.seeds.generator("another start").integers(2**62))
        return Ticket(self.mask(search), search.layout.initialise(SeedTree(seed), search.run.config.dtype))


def _mixed(search: Search, of_first: Mask, of_others: Mask) -> Mask:
    first = prunable(search.layout)[0].name
    return Mask({**of_others.layers, first: of_first.layers[first]})


@FINDERS.register("omt")
@dataclass(frozen=True, kw_only=True)
class OMT(MWT):
    """MWT with a random first layer, which keeps as many weights."""

    def mask(self, search: Search) -> Mask:
        """The mask."""
        mwt = super().mask(search)
        return _mixed(search, choose(search.layout, noise(search.layout, search.run.seeds), mwt.counts), mwt)


@FINDERS.register("pm")
@dataclass(frozen=True, kw_only=True)
class PM(MWT):
    """The first layer of MWT; the others are random, with as many weights."""

    def mask(self, search: Search) -> Mask:
        """The mask."""
        mwt = super().mask(search)
        return _mixed(search, mwt, choose(search.layout, noise(search.layout, search.run.seeds), mwt.counts))


@FINDERS.register("imp")
@dataclass(frozen=True, kw_only=True)
class IMP:
    """Iterative magnitude pruning: a share a round, with training from theta_k between rounds."""

    share: float = key(0.2, "share of the kept weights that a round prunes", above=0.0, below=1.0)
    rewind: int = rewind_key()

    def find(self, search: Search) -> Ticket:
        """The ticket."""
        (target,), (left,) = search.counts("global"), counts_in(search.layout, "global", 0.0)
        start, w, rounds = search.theta(self.rewind), search.dense(), 0
        ticket = Ticket(choose(search.layout, np.abs(w), [left]), start)
        while left > target:
            if rounds:
                w = search.sparse(f"rounds/{rounds}", ticket)
            left, rounds = max(target, min(left - 1, kept_of(self.share, left))), rounds + 1
            scores = np.where(ticket.mask.over(search.layout), np.abs(w), -1)  # what is pruned stays so
            ticket = Ticket(choose(search.layout, scores, [left]), start)
        search.notes["rounds"] = rounds
        return ticket


# --- early


@FINDERS.register("pmt")
@dataclass(frozen=True, kw_only=True)
class PMT:
    """Primary masks: the first layer's as soon as it is stable in dense training, and random ones."""

    gamma: int = key(0, "iterations between looks at the first layer (0: a 160th of the run)", at_least=0)
    length: int = key(5, "overlaps in the queue", at_least=1)
    delta: float = key(0.95, "overlap that counts as stable", at_least=0.0, at_most=1.0)
    rule: str = key("min", "which overlap of the queue decides", choices=("min", "max"))

    def stable(self, queue: np.ndarray) -> bool:
        """Whether a full queue says so: `min >= delta`, or `max > delta` as printed by Gao et al."""
        if np.isnan(queue).any():
            return False
        return bool(queue.min() >= self.delta if self.rule == "min" else queue.max() > self.delta)

    def push(self, queue: np.ndarray, before: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The queue (l,) with the overlap of a mask with the one before, which is all false at first."""
        return np.append(queue[1:], (mask & before).sum() / mask.sum()) if before.any() else queue

    def look(
        self, queue: np.ndarray, mask: np.ndarray, sizes: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The queue and the mask after a look at the first layer: the `count` largest of its |w| are kept."""
        found = best(sizes, count)
        return self.push(queue, mask, found), found

    def find(self, search: Search) -> Ticket:
        """The ticket."""
        counts, slot = search.counts("smart"), prunable(search.layout)[0]
        first = slice(slot.start, slot.stop)
        run = Watched(**_fields(search.run), finder=self, first_layer=first, count=counts[0])
        trained = search.train(DENSE, run, lambda state: self.stable(state["queue"]))
        scores = noise(search.layout, search.run.seeds)
        scores[first] = np.abs(trained.w[first])
        stopped = trained.rounds if self.stable(trained.state["queue"]) else None
        search.notes |= {"stopped": stopped, "queue": trained.state["queue"]}
        return Ticket(choose(search.layout, scores, counts), search.theta(0))


@dataclass(frozen=True, kw_only=True)
class Watched(FewShot):
    """A dense run that ends when the first layer's mask is stable; its queue is part of the state."""

    finder: PMT
    first_layer: slice
    count: int

    def start(self) -> State:
        """The state with an empty queue and without a mask."""
        size = self.first_layer.stop - self.first_layer.start
        queue, mask = np.full(self.finder.length, math.nan), np.zeros(size, dtype=bool)
        return {**super().start(), "queue": queue, "primary": mask}

    def rounds(
        self, state: State, rounds: range, threads: int | None = None, first_loss: float = math.nan
    ) -> Iterator[tuple[State, Meta]]:
        """The states and records of the dense run, until the queue is stable."""
        queue, mask = state["queue"], state["primary"]
        if self.finder.stable(queue):
            return
        gamma = self.finder.gamma or max(1, self.config.rounds // 160)
        for after, record in super().rounds(state, rounds, threads, first_loss):
            if record.round % gamma == 0:
                sizes = np.abs(after["w"][self.first_layer])
                queue, mask = self.finder.look(queue, mask, sizes, self.count)
            yield {**after, "queue": queue, "primary": mask}, record
            if self.finder.stable(queue):
                return


# --- without training


@FINDERS.register("rm")
@dataclass(frozen=True, kw_only=True)
class RM:
    """A random mask over all layers."""

    scope = "global"

    def find(self, search: Search) -> Ticket:
        """The ticket."""
        scores = noise(search.layout, search.run.seeds)
        return Ticket(choose(search.layout, scores, search.counts(self.scope)), search.theta(0))


@FINDERS.register("sr")
@dataclass(frozen=True, kw_only=True)
class SR(RM):
    """A random mask within each layer, at smart ratios."""

    scope = "smart"


@FINDERS.register("snip")
@dataclass(frozen=True, kw_only=True)
class SNIP:
    """The mask of the highest sensitivities at theta_0, by the mean meta-gradient of the first iterations."""

    score: str = key("gradient", "sensitivity: |g| or |w g|", choices=("gradient", "product"))
    looks: int = key(1, "iterations whose meta-gradients are averaged", at_least=1)

    def find(self, search: Search) -> Ticket:
        """The ticket."""
        run, w = search.run, search.theta(0)
        gradient = np.zeros_like(w)
        for number in range(1, self.looks + 1):
            for at, task in enumerate(run.tasks(number)):
                answer = run.method.local(task, w, run.seeds.generator("local", number, at))
                gradient += answer.w
                search.flops += answer.flops
        scores = np.abs(gradient if self.score == "gradient" else w * gradient)
        return Ticket(choose(search.layout, scores, search.counts("global")), w)
