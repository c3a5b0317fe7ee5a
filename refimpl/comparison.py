"""Several methods over several seeds, summed up as the rows of one table.

Accuracy is that of the last round's meta-model after adaptation, on the target nodes' test parts: first
the mean over nodes, then mean and spread (standard deviation) over seeds. Never the best round.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from refimpl import tables
from refimpl.config import Config
from refimpl.experiment import Experiment, Trained, adapt_targets, prepare, train
from refimpl.federated.adapt import NodeReport
from refimpl.federated.rounds import RoundRecord
from refimpl.methods import PRUNES, notes
from refimpl.record import RunFolder
from refimpl.warmup import warm_up

OnRound = Callable[[Config, RoundRecord], None]


@dataclass(frozen=True)
class Outcome:
    """One run: its configuration, rounds, target nodes, and seconds of meta-training."""

    config: Config
    records: tuple[RoundRecord, ...]
    reports: tuple[NodeReport, ...]
    train_seconds: float


@dataclass(frozen=True)
class Row:
    """One method over all seeds. Shares in 0..1, FLOPs per test sample, seconds per node or run.

    sparsity_spread: standard deviation over target nodes of the nodes' mean sparsity, mean over seeds.
    weights_off: share of weights pruned one by one, which skips nothing.
    gap_*: surrogate stationarity gap in the first and last round, geometric mean over seeds (NaN for
    methods without one).
    """

    method: str
    seeds: int
    accuracy_before: float
    accuracy_after: float
    accuracy_spread: float
    sparsity_mean: float
    sparsity_spread: float
    flops_dense: float
    flops_executed: float
    adapt_seconds: float
    train_seconds: float
    gap_first: float
    gap_last: float
    weights_off: float = 0.0


@dataclass
class Runner:
    """Runs configurations; methods that share a meta-training (metagater-ungated, metasnip*) share it.

    on_round: told of every round; stop: asked after every round (see `train`); folder_of: where a
    configuration's training is recorded, if anywhere.
    """

    data_dir: str | Path | None = None
    threads: int | None = None
    on_round: OnRound = lambda config, record: None
    stop: Callable[[], bool] = lambda: False
    folder_of: Callable[[Config], RunFolder | None] = lambda config: None
    _trained: dict[str, tuple[Trained, tuple[RoundRecord, ...], float]] = field(default_factory=dict)

    def run(self, config: Config) -> Outcome:
        """Meta-train (or reuse the same training) and adapt at the target nodes.

        Raises `KeyboardInterrupt` where `stop` ended the training early.
        """
        experiment = prepare(config, self.data_dir)
        key = training_key(config)
        if key not in self._trained:
            self._trained[key] = self._train(experiment)
        trained, records, seconds = self._trained[key]
        return Outcome(config, records, tuple(adapt_targets(experiment, trained.w)), seconds)

    def _train(self, experiment: Experiment) -> tuple[Trained, tuple[RoundRecord, ...], float]:
        config, records = experiment.config, list[RoundRecord]()

        def on_round(record: RoundRecord) -> None:
            records.append(record)
            self.on_round(config, record)

        folder = self.folder_of(config)
        warm_up(config.dtype)
        started = time.perf_counter()
        trained = train(experiment, folder, threads=self.threads, on_round=on_round, stop=self.stop)
        if trained.rounds < config.rounds:
            raise KeyboardInterrupt
        return trained, tuple(records), time.perf_counter() - started


def training_key(config: Config) -> str:
    """Equal for configurations with the same meta-training: adaptation settings do not enter it."""
    method = PRUNES.get(config.method, config.method)
    neutral = replace(config, method=method, eta_phi=0.0, eta_theta=0.0, adapt_steps=1, snip_keep=1.0)
    return json.dumps(neutral.table(), sort_keys=True)


def compare(configs: Iterable[Config], seeds: Sequence[int], runner: Runner) -> list[list[Outcome]]:
    """All outcomes: one list (over seeds) for each configuration."""
    return [[runner.run(replace(config, seed=seed)) for seed in seeds] for config in configs]


def summarise(outcomes: Sequence[Outcome]) -> Row:
    """The row of one method from its outcomes over seeds."""
    accuracies = [_mean(outcome, "accuracy_after") for outcome in outcomes]
    spreads = [statistics.pstdev(r.sparsity_mean for r in outcome.reports) for outcome in outcomes]

    def mean(field: str) -> float:
        return statistics.fmean(_mean(outcome, field) for outcome in outcomes)

    return Row(
        method=outcomes[0].config.method,
        seeds=len(outcomes),
        accuracy_before=mean("accuracy_before"),
        accuracy_after=statistics.fmean(accuracies),
        accuracy_spread=statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        sparsity_mean=mean("sparsity_mean"),
        sparsity_spread=statistics.fmean(spreads),
        flops_dense=mean("flops_dense"),
        flops_executed=mean("flops_executed"),
        adapt_seconds=mean("seconds_gate") + mean("seconds_backbone"),
        train_seconds=statistics.fmean(outcome.train_seconds for outcome in outcomes),
        gap_first=_geometric(outcome.records[0].gap for outcome in outcomes),
        gap_last=_geometric(outcome.records[-1].gap for outcome in outcomes),
        weights_off=mean("weights_off"),
    )


def _mean(outcome: Outcome, field: str) -> float:
    return statistics.fmean(getattr(report, field) for report in outcome.reports)


def _geometric(values: Iterable[float]) -> float:
    positive = [value for value in values if value > 0]
    return statistics.geometric_mean(positive) if positive else math.nan


HEADER = (
    "method", "accuracy %", "before %", "off %", "kFLOP dense", "executed", "adapt ms", "train s", "gap"
)  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text in the layout of the paper's comparison tables, FLOPs beside seconds.

    Below it, a line for each method whose numbers do not speak for themselves.
    """
    lines = notes([row.method for row in rows])
    return "\n".join([tables.table(HEADER, [_cells(row) for row in rows]), *lines])


def _weights_off(row: Row) -> str:
    return f"weights {100 * row.weights_off:.1f}" if row.weights_off > 0 else "-"


def _cells(row: Row) -> tuple[str, ...]:
    gap = "-" if math.isnan(row.gap_first) else f"{row.gap_first:.3g} -> {row.gap_last:.2g}"
    gated = row.flops_executed != row.flops_dense
    return (
        row.method,
        f"{100 * row.accuracy_after:.2f} +- {100 * row.accuracy_spread:.2f}",
        f"{100 * row.accuracy_before:.2f}",
        f"{100 * row.sparsity_mean:.1f} +- {100 * row.sparsity_spread:.1f}" if gated else _weights_off(row),
        f"{row.flops_dense / 1e3:.1f}",
        f"{row.flops_executed / 1e3:.1f}",
        f"{1e3 * row.adapt_seconds:.2f}",
        f"{row.train_seconds:.1f}",
        gap,
    )
