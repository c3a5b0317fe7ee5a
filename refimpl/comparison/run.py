"""A comparison in a folder: what it does not hold yet is trained and adapted, the rest is read.

`plan.json` says what is compared; `runs/` has a run folder for each meta-training, whose `report/` holds the
target nodes of every row that adapts its meta-model (rows that prune the same model share its training).

Trainings run next to each other, in processes. Adaptation follows when they are done, one at a time and
alone on the machine, seed by seed, since its seconds are a result.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.comparison.plan import Cell, Plan, Training, plan_from_text
from refimpl.config import Config
from refimpl.errors import DataError, DivergenceError, RefimplError, RunError
from refimpl.experiment import (
    Experiment,
    adapt_targets,
    build_network,
    default_threads,
    personalise,
    prepare,
    reopen,
    train,
)
from refimpl.federated.adapt import Adapted, NodeReport
from refimpl.federated.rounds import RoundRecord
from refimpl.methods import build_method, is_gated
from refimpl.parallel import Stop, Tell, run_jobs
from refimpl.record import RunFolder
from refimpl.storage import json_text, read_bytes, reason, write_whole
from refimpl.warmup import warm_up

PLAN, RESULTS, TABLE, CSV, RUNS = "plan.json", "results.json", "table.md", "table.csv", "runs"
FIGURES = {"accuracy": "accuracy.png", "frontier": "frontier.png"}
OWN_FILES = frozenset({PLAN, RESULTS, TABLE, CSV, RUNS, *FIGURES.values()})
CURVE = "accuracy-by-round"  # report of a run: accuracy of each of its rows at some rounds
REPEATS = 5  # adaptations of a node, of whose seconds the median is reported


@dataclass(frozen=True)
class Outcome:
    """One row at one seed: its rounds and its adapted target nodes, or why there are none.

    accuracy_by_round: mean adapted accuracy over the target nodes after some rounds; note: what the data
    set says a result should mention; failure: where and how training diverged, else empty.
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
    """A training as a worker gets it."""

    folder: Path
    training: Training
    every: int
    data_dir: Path | None
    threads: int


@dataclass(frozen=True)
class Comparison:
    """A comparison at `path`; `create` begins one, `open` returns to one.

    threads: cores to use, each for one training, or several for one where there are fewer trainings.
    """

    path: Path
    plan: Plan
    data_dir: Path | None = None
    threads: int | None = None

    @classmethod
    def create(
        cls,
        path: str | Path,
        plan: Plan,
        force: bool = False,
        data_dir: Path | None = None,
        threads: int | None = None,
    ) -> Comparison:
        """A new comparison; one that is there goes only with `force`. The plan is tried out first."""
        path = Path(path)
        check_free(path, force)
        check_plan(plan, data_dir)
        try:
            if path.exists():
                shutil.rmtree(path)
            path.mkdir(parents=True)
        except OSError as error:
            raise RunError(f"{path}: cannot make a folder: {reason(error)}") from None
        write_whole(path / PLAN, json_text(plan.table()).encode())
        return cls(path, plan, data_dir, threads)

    @classmethod
    def open(cls, path: str | Path, data_dir: Path | None = None, threads: int | None = None) -> Comparison:
        """A comparison that was begun."""
        path = Path(path)
        if not (path / PLAN).is_file():
            raise RunError(f"{path}: not a comparison (it has no {PLAN}); start one with refimpl compare")
        text = read_bytes(path / PLAN).decode(errors="replace")
        return cls(path, plan_from_text(str(path / PLAN), text), data_dir, threads)

    def jobs(self) -> list[Job]:
        """All trainings, with the threads for each."""
        trainings = self.plan.trainings()
        each = max(1, (self.threads or default_threads()) // len(trainings))
        folder = self.path / RUNS
        return [Job(folder / t.name, t, self.plan.every, self.data_dir, each) for t in trainings]

    def steps(self) -> int:
        """Rounds and adaptations that are left to do."""
        jobs = self.jobs()
        return sum(_rounds_left(job) + len(_pending(job)) for job in jobs)

    def run(
        self,
        on_round: Callable[[Cell, RoundRecord], None] = lambda cell, record: None,
        on_adapted: Callable[[Cell, float], None] = lambda cell, accuracy: None,
        stop: Stop = lambda: False,
    ) -> list[Outcome]:
        """Do what is left; all outcomes, in the plan's order of rows, then seeds.

        Raises `KeyboardInterrupt` where `stop` ended it early; what was done is kept.
        """
        jobs = self.jobs()
        failures = self._train(jobs, on_round, stop)
        for job in jobs:
            if job.training.name not in failures:
                _adapt(job, on_adapted, stop)
        found = {
            (cell.label, cell.config.seed): _outcome(job, cell, failures.get(job.training.name, ""))
            for job in jobs
            for cell in job.training.cells
        }
        return [found[label, seed] for label, _ in self.plan.rows for seed in self.plan.seeds]

    def _train(
        self, jobs: list[Job], on_round: Callable[[Cell, RoundRecord], None], stop: Stop
    ) -> dict[str, str]:
        """Train what is not; where training diverged, by name of the training, how."""
        left = [job for job in jobs if not _trained(job)]
        failures: dict[str, str] = {}
        for dtype in sorted({job.training.config.dtype for job in left}):
            warm_up(dtype)  # once, before the workers would all compile the same

        def on_told(index: int, record: RoundRecord) -> None:
            on_round(left[index].training.cells[0], record)

        for index, result in run_jobs(train_one, left, self.threads or default_threads(), on_told, stop):
            if isinstance(result, DivergenceError):
                failures[left[index].training.name] = str(result)
            elif isinstance(result, RefimplError):
                raise result
        return failures


# --- folders


def check_free(path: Path, force: bool) -> None:
    """Raise `RunError` unless a comparison may be put at `path`."""
    if not path.exists():
        return
    if not path.is_dir():
        raise RunError(f"{path}: expected a folder, found a file; choose another --out")
    present = sorted(item.name for item in path.iterdir())
    if not present:
        return
    if PLAN not in present:
        raise RunError(f"{path}: exists and is not a comparison; choose another --out")
    if not force:
        raise RunError(f"{path}: exists; continue it with --resume or replace it with --force")
    foreign = [name for name in present if name not in OWN_FILES]
    if foreign:
        raise RunError(f"{path}: --force would delete {', '.join(foreign)}; move that elsewhere first")


def check_plan(plan: Plan, data_dir: Path | None) -> None:
    """Raise what is wrong with the data set or with any row's network or method, before anything is run."""
    first = prepare(replace(plan.rows[0][1], seed=plan.seeds[0]), data_dir).network
    for _, config in plan.rows:
        gated = is_gated(config) or config.method == "metasnip"
        build_method(config, build_network(config, first.input_shape, first.classes, gated))


def _open(job: Job, lock: bool = True) -> RunFolder:
    """The training's run folder, to be continued, or with `lock=False` to be read; it must be the plan's."""
    folder = RunFolder.open(job.folder, lock)
    if folder.config != job.training.config.table():
        folder.close()
        raise RunError(f"{job.folder}: holds another run than the plan says; remove it")
    return folder


def _begin(job: Job) -> RunFolder:
    """The training's run folder, new if it is not there."""
    if job.folder.is_dir():
        return _open(job)
    return RunFolder.create(job.folder, job.training.config.table(), threads=job.threads)


def _done(folder: RunFolder) -> int:
    return folder.load_checkpoint().round if folder.has_checkpoint else 0


def _rounds_left(job: Job) -> int:
    rounds = job.training.config.rounds
    if not job.folder.is_dir():
        return rounds
    return rounds - _done(_open(job, lock=False))


def _trained(job: Job) -> bool:
    """Whether nothing is left to be trained, or measured on the way."""
    if not job.folder.is_dir():
        return False
    folder = _open(job, lock=False)
    return folder.has_model and not _missing(job, _curve(folder), job.training.config.rounds)


def _pending(job: Job) -> list[Cell]:
    """The cells not yet adapted."""
    return [cell for cell in job.training.cells if not _report_path(job, cell).is_file()]


def _report_path(job: Job, cell: Cell) -> Path:
    return job.folder / "report" / f"{cell.name}.json"


def _read(path: Path) -> Any:
    try:
        return json.loads(read_bytes(path))
    except ValueError:
        raise DataError(f"{path}: expected JSON, found damage; remove it to have it made again") from None


# --- training


def train_one(job: Job, tell: Tell, stop: Stop) -> None:
    """Train from the last checkpoint on, in stretches between the rounds at which accuracy is measured."""
    with _begin(job) as folder:
        experiment = prepare(job.training.config, job.data_dir)
        _rehearse(experiment)
        while True:
            done = _done(folder)
            _measure(job, folder, experiment, done)
            if folder.has_model or stop():
                return
            pause = _until_due(job, done, stop)
            train(experiment, folder, resume=True, threads=job.threads, on_round=tell, stop=pause)


def _rehearse(experiment: Experiment) -> None:
    """A node's work of round 1, thrown away: so that no round's seconds are the compiler's or the disk's."""
    point = experiment.method.broadcast(experiment.start(), 1)
    experiment.method.local(experiment.tasks()[0], point, np.random.default_rng(0))


def _until_due(job: Job, done: int, stop: Stop) -> Stop:
    """What says, asked after every round that follows `done`, whether to pause."""
    rounds = itertools.count(done + 1)
    return lambda: _due(job, next(rounds)) or stop()


def _due(job: Job, round_: int) -> bool:
    """Whether accuracy is measured after this round."""
    return job.every > 0 and (round_ % job.every == 0 or round_ == job.training.config.rounds)


def _curve(folder: RunFolder) -> dict[str, dict[str, float]]:
    """Mean adapted accuracy by row and round (a word, as JSON has it), as far as it was measured."""
    path = folder.report / f"{CURVE}.json"
    return _read(path) if path.is_file() else {}


def _missing(job: Job, curve: Mapping[str, Mapping[str, float]], round_: int) -> list[Cell]:
    """The cells whose accuracy after `round_` is wanted and not there."""
    if not _due(job, round_):
        return []
    return [cell for cell in job.training.cells if str(round_) not in curve.get(cell.label, {})]


def _measure(job: Job, folder: RunFolder, experiment: Experiment, done: int) -> None:
    curve = _curve(folder)
    missing = _missing(job, curve, done) if done else []
    if not missing:
        return
    w = experiment.method.model(folder.load_checkpoint(like=experiment.start()).arrays)
    for cell in missing:
        reports = adapt_targets(replace(experiment, config=cell.config), w)
        accuracy = statistics.fmean(report.accuracy_after for report in reports)
        curve.setdefault(cell.label, {})[str(done)] = accuracy
    folder.save_report(CURVE, curve)


# --- adaptation


def _adapt(job: Job, on_adapted: Callable[[Cell, float], None], stop: Stop) -> None:
    """Adapt and test the training's cells that are not yet."""
    pending = _pending(job)
    if not pending:
        return
    with _open(job) as folder:
        experiment, w = reopen(folder, job.data_dir)
        for cell in pending:
            if stop():
                raise KeyboardInterrupt
            reports = adapt_timed(replace(experiment, config=cell.config), w)
            nodes = [report._asdict() for report in reports]
            folder.save_report(cell.name, {"label": cell.label, "data": experiment.note, "nodes": nodes})
            on_adapted(cell, statistics.fmean(report.accuracy_after for report in reports))


def adapt_timed(experiment: Experiment, w: np.ndarray) -> list[NodeReport]:
    """As `adapt_targets`, but seconds are the medians over `REPEATS` further adaptations of each node."""
    reports = adapt_targets(experiment, w)
    repeats = [
        [personalise(experiment, w, node).adapted for _ in range(REPEATS)] for node in experiment.target_nodes
    ]
    return [_with_medians(*pair) for pair in zip(reports, repeats, strict=True)]


def _with_medians(report: NodeReport, repeats: list[Adapted]) -> NodeReport:
    return report._replace(
        seconds_gate=statistics.median(adapted.seconds_gate for adapted in repeats),
        seconds_backbone=statistics.median(adapted.seconds_backbone for adapted in repeats),
    )


def _outcome(job: Job, cell: Cell, failure: str) -> Outcome:
    """What the folder holds of a cell."""
    if failure:
        return Outcome(cell.label, cell.config, failure=failure)
    folder, path = _open(job, lock=False), _report_path(job, cell)
    content = _read(path)
    try:
        reports = tuple(NodeReport(**_numbers(node)) for node in content["nodes"])
        records = tuple(RoundRecord(**_numbers(entry)) for entry in folder.metrics())
        note = str(content["data"])
    except (TypeError, KeyError):
        raise DataError(f"{path}: expected reports of nodes; remove it to have it made again") from None
    curve = sorted((int(r), a) for r, a in _curve(folder).get(cell.label, {}).items())
    return Outcome(cell.label, cell.config, records, reports, tuple(curve), note)


def _numbers(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they were before JSON, which has no NaN."""
    return {key: math.nan if value is None else value for key, value in entry.items()}
