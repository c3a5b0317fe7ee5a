"""What a report shows of a run: what its folder holds, and what is measured anew from its meta-model.

The target nodes are adapted as by `refimpl adapt`. If asked for, the training is repeated for the accuracy by
round, and the true gap is computed. Both are then kept in the run's report folder, like those of
`compare --every` and `theory gap RUN`, and not computed a second time.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

from refimpl.errors import DataError
from refimpl.experiments.compare.work import (
    CURVE,
    Outcome,
    adapt_timed,
    curve_path,
    numbers,
    read_curve,
    read_records,
)
from refimpl.experiments.dealing import strangers, unseen_classes
from refimpl.experiments.experiment import Experiment, adapt_targets, meta_model, prepare_again
from refimpl.experiments.record import ENVIRONMENT, RunFolder
from refimpl.experiments.replay import over_the_run, replay
from refimpl.federated.adapt import NodeReport, divergence
from refimpl.federated.methods.metagater import MetaGater
from refimpl.federated.rounds import RoundRecord
from refimpl.files.storage import read_json
from refimpl.report.gap import POINTS
from refimpl.report.measure import ForwardPass, NodeMeasures, Openings, measure_node, openings
from refimpl.report.subject import Subject
from refimpl.theory.stationarity import GapRow, Inspection, note

GAP = "gap"  # name of the report with true gaps; `theory gap RUN` writes it, too
ACCURACY_POINTS, GAP_POINTS = 9, 4  # number of rounds at which accuracy and true gap are measured
CHEAP_SECONDS = 5.0  # what a report may spend unasked on repeating trainings, and as much on true gaps
GRADIENTS = 100  # rough number of gradients to solve a local problem for the true gap
OnStep = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class View(Outcome):
    """A run as an outcome of a comparison has it, with what figures need besides.

    What could not be computed is empty, and `missing` says why. gaps: points whose true gap is known;
    openings, forward: which channels are open at the target nodes, and the work there, where adaptation did
    not diverge; strangers: target nodes whose classes no training node has.
    """

    folder: Path
    environment: Mapping[str, Any]
    gaps: tuple[GapRow, ...] = ()
    openings: tuple[Openings, ...] = ()
    forward: tuple[ForwardPass, ...] = ()
    missing: tuple[str, ...] = ()
    strangers: tuple[str, ...] = ()


def has_gap(view: View) -> bool:
    """Whether the run's method has a stationarity gap."""
    return any(not math.isnan(record.gap) for record in view.records)


class Training(NamedTuple):
    """A meta-training, shown once even if several rows prune its model; `number` is the first row's."""

    number: int
    label: str
    view: View


def trainings(views: Sequence[View]) -> list[Training]:
    """The meta-trainings behind the views, in order."""
    found: dict[Path, Training] = {}
    for number, view in enumerate(views):
        first = found.get(view.folder, Training(number, "", view))
        label = ", ".join(filter(None, (first.label, view.label)))
        found[view.folder] = first._replace(label=label)
    return list(found.values())


@dataclass(frozen=True)
class Gathering:
    """Gathers the view of one run.

    records: the run's rounds; full: whether to do what takes long (None: what is within the share of
    `CHEAP_SECONDS` that falls to each of the report's `runs`); threads: those used to repeat the training.
    """

    subject: Subject
    experiment: Experiment
    folder: RunFolder
    records: tuple[RoundRecord, ...]
    full: bool | None
    threads: int | None
    on_step: OnStep
    runs: int = 1

    @classmethod
    def begin(
        cls,
        subject: Subject,
        data_dir: Path | None,
        full: bool | None,
        threads: int | None,
        on_step: OnStep,
        runs: int = 1,
    ) -> Self:
        """Read the run's data."""
        folder = RunFolder.open(subject.folder, lock=False)
        records = read_records(folder, subject.config.rounds if folder.has_model else 0)
        experiment = prepare_again(folder, data_dir, subject.config)
        return cls(subject, experiment, folder, records, full, threads, on_step, runs)

    def steps(self) -> int:
        """How often `on_step` will be called."""
        rounds = len(self.records)
        steps = rounds if self._does(self._accuracy_seconds) else 0
        if self._does(self._gap_seconds):
            steps += rounds + len(over_the_run(self.folder, GAP_POINTS)) * len(self.experiment.train_nodes)
        return steps + (len(self.experiment.target_nodes) if self.folder.has_model else 0)

    def view(self) -> View:
        """Measure everything; returns the view."""
        missing = []
        if not self.folder.has_model:
            missing.append(f"its training is not finished: refimpl train --resume --out {self.folder.path}")
        for seconds, what in (
            (self._accuracy_seconds, "accuracy by round needs --full, which repeats a training of"),
            (self._gap_seconds, "the true gap needs --full, which solves local problems for about"),
        ):
            if seconds is not None and not self._does(seconds):
                missing.append(f"{what} {round(seconds)} s")
        accuracy, gaps = self._accuracy(), self._gaps()
        reports, measures = self._adapt()
        if failure := divergence(reports):
            missing.append(f"the adapted models of some nodes: {failure}")
        nodes = self.experiment.train_nodes, self.experiment.target_nodes
        return View(
            self.subject.label,
            self.subject.config,
            self.records,
            reports,
            tuple(sorted(accuracy.items())),
            self.experiment.note,
            failure,
            folder=self.folder.path,
            environment=stored_environment(self.folder.path / ENVIRONMENT),
            gaps=gaps,
            openings=tuple(openings(measures)),
            forward=tuple(measure.forward for measure in measures),
            missing=tuple(missing),
            strangers=tuple(strangers(unseen_classes(*nodes), nodes[1])),
        )

    def _does(self, seconds: float | None) -> bool:
        """Whether to do something that takes so many seconds; None means that it is not needed."""
        if seconds is None or self.full is not None:
            return seconds is not None and bool(self.full)
        return seconds < CHEAP_SECONDS / self.runs

    # accuracy by round

    @cached_property
    def _stored_accuracy(self) -> dict[int, float]:
        return stored_accuracy(curve_path(self.folder), self.subject.key)

    @cached_property
    def _accuracy_seconds(self) -> float | None:
        """How long the training took that must be repeated; None where the last round's accuracy is known."""
        if not self.experiment.target_nodes or len(self.records) in {0, *self._stored_accuracy}:
            return None
        return math.fsum(record.seconds for record in self.records)

    def _accuracy(self) -> dict[int, float]:
        """The stored accuracy by round; if there is none, repeat the training and store it."""
        if not self._does(self._accuracy_seconds):
            return self._stored_accuracy
        found, wanted = dict(self._stored_accuracy), over_the_run(self.folder, ACCURACY_POINTS)
        for record, _, after in replay(self.experiment, self.folder, wanted[-1], self.threads):
            if record.round in wanted:
                w = self.experiment.method.model(after)
                reports = adapt_targets(self.experiment, w, threads=self.threads)
                found[record.round] = statistics.fmean(report.accuracy_after for report in reports)
            self.on_step(f"{self.subject.label}: accuracy by round")
        stored = read_curve(curve_path(self.folder))
        stored[self.subject.key] = {str(round_): value for round_, value in sorted(found.items())}
        self.folder.save_report(CURVE, stored)
        return found

    # true gap

    @cached_property
    def _stored_gaps(self) -> tuple[GapRow, ...]:
        return stored_gaps(self.folder.report / f"{GAP}.json")

    @cached_property
    def _gap_seconds(self) -> float | None:
        """How long solving takes, at the training's own pace; None where the last round's gap is known."""
        known = {0, *(row.round for row in self._stored_gaps)}
        if not isinstance(self.experiment.method, MetaGater) or len(self.records) in known:
            return None
        sizes = [len(node.train[1]) for node in self.experiment.train_nodes]
        batch = self.subject.config.batch_size or max(sizes)
        trained = sum(record.gradients for record in self.records) * batch
        solved = min(GAP_POINTS, len(self.records)) * sum(sizes) * GRADIENTS
        return math.fsum(record.seconds for record in self.records) * (1 + solved / max(trained, 1))

    def _gaps(self) -> tuple[GapRow, ...]:
        """The stored true gaps; if there are none, solve the local problems and store them."""
        if not self._does(self._gap_seconds):
            return self._stored_gaps
        inspection = Inspection(self.experiment, threads=self.threads)
        label, wanted = self.subject.label, over_the_run(self.folder, GAP_POINTS)
        rounds = inspection.replay(
            self.folder, wanted, lambda record: self.on_step(f"{label}: repeating rounds")
        )
        rows = [
            inspection.measure(point, lambda: self.on_step(f"{label}: true gap")) for point in list(rounds)
        ]
        content = {"what": note(self.experiment, rows), "points": [row._asdict() for row in rows]}
        self.folder.save_report(GAP, content)
        return tuple(rows)

    # target nodes

    def _adapt(self) -> tuple[tuple[NodeReport, ...], list[NodeMeasures]]:
        if not self.folder.has_model:
            return (), []
        w = meta_model(self.experiment, self.folder)
        reports, measures = [], []
        for index, node in enumerate(self.experiment.target_nodes):
            reports += adapt_timed(replace(self.experiment, target_nodes=(node,)), w)
            if not reports[-1].diverged:
                measures.append(measure_node(self.experiment, w, index))
            self.on_step(f"{self.subject.label}: adapting at {node.name}")
        return tuple(reports), measures


def stored_accuracy(path: Path, key: str) -> dict[int, float]:
    """Adapted accuracy by round stored under `key`; empty if none is; `DataError` if it is damaged."""
    return {int(round_): float(value) for round_, value in read_curve(path).get(key, {}).items()}


def stored_gaps(path: Path) -> tuple[GapRow, ...]:
    """The stored points whose true gap is known; empty if there are none; `DataError` if damaged."""
    rows = read_json(path) if path.is_file() else {"points": []}
    try:
        return tuple(_gap_row(row) for row in rows["points"])
    except (AttributeError, TypeError, KeyError, ValueError):
        raise _damage(path, "true gaps") from None


def _gap_row(stored: Mapping[str, Any]) -> GapRow:
    """A point read from JSON, which has no NaN; checks what figures need of it."""
    shown = numbers({key: stored[key] for key in ("round", "true_gap", "spread")})
    if stored["point"] not in POINTS:
        raise ValueError(f"expected one of {', '.join(POINTS)}")
    return GapRow(**{**stored, **shown, "round": int(shown["round"])})


def stored_environment(path: Path) -> dict[str, Any]:
    """The environment of a run, for a table of facts; `DataError` if it is damaged."""
    table = read_json(path)
    if not isinstance(table, dict) or not _shallow(table, 3):
        raise _damage(path, "an environment")
    return table


def _shallow(value: Any, levels: int) -> bool:
    """Whether tables and lists are nested at most `levels` deep."""
    if not isinstance(value, (dict, list)):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_shallow(item, levels - 1) for item in inner)


def _damage(path: Path, what: str) -> DataError:
    return DataError(f"{path}: expected {what}, found something else; remove it to have it made again")
