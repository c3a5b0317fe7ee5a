"""A comparison in a folder: results that are missing are trained and adapted, the others are read.

`plan.json` says what is compared, `data.json` on which data; `runs/` has a run folder for each meta-training.
Its `report/` has the results at the target nodes for every row that adapts its meta-model (rows that prune
the same model share its training).

Trainings run at the same time, in several processes, and those of a shared comparison on several machines,
which claim them one by one (`files/claims.py`). Adaptation follows when all are done, seed by seed. Its
seconds are a result, so they are measured one node at a time, with nothing beside it.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from refimpl.contracts import never, nothing
from refimpl.data.identity import Identity, identities_from
from refimpl.errors import DivergenceError, RefimplError, RunError, TakenError
from refimpl.experiments.compare.plan import Cell, Claims, Plan, plan_from_text
from refimpl.experiments.compare.work import (
    Job,
    Outcome,
    adapt_cells,
    outcome_of,
    pending,
    rounds_left,
    train_one,
    trained,
)
from refimpl.experiments.experiment import try_out
from refimpl.experiments.jobs import Stop, divide_jobs
from refimpl.experiments.record import CONFIG, DATA, LOCK, REPORT, check_free, kind_at
from refimpl.federated.rounds import RoundRecord
from refimpl.federated.warmup import warm_up
from refimpl.files.claims import Claims as Taken
from refimpl.files.environment import cores
from refimpl.files.folders import building, move_into_place
from refimpl.files.lock import locked
from refimpl.files.storage import json_text, read_bytes, read_json, write_whole

UNFINISHED = "diverged, or not finished"
PLAN, RESULTS, TABLE, CSV, RUNS = "plan.json", "results.json", "table.md", "table.csv", "runs"
TAKEN = "claims"
FIGURES = {"accuracy": "accuracy.png", "frontier": "frontier.png"}
OWN_FILES = frozenset({PLAN, DATA, RESULTS, TABLE, CSV, RUNS, TAKEN, REPORT, LOCK, *FIGURES.values()})


@dataclass(frozen=True)
class Comparison:
    """A comparison at `path`; `create` begins a new one, `open` opens an existing one.

    plan: what is compared, over which seeds; data_dir: the folder of the data sets, by default that of
    REFIMPL_DATA; threads: cores to use, one for each training, or several if there are fewer trainings;
    shared: whether other processes may work on it at the same time.
    """

    path: Path
    plan: Plan
    data_dir: Path | None = None
    threads: int | None = None
    shared: bool = False

    @classmethod
    def create(
        cls,
        path: str | Path,
        plan: Plan,
        force: bool = False,
        data_dir: Path | None = None,
        threads: int | None = None,
    ) -> Self:
        """Begin a new comparison; `force` replaces an existing one. The plan is tried out first."""
        path = Path(path)
        check_free(path, force, PLAN, OWN_FILES, "a comparison")
        data = {name: identity.table() for name, identity in check_plan(plan, data_dir).items()}
        with building(path) as folder:
            write_whole(folder / PLAN, json_text(plan.table()).encode())
            write_whole(folder / DATA, json_text(data).encode())
            move_into_place(folder, path, PLAN, _locks(path) if force else [])
        return cls(path, plan, data_dir, threads)

    @classmethod
    def open(cls, path: str | Path, data_dir: Path | None = None, threads: int | None = None) -> Self:
        """Open a comparison that was begun earlier."""
        path = Path(path)
        if not (path / PLAN).is_file():
            found = f"it holds {kind}" if (kind := kind_at(path)) else "start one with refimpl compare"
            raise RunError(f"{path}: not a comparison (it has no {PLAN}); {found}")
        text = read_bytes(path / PLAN).decode(errors="replace")
        return cls(path, plan_from_text(str(path / PLAN), text), data_dir, threads)

    @classmethod
    def join(
        cls, path: str | Path, plan: Plan, data_dir: Path | None = None, threads: int | None = None
    ) -> Self:
        """Begin a shared comparison, or take part in the one that another machine has begun."""
        with suppress(TakenError):
            return replace(cls.create(path, plan, False, data_dir, threads), shared=True)
        found = cls.open(path, data_dir, threads)
        if found.plan != plan:
            raise RunError(f"{path}: holds a comparison of another plan; give all machines the same options")
        return replace(found, shared=True)

    def claiming(self, claims: Claims) -> Self:
        """The same comparison with these claims, recorded as stated afterwards where it had none.

        Raises `RunError` if it states others: they do not change when results are known.
        """
        stated = self.plan.claims
        if stated:
            if (stated.baseline, stated.margin) == (claims.baseline, claims.margin):
                return self
            raise RunError(
                f"{self.path}: states the baseline {stated.baseline} and the margin {stated.margin:g}, which "
                "do not change afterwards; leave both out, or compare anew in another folder"
            )
        plan = replace(self.plan, claims=replace(claims, afterwards=True))
        with locked(self.path / LOCK, self.path):
            write_whole(self.path / PLAN, json_text(plan.table()).encode())
        return replace(self, plan=plan)

    def jobs(self) -> list[Job]:
        """All trainings, with the threads for each."""
        trainings = self.plan.trainings()
        each = max(1, (self.threads or cores()) // len(trainings))
        folder, data = self.path / RUNS, self.data()
        return [
            Job(folder / t.name, t, self.plan.every, self.data_dir, each, data.get(t.name)) for t in trainings
        ]

    def data(self) -> dict[str, Identity]:
        """The data of each training by its name; empty for a comparison that an older version began."""
        path = self.path / DATA
        return identities_from(str(path), read_json(path)) if path.is_file() else {}

    def steps(self) -> int:
        """The number of rounds and adaptations that are still to be done."""
        return sum(rounds_left(job) + len(pending(job)) for job in self.jobs())

    def run(
        self,
        on_round: Callable[[Cell, RoundRecord], None] = nothing,
        on_adapted: Callable[[Cell, float], None] = nothing,
        stop: Stop = never,
    ) -> list[Outcome]:
        """Do what is still to be done and return all outcomes, by row, then seed, then fold.

        Raises `KeyboardInterrupt` if `stop` ended it early; finished work is kept. Raises `RunError` if
        another process is working on this comparison.
        """
        with (
            locked(self.path / LOCK, self.path, self.shared),
            Taken(self.path / TAKEN if self.shared else None) as taken,
        ):
            jobs = self.jobs()
            failures = self._train(jobs, taken, on_round, stop)
            self._adapt([job for job in jobs if job.training.name not in failures], taken, on_adapted, stop)
            return self._outcomes(jobs, failures)

    def read(self) -> list[Outcome]:
        """The outcomes so far, in the order of `run`; a training without a result counts as failed."""
        jobs = self.jobs()
        unfinished = {job.training.name: UNFINISHED for job in jobs if not trained(job) or pending(job)}
        return self._outcomes(jobs, unfinished)

    def _outcomes(self, jobs: list[Job], failures: Mapping[str, str]) -> list[Outcome]:
        found = {
            (cell.label, cell.config.seed, cell.config.fold): outcome_of(
                job, cell, failures.get(job.training.name, "")
            )
            for job in jobs
            for cell in job.training.cells
        }
        return [
            found[label, seed, fold]
            for label, config in self.plan.rows
            for seed in self.plan.seeds
            for fold in range(config.folds)
        ]

    def _train(
        self, jobs: list[Job], taken: Taken, on_round: Callable[[Cell, RoundRecord], None], stop: Stop
    ) -> dict[str, str]:
        """Run the missing trainings; the messages of those that diverged, by name of the training."""
        failures: dict[str, str] = {}

        def left() -> dict[str, Job]:
            missing = [job for job in jobs if job.training.name not in failures and not trained(job)]
            return {job.training.name: job for job in missing}

        def on_told(job: Job, record: RoundRecord) -> None:
            on_round(job.training.cells[0], record)

        for dtype in sorted({job.training.config.dtype for job in left().values()}):
            warm_up(dtype, self.threads)  # once; otherwise every worker would compile the same kernels
        workers = self.threads or cores()
        for job, result in divide_jobs(train_one, left, workers, taken, on_told, stop):
            if isinstance(result, DivergenceError):
                failures[job.training.name] = str(result)
            elif isinstance(result, RefimplError):
                raise result
        return failures

    def _adapt(
        self, jobs: list[Job], taken: Taken, on_adapted: Callable[[Cell, float], None], stop: Stop
    ) -> None:
        """Make the adaptations that are missing, one training after the other."""
        own = [replace(job, threads=self.threads or cores()) for job in jobs]

        def left() -> dict[str, Job]:
            return {job.training.name: job for job in own if pending(job)}

        def on_told(job: Job, message: tuple[Cell, float]) -> None:
            on_adapted(*message)

        for _, result in divide_jobs(adapt_cells, left, 1, taken, on_told, stop):
            if isinstance(result, RefimplError):
                raise result


def _locks(path: Path) -> list[Path]:
    """The locks to take before the comparison at `path` is deleted: its own and those of its runs."""
    if not (path / PLAN).is_file():
        return []
    return [path / LOCK, *(run.parent / LOCK for run in (path / RUNS).glob(f"*/{CONFIG}"))]


def check_plan(plan: Plan, data_dir: Path | None) -> dict[str, Identity]:
    """Try out every row at every seed before anything is run, and return the data of each training.

    Raises the error of the first row that does not work.
    """
    cells = [(training.name, cell) for training in plan.trainings() for cell in training.cells]
    named = [(f"compare: {cell.title}", cell.config) for _, cell in cells]
    found = try_out(named, data_dir)
    return {name: sound.data for (name, _), sound in zip(cells, found, strict=True)}
