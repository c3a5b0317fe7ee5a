"""One meta-training of a comparison and the rows that adapt its meta-model, in the training's run folder.

Training pauses for every measurement of accuracy by round. An interrupted training continues from
its checkpoint and gives the same numbers.
"""

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.data.identity import Identity
from refimpl.data.node import Node
from refimpl.errors import DataError, RunError, cause
from refimpl.experiments.compare.plan import Cell, Training
from refimpl.experiments.config import Config, completed
from refimpl.experiments.experiment import (
    Experiment,
    adapt_targets,
    meta_model,
    personalise,
    prepare_again,
    train,
)
from refimpl.experiments.jobs import Stop, Tell
from refimpl.experiments.record import METRICS, RunFolder
from refimpl.federated.adapt import LARGEST, NodeReport, divergence
from refimpl.federated.rounds import RoundRecord
from refimpl.files.storage import read_json

CURVE = "accuracy-by-round"  # report of a run: accuracy of each of its rows at some rounds
REPEATS = 5  # adaptations of a node; the median of their seconds is reported


@dataclass(frozen=True)
class Outcome:
    """One run of a row, at a seed and a fold: its results, or why there are none.

    label: the row's name; config: the run's settings; records: its rounds; reports: its adapted target nodes;
    accuracy_by_round: mean adapted accuracy over the target nodes after some rounds, NaN if adaptation
    diverged at one; note: what the data set says a result should mention; failure: where and how training
    diverged (there are then no results) or adaptation after the last round did, else empty.
    """

    label: str
    config: Config
    records: tuple[RoundRecord, ...] = ()
    reports: tuple[NodeReport, ...] = ()
    accuracy_by_round: tuple[tuple[int, float], ...] = ()
    note: str = ""
    failure: str = ""


@dataclass(frozen=True)
class Job:
    """A training, in the form in which a worker process receives it.

    folder: where the run is written; training: what is trained; every: rounds between two measurements of the
    accuracy; data_dir: where data lie; threads: how many it may use; data: what it must be trained on, if
    known.
    """

    folder: Path
    training: Training
    every: int
    data_dir: Path | None
    threads: int
    data: Identity | None = None


# --- its folder


def _open(job: Job, lock: bool = True) -> RunFolder:
    """Open the training's run folder, with `lock=False` only to read it; it must agree with the plan."""
    folder = RunFolder.open(job.folder, lock)
    if completed(folder.config) != job.training.config.table():
        folder.close()
        raise RunError(f"{job.folder}: holds another run than the plan says; remove it")
    return folder


def _begin(job: Job) -> RunFolder:
    """Open the training's run folder, or create it."""
    if job.folder.is_dir():
        return _open(job)
    return RunFolder.create(job.folder, job.training.config.table(), threads=job.threads, data=job.data)


def rounds_left(job: Job) -> int:
    """The number of rounds still to be trained."""
    rounds = job.training.config.rounds
    if not job.folder.is_dir():
        return rounds
    return rounds - _open(job, lock=False).rounds_saved


def trained(job: Job) -> bool:
    """Whether all rounds are trained and all accuracies by round are measured."""
    if not job.folder.is_dir():
        return False
    folder = _open(job, lock=False)
    return folder.has_model and not _missing(job, read_curve(curve_path(folder)), job.training.config.rounds)


def pending(job: Job) -> list[Cell]:
    """The cells not yet adapted."""
    return [cell for cell in job.training.cells if not _report_path(job, cell).is_file()]


def _report_path(job: Job, cell: Cell) -> Path:
    return job.folder / "report" / f"{cell.name}.json"


# --- training


def train_one(job: Job, tell: Tell, stop: Stop) -> None:
    """Train from the last checkpoint to the end, pausing at the rounds where accuracy is measured."""
    with _begin(job) as folder:
        experiment = prepare_again(folder, job.data_dir, job.training.config)
        # A node's work of round 1 is done and discarded, so that the seconds of rounds include no compiling.
        point = experiment.method.broadcast(experiment.start(), 1)
        experiment.method.local(experiment.tasks()[0], point, np.random.default_rng(0))
        while True:
            done = folder.rounds_saved
            _measure(job, folder, experiment, done)
            if folder.has_model or stop():
                return
            pause = _until_due(job, done, stop)
            train(experiment, folder, resume=True, threads=job.threads, on_round=tell, stop=pause)


def _until_due(job: Job, done: int, stop: Stop) -> Stop:
    """A function to call after every round that follows `done`; it returns whether to pause."""
    rounds = itertools.count(done + 1)
    return lambda: _due(job, next(rounds)) or stop()


def _due(job: Job, round_: int) -> bool:
    """Whether accuracy is measured after this round."""
    return job.every > 0 and (round_ % job.every == 0 or round_ == job.training.config.rounds)


def curve_path(folder: RunFolder) -> Path:
    """The file with accuracy by round."""
    return folder.report / f"{CURVE}.json"


def read_curve(path: Path) -> dict[str, dict[str, float]]:
    """Mean adapted accuracy by row and round (as text, since JSON has only text as keys), so far measured.

    It is NaN where adaptation diverged. The result is empty if there is no such file; raises `DataError` if
    the file has anything else in it.
    """
    curve = read_json(path) if path.is_file() else {}
    try:
        curve = {row: with_nan(rounds) for row, rounds in curve.items()}
        _check_numbers(accuracy for rounds in curve.values() for accuracy in rounds.values())
        _ = [int(round_) for rounds in curve.values() for round_ in rounds]
    except (AttributeError, TypeError, ValueError):
        raise DataError(f"{path}: expected accuracies by round; remove it to have it made again") from None
    return curve


def _missing(job: Job, curve: Mapping[str, Mapping[str, float]], round_: int) -> list[Cell]:
    """The cells whose accuracy after `round_` is wanted but not yet measured."""
    if not _due(job, round_):
        return []
    return [cell for cell in job.training.cells if str(round_) not in curve.get(cell.label, {})]


def _measure(job: Job, folder: RunFolder, experiment: Experiment, done: int) -> None:
    curve = read_curve(curve_path(folder))
    missing = _missing(job, curve, done) if done else []
    if not missing:
        return
    w = experiment.method.model(folder.load_checkpoint(like=experiment.start()).arrays)
    for cell in missing:
        reports = adapt_targets(replace(experiment, config=cell.config), w, threads=job.threads)
        accuracy = statistics.fmean(report.accuracy_after for report in reports)
        curve.setdefault(cell.label, {})[str(done)] = accuracy
    folder.save_report(CURVE, curve)


# --- adaptation


def adapt_cells(job: Job, tell: Tell, stop: Stop) -> None:
    """Adapt and test those cells of the training that have no results yet; tells of each its accuracy."""
    left = pending(job)
    if not left:
        return
    with _open(job) as folder:
        experiment = prepare_again(folder, job.data_dir, job.training.config)
        w = meta_model(experiment, folder)
        for cell in left:
            if stop():
                return
            reports = adapt_timed(replace(experiment, config=cell.config), w, job.threads)
            nodes = [report._asdict() for report in reports]
            folder.save_report(cell.name, {"label": cell.label, "data": experiment.note, "nodes": nodes})
            tell((cell, statistics.fmean(report.accuracy_after for report in reports)))


def adapt_timed(experiment: Experiment, w: np.ndarray, threads: int | None = None) -> list[NodeReport]:
    """As `adapt_targets`, but seconds are the medians over `REPEATS` further adaptations of each node.

    These run one after the other, on one thread. Nodes at which adaptation diverged are not adapted again:
    their seconds mean nothing.
    """
    pairs = zip(adapt_targets(experiment, w, threads=threads), experiment.target_nodes, strict=True)
    return [report if report.diverged else _timed(experiment, w, node, report) for report, node in pairs]


def _timed(experiment: Experiment, w: np.ndarray, node: Node, report: NodeReport) -> NodeReport:
    repeats = [personalise(experiment, w, node).adapted for _ in range(REPEATS)]
    return report._replace(
        seconds_gate=statistics.median(adapted.seconds_gate for adapted in repeats),
        seconds_backbone=statistics.median(adapted.seconds_backbone for adapted in repeats),
    )


def outcome_of(job: Job, cell: Cell, failure: str) -> Outcome:
    """The outcome of a cell as recorded in its folder."""
    if failure:
        return Outcome(cell.label, cell.config, failure=failure)
    folder, path = _open(job, lock=False), _report_path(job, cell)
    content = read_json(path)
    try:
        reports = tuple(NodeReport(**numbers(node)) for node in content["nodes"])
        note = str(content["data"])
    except (AttributeError, TypeError, KeyError):
        raise DataError(f"{path}: expected reports of nodes; remove it to have it made again") from None
    curve = sorted((int(r), a) for r, a in read_curve(curve_path(folder)).get(cell.label, {}).items())
    records = read_records(folder, cell.config.rounds)
    return Outcome(cell.label, cell.config, records, reports, tuple(curve), note, divergence(reports))


def read_records(folder: RunFolder, least: int = 0) -> tuple[RoundRecord, ...]:
    """The records of a run; raises `DataError` unless they are of rounds 1, 2, ... and reach `least`."""
    path = folder.path / METRICS
    try:
        records = tuple(RoundRecord(**numbers(entry)) for entry in folder.metrics())
    except TypeError as error:
        raise DataError(f"{path}: expected a line of numbers for each round, found {cause(error)}") from None
    rounds = [record.round for record in records]
    if rounds != list(range(1, max(least, len(rounds)) + 1)):
        raise DataError(f"{path}: expected rounds 1..{max(least, len(rounds))}, each once; lines are missing")
    return records


def with_nan(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Values read from JSON, with NaN instead of the null that JSON has for it."""
    return {key: math.nan if value is None else value for key, value in entry.items()}


def numbers(entry: Mapping[str, Any]) -> dict[str, Any]:
    """`with_nan` of an entry; raises `TypeError` unless all values except names are numbers."""
    found = with_nan(entry)
    _check_numbers(value for key, value in found.items() if key not in ("node", "nodes"))
    return found


def _check_numbers(values: Iterable[object]) -> None:
    """Raise `TypeError` unless all are numbers, either NaN or at most `LARGEST`, so that sums are finite."""
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > LARGEST:
            raise TypeError(f"expected a number, got {type(value).__name__}")
