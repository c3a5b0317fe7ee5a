"""Tickets of several finders beside the dense network: found, trained and tested alike over several seeds.

A seed has one dense training, which all finders that need one share. Every network of every seed is tested
on the same episodes, so accuracies are compared episode by episode; trainings of one seed share their
episodes too, so a seed is one cluster of the interval.

Source: mathematics.md §12, §14.3; Gao et al. 2022, section 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refimpl.errors import DivergenceError, InputError, one_of
from refimpl.experiments.compare.claims import Claim, Values, judged
from refimpl.experiments.config import read_toml
from refimpl.experiments.record import CONFIG
from refimpl.fewshot.config import from_table
from refimpl.fewshot.evaluate import Accuracy, accuracies, interval
from refimpl.fewshot.experiment import FewShot
from refimpl.fewshot.tickets.finders import Search, find
from refimpl.fewshot.tickets.ticket import (
    DENSE,
    FACTS,
    SETTINGS,
    TRAINED,
    Settings,
    begin,
    facts_of,
    settings_from,
    settings_of,
)
from refimpl.files.environment import environment
from refimpl.files.storage import json_text, make_folder, plain, read_entries, write_whole
from refimpl.registry import FINDERS

RESULT = "comparison.json"


@dataclass(frozen=True)
class Plan:
    """Which finders are compared, at which shares of pruned weights, from which seeds.

    baseline: the network that the others are compared with; margin: a difference of so many points counts
    as none; keys: settings of the finders.
    """

    run: FewShot
    finders: tuple[str, ...]
    pruned: tuple[float, ...]
    seeds: tuple[int, ...]
    baseline: str = DENSE
    margin: float = 0.0
    keys: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for finder in self.finders:
            one_of("tickets compare", "finder", finder, tuple(FINDERS))
        for name, values in (("finder", self.finders), ("share", self.pruned), ("seed", self.seeds)):
            if not values or len({*values}) < len(values):
                raise InputError(f"tickets compare: expected each {name} once, got {list(values)}")

        one_of("tickets compare: baseline", "network", self.baseline, (DENSE, *self.finders))

    @property
    def stated(self) -> dict[str, Any]:
        """What the claims refer to; it is written down before anything is trained."""
        return {"baseline": self.baseline, "margin": self.margin}

    @property
    def cells(self) -> list[tuple[str, float]]:
        """The networks of a seed: the dense one first, as others use its training."""
        return [(DENSE, 0.0), *((finder, share) for share in self.pruned for finder in self.finders)]


class Cost(NamedTuple):
    """FLOPs of forward and backward passes, and seconds on this machine."""

    flops: float
    seconds: float


class Tested(NamedTuple):
    """One network of one seed: its accuracy in each test episode, and what it cost.

    values: NaN where adaptation diverged, and everywhere if training did, whose cost is then NaN too;
    stopped: the iteration at which an early search stopped; None where there was none, or it never stopped;
    reason: where and how training diverged, if it did.
    """

    network: str
    pruned: float
    seed: int
    values: np.ndarray
    finding: Cost
    training: Cost
    stopped: int | None = None
    reason: str = ""

    @property
    def diverged(self) -> bool:
        """Whether training diverged, or adaptation in an episode; no mean counts such a network."""
        return bool(np.isnan(self.values).any())

    @property
    def trained(self) -> bool:
        """Whether its training, and those that it needs, came to their end."""
        return not math.isnan(self.training.flops)


Begin = Callable[..., Search]  # begins a search for a run with settings, which works in a folder


def compare(plan: Plan, folder: Path, begin_search: Begin) -> list[dict[str, Any]]:
    """Make every network that is missing, and write the rows that came out into the folder.

    begin_search: `Search` with its threads, `watch` and `stop` given already. The baseline and margin are
    written there before anything is trained; where others were stated then, the file says so. Raises
    `KeyboardInterrupt` if stopped.
    """
    path = folder / RESULT
    begun = read_entries(path, "a comparison", stated=dict)["stated"] if path.is_file() else plan.stated
    content = {"stated": begun, "run": plan.run.config.table(), "keys": plan.keys, "seeds": plan.seeds}
    make_folder(folder)
    write_whole(path, json_text(content).encode())
    tested = [*compared(plan, folder, begin_search)]
    rows: list[dict[str, Any]] = plain([row.table() for row in rows_of(plan, tested)])
    content |= {"judged": plan.stated, "environment": environment(), "rows": rows}
    write_whole(path, json_text(content).encode())
    return rows


def compared(plan: Plan, folder: Path, begin_search: Begin) -> Iterator[Tested]:
    """Find, train and test every network, or read what is there already.

    A network whose training diverges is lost; if it is the dense one, so are those that need its training.
    """
    lost, nothing = np.full(plan.run.config.test_episodes, np.nan), Cost(math.nan, math.nan)
    for seed in plan.seeds:
        run = replace(plan.run, config=replace(plan.run.config, seed=seed))
        place, search = folder / f"seed-{seed}", begin_search
        for network, share in plan.cells:
            try:
                if network == DENSE:
                    made = _dense(run, plan, search, place)
                else:
                    made = _sparse(run, plan, search, place, network, share)
            except DivergenceError as error:
                made = Tested(network, share, seed, lost, nothing, nothing, reason=_where(error))
                if network == DENSE:
                    search = partial(begin_search, diverged=error)
            yield made


def _where(error: DivergenceError) -> str:
    """The text without its hint, which names settings of other methods."""
    return str(error).partition(";")[0]


def _settings(run: FewShot, plan: Plan, **own: Any) -> Settings:
    return settings_from({**run.config.table(), **plan.keys, **own}, "tickets compare")


def _dense(run: FewShot, plan: Plan, begin_search: Begin, place: Path) -> Tested:
    search = begin_search(run, _settings(run, plan, finder="mwt"), place / DENSE)
    begun = search.folder / TRAINED / CONFIG
    if begun.is_file():
        _check_same(search.folder, from_table(read_toml(begun), str(begun)), run.config)
    w = search.train(TRAINED, run).w
    values = accuracies(run.test(), w, search.threads or 1)
    return Tested(DENSE, 0.0, run.config.seed, values, Cost(0.0, 0.0), Cost(search.flops, search.seconds))


def _sparse(run: FewShot, plan: Plan, begin_search: Begin, place: Path, network: str, share: float) -> Tested:
    shared = str((place / DENSE / TRAINED).absolute())  # for the finders that need a dense training
    settings = _settings(run, plan, finder=network, pruned=share, dense=shared)
    folder = place / f"{network}-{share:g}"
    if not (folder / SETTINGS).is_file():
        begin(folder, settings, run.data)
    _check_same(folder, settings_of(folder), settings)
    if not (folder / FACTS).is_file():
        find(begin_search(run, settings, folder))
    facts, sparse, training = facts_of(folder), run.with_ticket(folder), begin_search(run, settings, folder)
    values = accuracies(sparse.test(), training.train(TRAINED, sparse).w, training.threads or 1)
    return Tested(
        network,
        share,
        run.config.seed,
        values,
        Cost(facts["flops"], facts["seconds"]),
        Cost(training.flops, training.seconds),
        facts.get("stopped"),
    )


def _check_same(place: Path, begun: object, wanted: object) -> None:
    if begun != wanted:
        raise InputError(f"{place}: was made with other settings; choose another --out")


# --- what came out


class Row(NamedTuple):
    """A network over all seeds, at one share of pruned weights.

    accuracy, spread: mean and standard deviation (ddof 1; NaN for one seed) over seeds; diverged: how many
    seeds both leave out, because training diverged, or adaptation in a test episode; finding, in_all: the
    cost of finding the ticket, and of finding and training it, as shares of the dense training's, over the
    seeds at which both trainings ended; stopped: when an early search stopped, by seed; reasons: where and
    how training diverged, by seed, or nothing. The difference to the baseline at the same share is a claim
    about all trainings, with an interval over seeds; `episodes` is about these trainings only, with an
    interval over test episodes, and there for one seed too.
    """

    network: str
    pruned: float
    accuracy: float
    spread: float
    diverged: int
    finding: Cost
    in_all: Cost
    stopped: list[int | None]
    reasons: list[str]
    claim: Claim | None
    episodes: Accuracy | None

    def table(self) -> dict[str, Any]:
        """The row for JSON."""
        flat = self._asdict() | {"finding": self.finding._asdict(), "in_all": self.in_all._asdict()}
        flat["claim"] = None if self.claim is None else asdict(self.claim)
        return flat | {"episodes": None if self.episodes is None else self.episodes._asdict()}


def rows_of(plan: Plan, tested: Sequence[Tested]) -> list[Row]:
    """What came out, by network and share, with differences to the baseline in percentage points."""
    cells, baseline = plan.cells, plan.baseline
    of = {cell: [one for one in tested if (one.network, one.pruned) == cell] for cell in cells}
    pairs = {}
    for cell in cells:
        other = (baseline, 0.0 if baseline == DENSE else cell[1])
        if cell != other and other in of:
            pairs[f"{cell}"] = of[cell], of[other]
    points = {name: (_points(own), _points(other)) for name, (own, other) in pairs.items()}
    claims = {claim.label: claim for claim in judged(points, plan.margin, len(plan.seeds))}
    whole = {one.seed: one.training for one in of[DENSE, 0.0] if one.trained}
    return [_row(of[cell], whole, claims.get(f"{cell}"), pairs.get(f"{cell}")) for cell in cells]


def _points(own: Sequence[Tested]) -> Values:
    sound = [one for one in own if not one.diverged]
    return {(one.seed, str(at)): 100 * float(value) for one in sound for at, value in enumerate(one.values)}


def _total(costs: Sequence[Cost]) -> Cost:
    return Cost(sum(one.flops for one in costs), sum(one.seconds for one in costs))


def _share(part: Cost, whole: Cost) -> Cost:
    """The part of the whole; NaN of nothing."""
    if not whole.flops:
        return Cost(math.nan, math.nan)
    return Cost(part.flops / whole.flops, part.seconds / whole.seconds)


def _row(
    own: Sequence[Tested],
    whole: Mapping[int, Cost],
    claim: Claim | None,
    pair: tuple[Sequence[Tested], Sequence[Tested]] | None,
) -> Row:
    means = [float(one.values.mean()) for one in own if not one.diverged]
    ended = [one for one in own if one.trained and one.seed in whole]
    finding = _total([one.finding for one in ended])
    in_all = _total([finding, *(one.training for one in ended)])
    dense = _total([whole[one.seed] for one in ended])
    return Row(
        network=own[0].network,
        pruned=own[0].pruned,
        accuracy=float(np.mean(means)) if means else math.nan,
        spread=float(np.std(means, ddof=1)) if len(means) > 1 else math.nan,
        diverged=len(own) - len(means),
        finding=_share(finding, dense),
        in_all=_share(in_all, dense),
        stopped=[one.stopped for one in own],
        reasons=[f"seed {one.seed}, {one.reason}" if one.reason else "" for one in own],
        claim=claim,
        episodes=None if pair is None else _by_episode(*pair),
    )


def _by_episode(own: Sequence[Tested], others: Sequence[Tested]) -> Accuracy | None:
    """The mean difference over episodes, of the seeds at which neither diverged."""
    sound = [pair for pair in zip(own, others, strict=True) if not any(one.diverged for one in pair)]
    if not sound:
        return None
    mine, theirs = (np.mean([one.values for one in side], axis=0) for side in zip(*sound, strict=True))
    return interval(mine - theirs)


# --- as a table, of rows as they are in comparison.json

COSTS = ("finding", "in all", "finding, s", "in all, s")
COSTS_NOTE = "finding, in all: FLOPs and seconds as shares of those of the dense training"


def cells(rows: Sequence[Mapping[str, Any]], baseline: str) -> tuple[list[str], list[list[str]]]:
    """Header and lines."""
    against = (f"against {baseline}", "95 % interval", "p", "verdict")
    header = ["network", "pruned %", "accuracy %", *against, *COSTS]
    return header, [[*_named(row), *_claimed(row["claim"]), *cost_cells(row)] for row in rows]


def _named(row: Mapping[str, Any]) -> list[str]:
    return [row["network"], f"{100 * row['pruned']:g}", accuracy_cell(row)]


def accuracy_cell(row: Mapping[str, Any]) -> str:
    """The accuracy in percent with its spread over seeds, and at how many of them it diverged."""
    spread = "" if row["spread"] is None else f" +- {100 * row['spread']:.2f}"
    lost = f"{row['diverged']} of {len(row['stopped'])} seeds diverged" if row["diverged"] else ""
    mean = "" if row["accuracy"] is None else f"{100 * row['accuracy']:.2f}{spread}"
    return ", ".join(filter(None, (mean, lost)))


def _claimed(claim: Mapping[str, Any] | None) -> list[str]:
    if claim is None or claim["points"] is None:
        return ["", "", "", claim["verdict"] if claim else ""]
    bounded = claim["low"] is not None
    between = f"[{claim['low']:+.2f}, {claim['high']:+.2f}]" if bounded else "unbounded"
    return [f"{claim['points']:+.2f}", between, f"{claim['p_holm']:.4f}", claim["verdict"]]


def cost_cells(row: Mapping[str, Any]) -> list[str]:
    """The columns `COSTS`."""
    parts = (row["finding"], row["in_all"])
    found = [one[what] for what in ("flops", "seconds") for one in parts]
    return ["" if value is None else f"{value:.3f}" for value in found]  # JSON has no NaN
