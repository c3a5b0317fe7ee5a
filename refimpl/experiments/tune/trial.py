"""One setting of one method: trained without the validation nodes, scored at them.

Trials that differ in their adaptation alone share a meta-training.
"""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.data.identity import Recorded
from refimpl.errors import DivergenceError, RefimplError
from refimpl.experiments.config import Config
from refimpl.experiments.experiment import Experiment, adapt_targets, prepare, train
from refimpl.experiments.jobs import Stop, Tell
from refimpl.experiments.methods import training_key
from refimpl.experiments.tune.search import Search, Setting
from refimpl.federated.adapt import NodeReport, divergence

Reports = Sequence[NodeReport]


@dataclass(frozen=True)
class Trial:
    """One setting: mean adapted accuracy and loss over validation nodes, then over seeds.

    score and loss are None where training diverged, or adaptation at any validation node; `failure` then says
    how. seconds: of the meta-training and all trials that share it; rung: of successive halving.
    """

    method: str
    trial: int
    setting: Setting
    score: float | None
    loss: float | None
    scores: list[float]
    seconds: float
    failure: str = ""
    rung: int = 0

    @property
    def diverged(self) -> bool:
        """Whether the setting is no candidate; earlier versions recorded a score without a loss then."""
        return any(value is None or not math.isfinite(value) for value in (self.score, self.loss))


@dataclass(frozen=True)
class Job:
    """Trials that share a meta-training, as a worker process receives them: the search and number of each.

    data: what they must be made on, by seed, where that is known.
    """

    trials: tuple[tuple[Search, int], ...]
    data_dir: Path | None
    threads: int
    data: Mapping[int, Recorded] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its first trial, which is in no other job."""
        search, number = self.trials[0]
        return f"{search.config.method}-{search.rung}-{number}"


def validation_experiment(
    config: Config, validation: int, data_dir: Path | None = None, recorded: Recorded | None = None
) -> Experiment:
    """The configured experiment with its last `validation` training nodes in the place of the targets."""
    experiment = prepare(config, data_dir, recorded)
    training, held = experiment.train_nodes[:-validation], experiment.train_nodes[-validation:]
    return replace(experiment, train_nodes=training, target_nodes=held)


def jobs(trials: Sequence[tuple[Search, int]], data_dir: Path | None, cores: int) -> list[Job]:
    """The trials, those with the same meta-training together, in the order of the first of each.

    Each job gets one of the cores, or several where there are fewer jobs.
    """
    shared: dict[tuple[Any, ...], list[tuple[Search, int]]] = {}
    for search, number in trials:
        config = replace(search.config, seed=0, **search.settings()[number])
        key = (training_key(config), search.seeds, search.validation)
        shared.setdefault(key, []).append((search, number))
    threads = max(1, cores // max(1, len(shared)))
    return [Job(tuple(group), data_dir, threads) for group in shared.values()]


def run_trials(job: Job, tell: Tell, stop: Stop) -> list[Trial] | None:
    """Train once at every seed, then score every trial; None where it was stopped."""
    (search, number), started = job.trials[0], time.perf_counter()
    reports: list[list[Reports]] = []  # by seed, then trial
    for seed in search.seeds:
        config = replace(search.config, seed=seed, **search.settings()[number])
        experiment = validation_experiment(config, search.validation, job.data_dir, job.data.get(seed))
        try:
            with np.errstate(all="ignore"):  # a rate too large is an answer, not a fault
                trained = train(experiment, threads=job.threads, on_round=tell, stop=stop)
        except DivergenceError as error:
            seconds = time.perf_counter() - started
            return [_diverged(*trial, seconds, f"seed {seed}: {error}") for trial in job.trials]
        if trained.rounds < search.config.rounds:
            return None
        reports.append([_adapted(experiment, trained.w, *trial, job.threads) for trial in job.trials])
    seconds = time.perf_counter() - started
    return [
        _scored(*trial, seconds, of_seeds)
        for trial, of_seeds in zip(job.trials, zip(*reports, strict=True), strict=True)
    ]


def _adapted(experiment: Experiment, w: np.ndarray, search: Search, number: int, threads: int) -> Reports:
    config = replace(search.config, seed=experiment.config.seed, **search.settings()[number])
    return adapt_targets(replace(experiment, config=config), w, threads=threads)


def _diverged(search: Search, number: int, seconds: float, why: str) -> Trial:
    setting = search.settings()[number]
    return Trial(search.config.method, number, setting, None, None, [], seconds, why, search.rung)


def _scored(search: Search, number: int, seconds: float, of_seeds: Sequence[Reports]) -> Trial:
    for seed, reports in zip(search.seeds, of_seeds, strict=True):
        if failure := divergence(reports):
            return _diverged(search, number, seconds, f"seed {seed}: {failure}")
    scores = [statistics.fmean(report.accuracy_after for report in reports) for reports in of_seeds]
    loss = statistics.fmean(statistics.fmean(report.loss_after for report in reports) for reports in of_seeds)
    setting, score = search.settings()[number], statistics.fmean(scores)
    return Trial(search.config.method, number, setting, score, loss, scores, seconds, rung=search.rung)


def best(trials: Sequence[Trial]) -> Trial:
    """The most accurate trial of the highest rung; of equals the one of smaller loss, then the first."""
    if not trials:
        raise RefimplError("tune: no trial was made; go on with --resume")
    good = [trial for trial in trials if not trial.diverged]
    if not good:
        raise RefimplError(
            f"tune: all trials of {trials[0].method} diverged; give smaller ranges with --range"
        )
    return min(good, key=lambda t: (-t.rung, -(t.score or 0.0), t.loss, t.trial))


def survivors(trials: Sequence[Trial], count: int) -> list[int]:
    """The settings of the `count` best trials of one rung, by number; trials that diverged are left out."""
    good = sorted((t for t in trials if not t.diverged), key=lambda t: (-(t.score or 0.0), t.loss, t.trial))
    return sorted(t.trial for t in good[:count])
