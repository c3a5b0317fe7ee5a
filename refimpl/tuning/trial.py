"""One setting of one method: trained without the validation nodes, scored at them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from refimpl.config import Config
from refimpl.errors import DivergenceError, RefimplError
from refimpl.experiment import Experiment, adapt_targets, prepare, train
from refimpl.parallel import Stop, Tell
from refimpl.tuning.search import Search, Setting


@dataclass(frozen=True)
class Trial:
    """One setting: mean adapted accuracy and loss over validation nodes, then over seeds.

    score and loss are None where training diverged; `failure` then says how.
    """

    method: str
    trial: int
    setting: Setting
    score: float | None
    loss: float | None
    scores: list[float]
    seconds: float
    failure: str = ""


@dataclass(frozen=True)
class Job:
    """A trial as a worker gets it."""

    search: Search
    trial: int
    data_dir: Path | None
    threads: int


def validation_experiment(config: Config, validation: int, data_dir: Path | None = None) -> Experiment:
    """The configured experiment with its last `validation` training nodes in the place of the targets."""
    experiment = prepare(config, data_dir)
    training, held = experiment.train_nodes[:-validation], experiment.train_nodes[-validation:]
    return replace(experiment, train_nodes=training, target_nodes=held)


def run_trial(job: Job, tell: Tell, stop: Stop) -> Trial | None:
    """Train and score one setting at every seed; None where it was stopped."""
    search, started = job.search, time.perf_counter()
    setting, scores, losses = search.settings()[job.trial], list[float](), list[float]()
    for seed in search.seeds:
        config = replace(search.config, seed=seed, **setting)
        experiment = validation_experiment(config, search.validation, job.data_dir)
        try:
            with np.errstate(all="ignore"):  # a rate too large is an answer, not a fault
                trained = train(experiment, threads=job.threads, on_round=tell, stop=stop)
        except DivergenceError as error:
            seconds = time.perf_counter() - started
            return Trial(config.method, job.trial, setting, None, None, [], seconds, f"seed {seed}: {error}")
        if trained.rounds < config.rounds:
            return None
        reports = adapt_targets(experiment, trained.w)
        scores.append(statistics.fmean(report.accuracy_after for report in reports))
        losses.append(statistics.fmean(report.loss_after for report in reports))
    seconds, score, loss = time.perf_counter() - started, statistics.fmean(scores), statistics.fmean(losses)
    return Trial(search.config.method, job.trial, setting, score, loss, scores, seconds)


def best(trials: Sequence[Trial]) -> Trial:
    """The most accurate trial; of equals the one of smaller loss, then the first."""
    if not trials:
        raise RefimplError("tune: no trial was made; go on with --resume")
    good = [trial for trial in trials if trial.score is not None]
    if not good:
        raise RefimplError(
            f"tune: all {len(trials)} trials of {trials[0].method} diverged; give smaller ranges with --range"
        )
    return min(good, key=lambda t: (-_number(t.score), _number(t.loss), t.trial))


def _number(value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else value
