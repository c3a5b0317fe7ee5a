"""`refimpl engine`: runs federations over Flower, simulated here or as an app for many machines."""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refimpl.cli.app import INTERRUPTED
from refimpl.cli.groups import SuggestingGroup
from refimpl.cli.interrupt import stop_requests
from refimpl.cli.options import (
    NUMBER_LIST,
    PATH,
    Session,
    config_options,
    file_option,
    key_options,
    preset_option,
    session_options,
)
from refimpl.cli.output import command_line, facts, print_json
from refimpl.cli.progress import Progress
from refimpl.engine.rounds import Patience
from refimpl.errors import RunError
from refimpl.experiments.config import Config, resolve
from refimpl.experiments.record import RunFolder, check_free
from refimpl.registry import keys_of

if TYPE_CHECKING:
    from refimpl.engine.job import Job
    from refimpl.engine.rounds import FederatedRecord

PATIENCE = keys_of(Patience)

EPILOG = """\b
Examples:
  refimpl engine simulate --dataset digits --method fedavg --nodes 4 --rounds 5 --out runs/simulated
  refimpl engine app federation --shape 1,8,8 --classes 3 --nodes 3 --address server.example.org:8000
"""


@click.group(cls=SuggestingGroup, epilog=EPILOG)
def command() -> None:
    """Run federations over Flower, simulated or over many machines.

    The meta-model has the same bytes as that of `refimpl train` with the same settings, as long as all nodes
    answer. Both commands need the extra: pip install "refimpl[flower]".
    """


patience_options = key_options(PATIENCE.values(), ())


def _split(options: dict[str, Any]) -> tuple[Patience, dict[str, Any]]:
    """The options of `Patience`, and the others."""
    given = {name: options.pop(name) for name in PATIENCE}
    return Patience(**{name: value for name, value in given.items() if value is not None}), options


@command.command(
    "simulate",
    epilog="\b\nExamples:\n  refimpl engine simulate --dataset digits --nodes 4 --out runs/simulated\n"
    "  refimpl engine simulate --out runs/simulated --resume",
)
@file_option
@preset_option
@click.option("--out", type=PATH, help="Run folder.  [runs/simulated-DATASET-METHOD-SEED]")
@click.option("--resume", is_flag=True, help="Continue the run in --out from its checkpoint.")
@click.option("--force", is_flag=True, help="Replace the run in --out.")
@session_options("threads", "data_dir", "json", "talk")
@patience_options
@config_options()
@click.pass_context
def simulate_command(
    ctx: click.Context,
    file: Path | None,
    from_preset: str | None,
    out: Path | None,
    resume: bool,
    force: bool,
    session: Session,
    **options: Any,
) -> None:
    """Meta-train with Flower's simulation on Ray.

    Every node's work is a message to one of the processes that Ray starts, as many as --threads says; they
    end with the command. Nothing is sent to other machines. The run folder is that of `refimpl train`, with
    the nodes' faults besides.
    """
    patience, given = _split(options)
    given = {name: value for name, value in given.items() if value is not None}
    if resume and (force or file or from_preset or given or out is None):
        raise click.UsageError("--resume needs --out RUN, and no settings", ctx)
    _need_flower()
    from refimpl.engine.job import prepared
    from refimpl.experiments.config import from_table

    if resume and out is not None:
        with RunFolder.open(out) as folder:
            config = from_table(folder.config, str(folder.path))
            job, data = prepared(config, session.data_dir, folder.data)
            ctx.exit(_simulate(session, job, folder, patience))
    config = resolve(file, from_preset, **given)
    out = out or Path("runs") / f"simulated-{Path(config.dataset).stem}-{config.method}-{config.seed}"
    check_free(out, force)
    job, data = prepared(config, session.data_dir)
    with RunFolder.create(out, job.saving.table(), force, session.threads, data) as folder:
        ctx.exit(_simulate(session, job, folder, patience))


def _simulate(session: Session, job: Job, folder: RunFolder, patience: Patience) -> int:
    """Train and print a summary; returns the exit code."""
    from refimpl.engine.flower import simulate

    config = job.config
    with suppress(KeyboardInterrupt):
        with Progress(config.rounds, session.talk) as progress, stop_requests() as stop:

            def on_round(record: FederatedRecord) -> None:
                progress.step(
                    f"{config.method}  round {record.round}/{config.rounds}  loss {record.loss:.4f}"
                )

            trained = simulate(job, folder, patience, session.data_dir, session.threads, on_round, stop)
        if trained.rounds == config.rounds:
            _print(session, folder)
            return 0
    again = command_line("engine", "simulate", "--resume", "--out", folder.path, session=session)
    click.echo(f"refimpl: stopped after a round that is saved; go on with: {again}", err=True)
    return INTERRUPTED


def _print(session: Session, folder: RunFolder) -> None:
    rounds = folder.metrics()
    faults = sum(len(why) for entry in rounds for why in entry["faults"].values())
    if session.as_json:
        print_json({"run": str(folder.path), "faults": faults, "last": rounds[-1], "config": folder.config})
        return
    lines = [
        ("run", str(folder.path)),
        ("rounds", str(len(rounds))),
        ("loss", f"{rounds[0]['loss']:.4f} -> {rounds[-1]['loss']:.4f}"),
        ("faults", str(faults)),
        ("next", command_line("adapt", folder.path, session=session, threads=False)),
    ]
    click.echo(facts(lines))


@command.command(
    "app",
    epilog="\b\nExamples:\n  refimpl engine app federation --shape 1,8,8 --classes 3 --nodes 3\n"
    "  refimpl engine app trial --dataset digits --method fedavg --nodes 4 --rounds 5",
)
@click.argument("folder", type=PATH)
@file_option
@preset_option
@click.option("--shape", type=NUMBER_LIST, help="Shape of a sample, where every node has a file of its own.")
@click.option("--classes", type=click.IntRange(min=2), help="Number of classes in those files.")
@click.option("--address", default="localhost:8000", show_default=True, help="Where nodes reach the server.")
@patience_options
@config_options()
@click.pass_context
def app_command(
    ctx: click.Context,
    folder: Path,
    file: Path | None,
    from_preset: str | None,
    shape: list[int] | None,
    classes: int | None,
    address: str,
    **options: Any,
) -> None:
    """Write a complete Flower app into FOLDER: settings, apps and a README of exact commands.

    With --shape and --classes every node brings an .npz file of its own. Without them every node has the data
    set, and takes the samples that `refimpl train` would give it.
    """
    from refimpl.engine.folder import Address, write_app
    from refimpl.engine.job import OWN, Job, published

    patience, given = _split(options)
    if (shape is None) != (classes is None) or (shape is not None and given["dataset"] is not None):
        raise click.UsageError("give both --shape and --classes, and no --dataset, or neither of them", ctx)
    if shape is None or classes is None:
        job = published(resolve(file, from_preset, **given))
    else:
        config = resolve(file, from_preset, **{**given, "dataset": OWN})
        sizes = (*(1,) * (3 - len(shape)), *shape)  # features, or height and width, alone will do
        job = Job(Config(**{**config.table(), "dataset": OWN}), sizes, classes)
    write_app(folder, job, patience, Address.parse(address))
    click.echo(f"{folder}: written; {folder / 'README.md'} says what to do next")


def _need_flower() -> None:
    """Raise `RunError` where the extra is not installed."""
    if find_spec("flwr") is None or find_spec("ray") is None:
        raise RunError('engine: needs Flower and Ray; install them with pip install "refimpl[flower]"')
