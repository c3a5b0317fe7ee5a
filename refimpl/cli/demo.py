"""`refimpl demo`: the paper's comparison in small, offline, on the embedded handwritten digits."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refimpl.cli.app import INTERRUPTED
from refimpl.cli.interrupt import stop_requests
from refimpl.cli.options import json_option, quiet_option, threads_option
from refimpl.cli.output import print_json, table
from refimpl.cli.progress import Progress, round_text
from refimpl.config import Config, resolve
from refimpl.record import RunFolder, check_free

if TYPE_CHECKING:
    from refimpl.comparison import Outcome
    from refimpl.experiment import Experiment, Trained
    from refimpl.federated.rounds import RoundRecord

METHODS = ("fedavg", "perfedavg", "metagater-ungated", "metasnip", "metagater")
GAP_ROWS = 8  # rounds shown in the table of gaps


@click.command(epilog="\b\nExamples:\n  refimpl demo\n  refimpl demo --seeds 1 --rounds 10 --json")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [runs/demo, or the next free]")
@click.option("--force", is_flag=True, help="Replace the run in --out.")
@click.option("--seeds", type=click.IntRange(min=1), default=2, show_default=True, help="Seeds per method.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The first seed.")
@click.option("--rounds", type=click.IntRange(min=1), help="Rounds per run.  [as in the preset]")
@threads_option
@json_option
@quiet_option
@click.pass_context
def command(
    ctx: click.Context,
    out: Path | None,
    force: bool,
    seeds: int,
    seed: int,
    rounds: int | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Meta-train, adapt and compare five methods on handwritten digits, offline.

    Nodes hold two classes each; the meta-models are adapted at nodes never seen in training. The table shows
    test accuracy there after adaptation (mean over nodes; mean and spread over seeds), the share of channels
    off, FLOPs and seconds. The run folder holds the gated run of the first seed and all numbers in report/.
    """
    from refimpl.comparison import summarise
    from refimpl.comparison import table as comparison_table

    out = _free_folder(out, force)
    configs = [resolve(dataset="digits", method=method, rounds=rounds, seed=seed) for method in METHODS]
    recorded = next(config for config in configs if config.method == "metagater")
    with RunFolder.create(out, recorded.table(), force, threads) as folder:
        runs = _Runs(folder, recorded, threads, quiet)
        try:
            outcomes = runs.all(configs, range(seed, seed + seeds))
        except KeyboardInterrupt:
            click.echo(
                f"refimpl: demo stopped; start it again with --out {shlex.quote(str(out))} --force", err=True
            )
            ctx.exit(INTERRUPTED)
        rows = [summarise(group) for group in outcomes]
        content = {
            "rows": [vars(row) for row in rows],
            "runs": [_plain(o) for group in outcomes for o in group],
        }
        folder.save_report("comparison", content)
    if as_json:
        print_json({"run": str(out), **content})
        return
    click.echo(f"{comparison_table(rows)}\n\n{_gap_table(outcomes)}\n\nrun folder: {out}")


def _free_folder(out: Path | None, force: bool) -> Path:
    """The folder asked for, if it may be written; else the first free one of runs/demo, runs/demo-2, ..."""
    if out is not None:
        check_free(out, force)
        return out
    return next(path for path in _names() if not path.exists())


def _names() -> Iterator[Path]:
    yield Path("runs") / "demo"
    number = 2
    while True:
        yield Path("runs") / f"demo-{number}"
        number += 1


class _Runs:
    """Trains and adapts; methods with the same meta-training share it; one run goes into the folder."""

    def __init__(self, folder: RunFolder, recorded: Config, threads: int | None, quiet: bool) -> None:
        self.folder, self.recorded, self.threads, self.quiet = folder, recorded, threads, quiet
        self.trained: dict[str, tuple[Trained, tuple[RoundRecord, ...], float]] = {}

    def all(self, configs: Sequence[Config], seeds: Sequence[int]) -> list[list[Outcome]]:
        """Outcomes by method, then seed."""
        from refimpl.comparison import training_key

        work = [[replace(config, seed=seed) for seed in seeds] for config in configs]
        distinct = {training_key(config): config.rounds for group in work for config in group}
        with Progress(sum(distinct.values()), self.quiet) as progress, stop_requests() as stop:
            progress.say("five methods on handwritten digits; the first run also compiles the kernels")
            return [[self._one(config, progress, stop) for config in group] for group in work]

    def _one(self, config: Config, progress: Progress, stop: Callable[[], bool]) -> Outcome:
        from refimpl.comparison import Outcome, training_key
        from refimpl.experiment import adapt_targets, prepare

        experiment = prepare(config)
        key = training_key(config)
        if key not in self.trained:
            self.trained[key] = self._train(experiment, progress, stop)
        trained, records, seconds = self.trained[key]
        return Outcome(config, records, tuple(adapt_targets(experiment, trained.w)), seconds)

    def _train(
        self, experiment: Experiment, progress: Progress, stop: Callable[[], bool]
    ) -> tuple[Trained, tuple[RoundRecord, ...], float]:
        from refimpl.experiment import train

        config, gated, records = experiment.config, bool(experiment.network.gates), []

        def on_round(record: RoundRecord) -> None:
            records.append(record)
            progress.step(round_text(f"{config.method}, seed {config.seed}", record, config.rounds, gated))

        folder = self.folder if config == self.recorded else None
        started = time.perf_counter()
        trained = train(experiment, folder, threads=self.threads, on_round=on_round, stop=stop)
        if trained.rounds < config.rounds:
            raise KeyboardInterrupt
        return trained, tuple(records), time.perf_counter() - started


def _plain(outcome: Outcome) -> dict[str, Any]:
    return {
        "config": outcome.config.table(),
        "train_seconds": outcome.train_seconds,
        "rounds": [record._asdict() for record in outcome.records],
        "nodes": [report._asdict() for report in outcome.reports],
    }


def _gap_table(outcomes: Sequence[Sequence[Outcome]]) -> str:
    """Stationarity gap by round of the first seed's runs, for the methods that have one."""
    runs = [
        group[0]
        for group in outcomes
        if not math.isnan(group[0].records[0].gap)
        and group[0].config.method != "metasnip"  # the same training as metagater-ungated
    ]
    count = len(runs[0].records)
    shown = sorted({round(count ** (step / (GAP_ROWS - 1))) for step in range(GAP_ROWS)})
    rows = [(str(row), *(f"{run.records[row - 1].gap:.2e}" for run in runs)) for row in shown]
    return table(("stationarity gap, round", *(run.config.method for run in runs)), rows)
