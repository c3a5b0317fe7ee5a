"""`refimpl train`: meta-trains one method with one model on one data set, and writes a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refimpl.cli.app import INTERRUPTED
from refimpl.cli.compiling import WARM_UP, notice
from refimpl.cli.interrupt import stop_requests
from refimpl.cli.options import PATH, Session, file_option, preset_option, run_options
from refimpl.cli.output import command_line, facts, print_json
from refimpl.cli.progress import Progress, round_text
from refimpl.errors import RunError
from refimpl.experiments.config import Config, absolute, from_table, resolve
from refimpl.experiments.record import RunFolder, check_free
from refimpl.files.storage import toml_text

if TYPE_CHECKING:
    from refimpl.experiments.experiment import Experiment
    from refimpl.federated.rounds import RoundRecord

EPILOG = """\b
Examples:
  refimpl train --dataset digits --method metagater --rounds 10 --out runs/first
  refimpl train --out runs/first --resume
  refimpl train --dataset digits --dry-run > my.toml
  refimpl train --config my.toml --seed 1
  refimpl train --preset cifar10-small --data-dir ~/data
  refimpl train --dataset mine.npz --classes-per-node 3
"""


@click.command(epilog=EPILOG)
@file_option
@preset_option
@click.option("--out", type=PATH, help="Run folder.  [runs/DATASET-METHOD-SEED]")
@click.option("--resume", is_flag=True, help="Continue the run in --out from its checkpoint.")
@click.option("--force", is_flag=True, help="Replace the run in --out.")
@click.option("--dry-run", is_flag=True, help="Print the resolved configuration as TOML and stop.")
@run_options()
@click.pass_context
def command(
    ctx: click.Context,
    file: Path | None,
    from_preset: str | None,
    out: Path | None,
    resume: bool,
    force: bool,
    dry_run: bool,
    session: Session,
    **options: Any,
) -> None:
    """Meta-train one method on one data set into a run folder.

    Settings come from the data set's preset or from --preset. Those in the file of --config override them,
    and the options below override both. The options are named like the keys of the file, with hyphens for
    underscores. --dry-run shows the settings that result; the same table is stored in the run folder. Ctrl-C
    stops after the round in progress. --resume continues from there, and ends in the same bytes as an
    uninterrupted run.
    """
    if resume and (force or dry_run or out is None):
        raise click.UsageError("--resume needs --out RUN, and neither --force nor --dry-run", ctx)
    from refimpl.experiments.experiment import prepare, prepare_again

    if resume and out is not None:
        with RunFolder.open(out) as folder:
            config = _resumed_config(folder, file, from_preset, options)
            ctx.exit(_run(session, prepare_again(folder, session.data_dir, config), folder, resume=True))
    config = resolve(file, from_preset, **options)
    if dry_run:
        click.echo(toml_text(config.table()), nl=False)
        return
    out = out or Path("runs") / f"{Path(config.dataset).stem}-{config.method}-{config.seed}"
    check_free(out, force)  # checked before the data are read, and again when the folder is made
    experiment = prepare(config, session.data_dir)
    with RunFolder.create(out, config.table(), force, session.threads, experiment.data) as folder:
        ctx.exit(_run(session, experiment, folder, resume=False))


def _resumed_config(
    folder: RunFolder, file: Path | None, from_preset: str | None, options: Mapping[str, Any]
) -> Config:
    """The run's own configuration; options that are given again must agree with it."""
    stored = from_table(folder.config, str(folder.path))
    given = {key: value for key, value in options.items() if value is not None}
    if "dataset" in given:
        given["dataset"] = absolute(given["dataset"])
    wanted = given if file is None and from_preset is None else resolve(file, from_preset, **given).table()
    for key, value in wanted.items():
        own = stored.table()[key]
        if own != value:
            raise RunError(
                f"{folder.path}: was started with {key} = {own!r}, not {value!r}; "
                "resume it without that option, or start another run"
            )
    return stored


def _run(session: Session, experiment: Experiment, folder: RunFolder, resume: bool) -> int:
    """Train and print a summary; returns the exit code."""
    from refimpl.experiments.experiment import train
    from refimpl.federated.warmup import warm_up

    config, gated = experiment.config, bool(experiment.network.gates)
    left = config.rounds - (_rounds_saved(folder) if resume else 0)
    with suppress(KeyboardInterrupt):
        with Progress(left, session.talk) as progress, notice(progress, WARM_UP), stop_requests() as stop:
            progress.say(f"{config.method} on {config.dataset}")

            def on_round(record: RoundRecord) -> None:
                progress.step(round_text(config.method, record, config.rounds, gated))

            warm_up(config.dtype, session.threads)
            trained = train(
                experiment, folder, resume=resume, threads=session.threads, on_round=on_round, stop=stop
            )
        if trained.rounds == config.rounds:
            _print(session, folder, experiment.note)
            return 0
    again = command_line("train", "--resume", "--out", folder.path, session=session)
    click.echo(f"refimpl: stopped with {_rounds_saved(folder)} rounds saved; go on with: {again}", err=True)
    return INTERRUPTED


def _rounds_saved(folder: RunFolder) -> int:
    return folder.load_checkpoint().round if folder.has_checkpoint else 0


def _print(session: Session, folder: RunFolder, note: str) -> None:
    rounds = folder.metrics()
    last, seconds = rounds[-1], sum(entry["seconds"] for entry in rounds)
    if session.as_json:
        summary = {"run": str(folder.path), "seconds": seconds, "data": note, "last": last}
        print_json({**summary, "config": folder.config})
        return
    gap = [] if last["gap"] is None else [("gap", f"{rounds[0]['gap']:.2e} -> {last['gap']:.2e}")]
    lines = [
        ("run", str(folder.path)),
        ("method", folder.config["method"]),
        *([("data", note)] if note else []),
        ("rounds", str(last["round"])),
        ("loss", f"{rounds[0]['loss']:.4f} -> {last['loss']:.4f}"),
        *gap,
        ("channels off", f"{last['closed_share']:.1%}"),
        ("seconds", f"{seconds:.1f}"),
        ("next", command_line("adapt", folder.path, session=session, threads=False)),
    ]
    click.echo(facts(lines))
