"""`refimpl train`: meta-trains one method with one model on one data set, and writes a run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import click

from refimpl.cli.options import Session, preset_option, run_options
from refimpl.cli.output import command_line
from refimpl.cli.progress import round_text
from refimpl.cli.training import Begin, Lines, Records, Trainer, begin_options
from refimpl.experiments.record import RunFolder

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
@begin_options(preset_option, "DATASET-METHOD-SEED")
@run_options()
def command(begin: Begin, session: Session, **options: Any) -> None:
    """Meta-train one method on one data set into a run folder.

    Settings come from the data set's preset or from --preset. Those in the file of --config override them,
    and the options below override both. The options are named like the keys of the file, with hyphens for
    underscores. --dry-run shows the settings that result; the same table is stored in the run folder. Ctrl-C
    stops after the round in progress. --resume continues from there, and ends in the same bytes as an
    uninterrupted run.
    """
    Federated(session).run(begin, options)


class Federated(Trainer):
    """What `refimpl train` does."""

    words: ClassVar[tuple[str, ...]] = ("train",)
    room = "refimpl.experiments"
    warms = True

    def reopen(self, folder: RunFolder) -> Experiment:
        """See `Trainer`."""
        run: Experiment = self.experiment.prepare_again(folder, self.session.data_dir)
        return run

    def note(self, run: Experiment) -> str:
        """See `Trainer`."""
        return run.note

    def opening(self, run: Experiment) -> str:
        """See `Trainer`."""
        return f"{run.config.method} on {run.config.dataset}"

    def told(self, run: Experiment, record: RoundRecord) -> str:
        """See `Trainer`."""
        return round_text(run.config.method, record, run.config.rounds, bool(run.network.gates))

    def numbers(self, run: Experiment, rounds: Records) -> dict[str, Any]:
        """See `Trainer`."""
        return {"data": run.note, "last": rounds[-1]}

    def lines(self, run: Experiment, folder: RunFolder, rounds: Records) -> Lines:
        """See `Trainer`."""
        from refimpl.experiments.dealing import samples_said

        config, nodes = folder.config, (*run.train_nodes, *run.target_nodes)
        first, last, seconds = rounds[0], rounds[-1], sum(entry["seconds"] for entry in rounds)
        gates = config["gates"] if run.network.gates else []
        return [
            ("model", " with gates on ".join(filter(None, (config["model"], ", ".join(gates))))),
            *([("samples", samples_said(run.config, nodes, run.data.samples))] if run.data else []),
            ("rounds", str(last["round"])),
            ("loss", f"{first['loss']:.4f} -> {last['loss']:.4f}"),
            *([] if last["gap"] is None else [("gap", f"{first['gap']:.2e} -> {last['gap']:.2e}")]),
            ("channels off", f"{last['closed_share']:.1%}"),
            ("seconds", f"{seconds:.1f}"),
            ("next", command_line("adapt", folder.path, session=self.session, threads=False)),
        ]
