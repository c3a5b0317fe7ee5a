"""`refimpl theory gap RUN` prints the true gap of a training run beside the gap that the server saw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refimpl.cli.compiling import working
from refimpl.cli.options import Session
from refimpl.cli.output import print_json, table
from refimpl.cli.progress import Talk, round_text
from refimpl.experiments.record import RunFolder

if TYPE_CHECKING:
    from refimpl.federated.rounds import RoundRecord
    from refimpl.theory.stationarity import GapRow, Inspection, Point

HEADER = ("round", "at", "server's gap", "true gap", "+- if", "+- starts", "distance", "residual", "flipped")


def show(
    run: Path, rounds: Sequence[int] | None, effort: Mapping[str, Any], figure: Path | None, session: Session
) -> None:
    """Compute, print, and write RUN/report/gap.json and the figure.

    rounds: None stands for a few rounds over the whole run, an empty sequence for the last checkpoint.
    """
    from refimpl.experiments.compare.work import read_records
    from refimpl.report.canvas import has_matplotlib, save
    from refimpl.report.gap import GapSeries, gap_figure

    with RunFolder.open(run, lock=False) as folder:
        rows, note = _measure(folder, rounds, effort, session)
        content = {"what": note, "points": [row._asdict() for row in rows]}
        saved = folder.save_report("gap", content)
        drawn = None
        if has_matplotlib():
            server = [(record.round, record.gap) for record in read_records(folder)]
            series = GapSeries(folder.config["method"], server, rows)
            drawn = save(figure or folder.report / "gap.png", lambda: gap_figure([series]))
    if session.as_json:
        print_json({"run": str(run), "figure": drawn and str(drawn), **content})
        return
    click.echo(table(HEADER, [_cells(row) for row in rows]) + "\n")
    click.echo("\n".join(note) + "\n")
    click.echo(f"{saved}; {drawn or 'no figure, as matplotlib is not installed (the extra `plot`)'}")


def _measure(
    folder: RunFolder, rounds: Sequence[int] | None, effort: Mapping[str, Any], session: Session
) -> tuple[list[GapRow], list[str]]:
    """Compute the rows, and lines that say what was computed."""
    from refimpl.experiments.experiment import prepare_again
    from refimpl.experiments.replay import over_the_run
    from refimpl.theory.measured import Effort
    from refimpl.theory.stationarity import Inspection, note

    wanted = over_the_run(folder) if rounds is None else rounds
    inspection = Inspection(prepare_again(folder, session.data_dir), Effort(**effort), session.threads)
    points = _points(folder, inspection, wanted, session.talk)
    work = len(points) * len(inspection.experiment.train_nodes)
    with working(work, session.talk) as progress:

        def on_node() -> None:
            progress.step(f"true gap  node {progress.done + 1}/{work}")

        rows = [inspection.measure(point, on_node) for point in points]
    return rows, note(inspection.experiment, rows)


def _points(folder: RunFolder, inspection: Inspection, wanted: Sequence[int], talk: Talk) -> list[Point]:
    """The centres of the given rounds, or the last meta-model if no round is given."""
    if not wanted:
        return [inspection.last_checkpoint(folder)]
    name, last = inspection.experiment.config.method, max(wanted)
    with working(last, talk) as progress:

        def on_round(record: RoundRecord) -> None:
            progress.step("replay  " + round_text(name, record, last, False))

        return list(inspection.replay(folder, wanted, on_round))


def _cells(row: GapRow) -> tuple[str, ...]:
    numbers = (row.server_gap, row.true_gap, row.error, row.spread, row.distance, row.residual)
    return (str(row.round), row.point, *map(_number, numbers), f"{row.flipped:.0%}")


def _number(value: float) -> str:
    """The number with three digits, or a dash if it is NaN or missing."""
    return f"{value:.3g}" if math.isfinite(value) else "-"
