"""A run as a report shows it: what its folder holds, and what is measured anew from its meta-model.

The target nodes are adapted as `refimpl adapt` does. Where it is asked for, training is repeated for the
accuracy by round, and the true gap is solved for; both are then kept in the run's report folder, like those
of `compare --every` and `theory gap RUN`, and not computed a second time.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refimpl.comparison.work import CURVE, Outcome, adapt_timed, numbers
from refimpl.config import Config
from refimpl.experiment import Experiment, adapt_targets, prepare
from refimpl.federated.adapt import NodeReport
from refimpl.federated.metagater import MetaGater
from refimpl.federated.rounds import RoundRecord
from refimpl.record import ENVIRONMENT, RunFolder
from refimpl.replay import over_the_run, replay
from refimpl.report.measure import ForwardPass, NodeMeasures, Openings, measure_node, openings
from refimpl.report.subject import Subject
from refimpl.stationarity import GapRow, Inspection, note
from refimpl.storage import read_json

GAP = "gap"  # report of a run: `theory gap RUN` writes it as well
ACCURACY_POINTS, GAP_POINTS = 9, 4  # rounds at which accuracy and true gap are measured
CHEAP_SECONDS = 60.0  # of a run's own training: what it took may be spent again unasked
OnStep = Callable[[str], None]


@dataclass(frozen=True)
class View:
    """A run in numbers; what could not be had is empty, and `missing` says so.

    accuracy: (round, mean adapted accuracy over the target nodes); gaps: points whose true gap is known;
    reports, openings, forward: of the meta-model at the target nodes.
    """

    label: str
    folder: Path
    config: Config
    environment: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    accuracy: tuple[tuple[int, float], ...] = ()
    gaps: tuple[GapRow, ...] = ()
    reports: tuple[NodeReport, ...] = ()
    openings: tuple[Openings, ...] = ()
    forward: tuple[ForwardPass, ...] = ()
    data: str = ""
    missing: tuple[str, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """The same as an outcome of a comparison, for its tables."""
        records = tuple(RoundRecord(**numbers(entry)) for entry in self.metrics)
        return Outcome(self.label, self.config, records, self.reports, self.accuracy, self.data)


def has_gap(view: View) -> bool:
    """Whether the run's method has a stationarity gap."""
    return any(entry["gap"] is not None for entry in view.metrics)


class Training(NamedTuple):
    """A meta-training, shown once though several rows may prune its model; `number`: of the first of them."""

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
    """One run's view in the making. full: whether to repeat the training; threads: for that."""

    subject: Subject
    experiment: Experiment
    folder: RunFolder
    full: bool
    threads: int | None
    on_step: OnStep

    @classmethod
    def begin(
        cls, subject: Subject, data_dir: Path | None, full: bool | None, threads: int | None, on_step: OnStep
    ) -> Gathering:
        """Read the run's data; full: None for runs whose training took less than `CHEAP_SECONDS`."""
        folder = RunFolder.open(subject.folder, lock=False)
        experiment = replace(prepare(subject.config, data_dir), config=subject.config)
        if full is None:
            full = sum(entry["seconds"] for entry in folder.metrics()) < CHEAP_SECONDS
        return cls(subject, experiment, folder, full, threads, on_step)

    def steps(self) -> int:
        """How often `on_step` will be called."""
        repeated = self._last() if self._repeats_for_accuracy() else 0
        solved = self._last() + GAP_POINTS * len(self.experiment.train_nodes) if self._solves_gaps() else 0
        nodes = len(self.experiment.target_nodes) if self.folder.has_model else 0
        return repeated + solved + nodes

    def view(self) -> View:
        """Do it all."""
        metrics, missing = self.folder.metrics(), []
        if not self.folder.has_model:
            missing.append(f"its training is not finished: refimpl train --resume --out {self.folder.path}")
        if not self.full and (self._wants_accuracy() or self._wants_gaps()):
            missing.append(f"accuracy by round and true gap need --full, which repeats {len(metrics)} rounds")
        accuracy, gaps = self._accuracy(), self._gaps()
        reports, measures = self._adapt()
        return View(
            self.subject.label,
            self.folder.path,
            self.subject.config,
            read_json(self.folder.path / ENVIRONMENT),
            metrics,
            accuracy,
            gaps,
            reports,
            tuple(openings(measures)),
            tuple(measure.forward for measure in measures),
            self.experiment.note,
            tuple(missing),
        )

    # accuracy by round

    def _last(self) -> int:
        return len(self.folder.metrics())

    def _stored_accuracy(self) -> dict[int, float]:
        path = self.folder.report / f"{CURVE}.json"
        stored = read_json(path) if path.is_file() else {}
        return {int(round_): value for round_, value in stored.get(self.subject.key, {}).items()}

    def _wants_accuracy(self) -> bool:
        return bool(self.experiment.target_nodes) and self._last() not in {0, *self._stored_accuracy()}

    def _repeats_for_accuracy(self) -> bool:
        return self.full and self._wants_accuracy()

    def _accuracy(self) -> tuple[tuple[int, float], ...]:
        """What is stored, or what repeating the training gives; it is then stored."""
        found = self._stored_accuracy()
        if self._repeats_for_accuracy():
            wanted = over_the_run(self.folder, ACCURACY_POINTS)
            for record, _, after in replay(self.experiment, self.folder, wanted[-1], self.threads):
                if record.round in wanted:
                    reports = adapt_targets(self.experiment, self.experiment.method.model(after))
                    found[record.round] = statistics.fmean(report.accuracy_after for report in reports)
                self.on_step(f"{self.subject.label}: accuracy by round")
            path = self.folder.report / f"{CURVE}.json"
            stored = read_json(path) if path.is_file() else {}
            stored[self.subject.key] = {str(round_): value for round_, value in sorted(found.items())}
            self.folder.save_report(CURVE, stored)
        return tuple(sorted(found.items()))

    # true gap

    def _wants_gaps(self) -> bool:
        missing = not (self.folder.report / f"{GAP}.json").is_file()
        return missing and isinstance(self.experiment.method, MetaGater) and self._last() > 0

    def _solves_gaps(self) -> bool:
        return self.full and self._wants_gaps()

    def _gaps(self) -> tuple[GapRow, ...]:
        """What is stored, or what solving the local problems gives; it is then stored."""
        if not self._solves_gaps():
            path = self.folder.report / f"{GAP}.json"
            stored = read_json(path)["points"] if path.is_file() else []
            return tuple(GapRow(**{key: _number(value) for key, value in row.items()}) for row in stored)
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
        w = self._model()
        reports, measures = [], []
        for index, node in enumerate(self.experiment.target_nodes):
            reports += adapt_timed(replace(self.experiment, target_nodes=(node,)), w)
            measures.append(measure_node(self.experiment, w, index))
            self.on_step(f"{self.subject.label}: adapting at {node.name}")
        return tuple(reports), measures

    def _model(self) -> np.ndarray:
        layout, dtype = self.experiment.network.layout, self.experiment.config.dtype
        arrays = self.folder.load_model(like=layout.views(np.empty(layout.size, dtype)))
        return layout.from_arrays(arrays, dtype)


def _number(value: Any) -> Any:
    return math.nan if value is None else value
