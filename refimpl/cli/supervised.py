"""What the commands of `refimpl cooperative` share: training, tests of runs, a comparison."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refimpl.cli.options import Session
from refimpl.cli.output import answer, command_line, exit_unless, say_data, table
from refimpl.cli.training import Lines, Records, Trainer
from refimpl.cooperative.config import CooperativeConfig
from refimpl.data.identity import Recorded, identify
from refimpl.errors import DivergenceError, RunError
from refimpl.experiments.config import read_toml
from refimpl.experiments.record import CONFIG, RunFolder
from refimpl.files.storage import read_json

if TYPE_CHECKING:
    import numpy as np

    from refimpl.cooperative.compare import Outcome
    from refimpl.cooperative.experiment import Cooperative, Epoch
    from refimpl.cooperative.measure import Deployed, Row
    from refimpl.data.dataset import DataSet

SHOWN = ("depth", "member", "validation %", "test %", "MFLOPs", "ms, 1 sample", "ms, 32 samples")
VALIDATION = "validation"  # name of the report with accuracies on validation samples


class Supervised(Trainer):
    """What `refimpl cooperative train` does."""

    words = ("cooperative", "train")
    room = "refimpl.cooperative"
    prefix, chosen = "cooperative-", "scheme"

    def opening(self, run: Cooperative) -> str:
        """What is trained, on how many samples, at which cost."""
        sizes = [len(part) for part in run.split]
        depths = ", ".join(map(str, (*run.depths.lesser, run.depths.full)))
        return (
            f"{run.config.scheme}: {run.config.model} at depths {depths} on {run.config.dataset}; {sizes[0]} "
            f"samples for training, {sizes[1]} for validation and {sizes[2]} for the test; a step costs "
            f"{run.cost:.2f} times one of the full network"
        )

    def told(self, run: Cooperative, record: Epoch) -> str:
        """See `Trainer`."""
        best = f"  validation, best {max(record.validation):.1%}" if record.validation else ""
        done = f"epoch {record.round}/{run.config.epochs}"
        return f"{run.config.scheme}  {done}  loss {record.loss:.4f}{best}"

    def numbers(self, run: Cooperative, rounds: Records) -> dict[str, Any]:
        """See `Trainer`."""
        return {"loss": rounds[-1]["loss"], "cost": run.cost, "data": run.dataset.note}

    def lines(self, run: Cooperative, folder: RunFolder, rounds: Records) -> Lines:
        """See `Trainer`."""
        first, last, seconds = rounds[0], rounds[-1], sum(entry["seconds"] for entry in rounds)
        return [
            ("epochs", str(len(rounds))),
            ("loss", f"{first['loss']:.4f} -> {last['loss']:.4f}, of all sub-networks together"),
            ("seconds", f"{seconds:.1f}, {seconds / len(rounds):.3g} an epoch"),
            ("next", command_line("cooperative", "evaluate", folder.path, session=self.session)),
        ]


@dataclass(frozen=True)
class Silent(Supervised):
    """Trains without a summary, for commands that go on with the run; runs share the data in memory.

    known: the data of the last run that was prepared or reopened, if there was one.
    """

    known: list[DataSet] = field(default_factory=list)

    def prepare(self, config: CooperativeConfig) -> Cooperative:
        """See `Trainer`."""
        recorded = Recorded("cooperative", identify(self.known[0])) if self.known else None
        return self._keep(self.experiment.prepare(config, self.session.data_dir, recorded, *self.known))

    def reopen(self, folder: RunFolder) -> Cooperative:
        """See `Trainer`."""
        return self._keep(self.experiment.reopen(folder, self.session.data_dir, *self.known))

    def _keep(self, run: Cooperative) -> Cooperative:
        self.known[:] = [run.dataset]
        return run

    def show(self, run: Cooperative, folder: RunFolder) -> None:
        """Nothing."""


def draw(tables: dict[str, list[dict[str, Any]]], figure: Path, err: bool) -> None:
    """Draw accuracy against FLOPs and time into a file, from the rows of runs by name, and say where."""
    from refimpl.report.canvas import save
    from refimpl.report.cooperative import Curve, frontier_figure

    curves = [Curve(name, rows) for name, rows in tables.items()]
    click.echo(save(figure, lambda: frontier_figure(curves)), err=err)


def tested(path: Path, trainer: Silent) -> Outcome:
    """A finished run in numbers, which are written into its folder as well."""
    from refimpl.cooperative.compare import Outcome
    from refimpl.cooperative.measure import rows

    with RunFolder.open(path, lock=False) as folder:
        run, deployed = deployed_in(folder, trainer)
        seconds = sum(entry["seconds"] for entry in folder.metrics())
        measured = rows(deployed, *run.samples("test"))
        found = Outcome(run.config.scheme, run.config.seed, run.cost, seconds, measured)
        folder.save_report("cooperative", {**found.table(), "config": folder.config})
    return found


def report_teams(paths: Sequence[Path], out: Path, session: Session) -> list[Path]:
    """Measure all depths of the runs, and write the page about them; returns its paths."""
    from refimpl.report.cooperative import Curve, write_teams

    trainer = Silent(session)
    found = [tested(path, trainer).rows for path in paths]
    curves = [
        Curve(str(path), [row.table() for row in rows]) for path, rows in zip(paths, found, strict=True)
    ]
    cells = [[row_cells(row) for row in rows] for rows in found]
    configs = [read_toml(path / CONFIG) for path in paths]
    return write_teams(out, curves, SHOWN, cells, configs)


def row_cells(row: Row) -> list[str]:
    """A depth as text, under SHOWN."""
    times = [f"{one.median:.3g}" for one in row.latencies]
    shares = [f"{100 * share:.2f}" for share in (row.validation, row.test)]
    return [str(row.depth), row.member, *shares, f"{row.flops / 1e6:.3g}", *times]


def deployed_in(folder: RunFolder, trainer: Silent) -> tuple[Cooperative, dict[int, Deployed]]:
    """A finished run, and what is used of it at each depth."""
    from refimpl.cooperative.measure import deploy
    from refimpl.experiments.experiment import meta_model

    run = trainer.reopen(folder)
    say_data("" if trainer.session.as_json else run.dataset.note)
    w = meta_model(run, folder)
    return run, deploy(run, w, _validation(run, folder, w))


def _validation(run: Cooperative, folder: RunFolder, w: np.ndarray) -> list[float]:
    """The accuracy of every part on validation samples, which is computed once for a model and kept."""
    model = hashlib.sha256(w.tobytes()).hexdigest()
    path = folder.report / f"{VALIDATION}.json"
    known = read_json(path) if path.is_file() else {}
    if known.get("model") == model:
        return list(known["accuracies"])
    accuracies = list(run.accuracies(w, "validation"))
    with suppress(RunError):  # a folder that cannot be written is used all the same
        folder.save_report(VALIDATION, {"model": model, "accuracies": accuracies})
    return accuracies


def compare(
    base: CooperativeConfig,
    schemes: Sequence[str] | None,
    seeds: Sequence[int],
    out: Path,
    figure: Path | None,
    session: Session,
    margin: float = 0.0,
) -> None:
    """Train what is not there yet, test everything, and print the table.

    margin: the points of accuracy that count as equal. Runs that diverge are named and left out, and the
    others are made all the same; then the command ends with exit code 1.
    """
    from refimpl.cooperative.compare import HEADER, cells, configs, folder_name, lines
    from refimpl.files.storage import json_text, write_whole
    from refimpl.registry import SCHEMES
    from refimpl.report.canvas import save
    from refimpl.report.cooperative import comparison_figure

    trainer = Silent(session)
    found, diverged = [], []
    for config in configs(base, schemes or tuple(SCHEMES), seeds):
        path = out / folder_name(config)
        try:
            _finish(config, path, trainer)
            found.append(tested(path, trainer))
        except DivergenceError as error:
            click.echo(f"refimpl: {path}: {error}", err=True)
            diverged.append(path.name)
    compared = lines(found, margin=margin)
    content = {
        "settings": base.table(),
        "margin": margin,
        "runs": [one.table() for one in found],
        "lines": [one._asdict() for one in compared],
        "diverged": diverged,
    }
    write_whole(out / "cooperative.json", json_text(content).encode())
    if figure is not None:
        click.echo(save(figure, lambda: comparison_figure(compared)), err=True)
    lost = f"\ndiverged, and in no mean: {', '.join(diverged)}" if diverged else ""
    answer(session, content, table(HEADER, [cells(one) for one in compared]) + lost)
    exit_unless(not diverged)


def _finish(config: CooperativeConfig, path: Path, trainer: Silent) -> None:
    """Train a run, or go on with it if it is there with these settings."""
    if not (path / CONFIG).is_file():
        trainer.begin(config, path, force=False)
        return
    with RunFolder.open(path, lock=False) as folder:
        if CooperativeConfig.from_table(folder.config, str(path)) != config:
            raise RunError(f"{path}: has a run with other settings; choose another --out")
        if folder.has_model:
            return
    trainer.go_on(path)
