"""`refimpl demo`: the paper's comparison in small, offline, on the embedded handwritten digits."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refimpl.cli.app import INTERRUPTED
from refimpl.cli.compiling import notice
from refimpl.cli.interrupt import stop_requests
from refimpl.cli.options import json_option, quiet_option, threads_option
from refimpl.cli.output import print_json, table
from refimpl.cli.progress import Progress, round_text
from refimpl.config import Config, resolve
from refimpl.record import RunFolder, check_free

if TYPE_CHECKING:
    from refimpl.comparison import Outcome
    from refimpl.federated.rounds import RoundRecord

METHODS = ("fedavg", "perfedavg", "metagater-ungated", "metasnip", "metagater")
GAP_ROWS = 8  # rounds shown in the table of gaps


@click.command(epilog="\b\nExamples:\n  refimpl demo\n  refimpl demo --seeds 1 --rounds 10 --json")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [runs/demo, or the next free]")
@click.option("--force", is_flag=True, help="Replace the run in --out.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Seeds per method.")
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
        try:
            outcomes = _run_all(configs, range(seed, seed + seeds), folder, threads, quiet)
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


def _run_all(
    configs: Sequence[Config], seeds: Sequence[int], folder: RunFolder, threads: int | None, quiet: bool
) -> list[list[Outcome]]:
    """Outcomes by method, then seed, with progress; the gated run of the first seed goes into the folder."""
    from refimpl.comparison import Runner, compare, training_key

    recorded = folder.config
    trainings = {training_key(config) for config in configs}
    with (
        Progress(len(trainings) * len(seeds) * configs[0].rounds, quiet) as progress,
        notice(progress),
        stop_requests() as stop,
    ):
        progress.say("five methods on handwritten digits")

        def on_round(config: Config, record: RoundRecord) -> None:
            name = f"{config.method}, seed {config.seed}"
            progress.step(round_text(name, record, config.rounds, config.method == "metagater"))

        runner = Runner(
            threads=threads,
            on_round=on_round,
            stop=stop,
            folder_of=lambda config: folder if config.table() == recorded else None,
        )
        return compare(configs, seeds, runner)


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
