"""`refimpl engine`: runs federations over Flower, simulated here or as an app for many machines."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refimpl.cli.app import SuggestingGroup
from refimpl.cli.options import (
    NUMBER_LIST,
    PATH,
    Session,
    config_options,
    file_option,
    gathered,
    key_options,
    no_talk_options,
    preset_option,
    run_options,
)
from refimpl.cli.train import Federated
from refimpl.cli.training import Begin, begin_options
from refimpl.engine.rounds import Patience
from refimpl.errors import RunError
from refimpl.experiments.config import Config, resolve
from refimpl.experiments.record import RunFolder
from refimpl.registry import keys_of

if TYPE_CHECKING:
    from refimpl.experiments.experiment import Experiment, Trained

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


patience_options = gathered("patience", Patience, key_options(keys_of(Patience).values(), ()))


@command.command(
    "simulate",
    epilog="\b\nExamples:\n  refimpl engine simulate --dataset digits --nodes 4 --out runs/simulated\n"
    "  refimpl engine simulate --out runs/simulated --resume",
)
@begin_options(preset_option, "simulated-DATASET-METHOD-SEED")
@patience_options
@run_options()
def simulate_command(begin: Begin, patience: Patience, session: Session, **options: Any) -> None:
    """Meta-train with Flower's simulation on Ray.

    Every node's work is a message to one of the processes that Ray starts, as many as --threads says; they
    end with the command. Nothing is sent to other machines. The run folder is that of `refimpl train`, and
    its rounds have the nodes' faults besides.
    """
    if find_spec("flwr") is None or find_spec("ray") is None:
        raise RunError('engine: needs Flower and Ray; install them with pip install "refimpl[flower]"')
    Simulated(session, patience).run(begin, options)


@dataclass(frozen=True)
class Simulated(Federated):
    """What `refimpl engine simulate` does."""

    patience: Patience

    words = ("engine", "simulate")
    prefix = "simulated-"
    warms = False

    def train(self, run: Experiment, folder: RunFolder, **how: Any) -> Trained:
        """See `Trainer`."""
        from refimpl.engine.flower import simulate
        from refimpl.engine.job import Job

        job = Job(run.config, run.network.input_shape, run.network.classes)
        return simulate(job, folder, self.patience, self.session.data_dir, **how)


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
@no_talk_options
@config_options()
def app_command(
    folder: Path,
    file: Path | None,
    from_preset: str | None,
    shape: list[int] | None,
    classes: int | None,
    address: str,
    patience: Patience,
    **options: Any,
) -> None:
    """Write a complete Flower app into FOLDER: settings, apps and a README of exact commands.

    With --shape and --classes every node brings an .npz file of its own. Without them every node has the data
    set, and takes the samples that `refimpl train` would give it.
    """
    from refimpl.engine.folder import Address, write_app
    from refimpl.engine.job import OWN, Job, published

    if (shape is None) != (classes is None) or (shape is not None and options["dataset"] is not None):
        raise click.UsageError("give both --shape and --classes, and no --dataset, or neither of them")
    if shape is None or classes is None:
        job = published(resolve(file, from_preset, **options))
    else:
        config = resolve(file, from_preset, **{**options, "dataset": OWN})
        sizes = (*(1,) * (3 - len(shape)), *shape)  # features, or height and width, alone will do
        job = Job(Config(**{**config.table(), "dataset": OWN}), sizes, classes)
    write_app(folder, job, patience, Address.parse(address))
    click.echo(f"{folder}: written; {folder / 'README.md'} says what to do next")
