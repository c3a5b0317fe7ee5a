"""What `refimpl theory gap RUN` prints: the true gap of a training run beside the server's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refimpl.cli.output import print_json, table
from refimpl.cli.progress import Progress, round_text
from refimpl.record import RunFolder

if TYPE_CHECKING:
    from refimpl.stationarity import GapRow, Point

HEADER = ("round", "at", "server's gap", "true gap", "+- if", "+- starts", "distance", "residual", "flipped")


def show(
    run: Path,
    rounds: Sequence[int] | None,
    effort: Mapping[str, Any],
    threads: int | None,
    data_dir: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compute, print, and write RUN/report/gap.json and, with matplotlib, gap.png."""
    from refimpl.report import draw_run_gap, has_matplotlib

    with RunFolder.open(run, lock=False) as folder:
        rows, note = _measure(folder, rounds, effort, threads, data_dir, quiet)
        content = {"what": note, "points": [row._asdict() for row in rows]}
        folder.save_report("gap", content)
        figure = None
        if has_matplotlib():
            figure = draw_run_gap(folder.report / "gap.png", folder.metrics(), rows)
    if as_json:
        print_json({"run": str(run), **content})
        return
    click.echo(table(HEADER, [_cells(row) for row in rows]) + "\n")
    click.echo("\n".join([*note, *_verdict(rows)]))
    drawn = figure or "no figure, as matplotlib is not installed (the extra `plot`)"
    click.echo(f"\n{run / 'report' / 'gap.json'}; {drawn}")


def _measure(
    folder: RunFolder,
    rounds: Sequence[int] | None,
    effort: Mapping[str, Any],
    threads: int | None,
    data_dir: Path | None,
    quiet: bool,
) -> tuple[list[GapRow], list[str]]:
    """The rows, and lines that say what was computed."""
    from refimpl.config import from_table
    from refimpl.experiment import prepare
    from refimpl.stationarity import Inspection
    from refimpl.theory.measured import Effort

    experiment = prepare(from_table(folder.config), data_dir)
    points, nodes = len(rounds or (0,)), len(experiment.train_nodes)
    with Progress(points * nodes, quiet) as progress:
        done = 0

        def on_node() -> None:
            nonlocal done
            done += 1
            progress.step(f"true gap  node {done}/{points * nodes}")

        inspection = Inspection(
            experiment,
            Effort(**effort),
            threads,
            on_round=lambda record: progress.say(
                "replay  " + round_text(experiment.config.method, record, max(rounds or (0,)), False)
            ),
            on_node=on_node,
        )
        chosen: Sequence[Point]
        chosen = list(inspection.replay(folder, rounds)) if rounds else [inspection.last_checkpoint(folder)]
        return [inspection.measure(point) for point in chosen], inspection.note()


def _cells(row: GapRow) -> tuple[str, ...]:
    return (
        str(row.round),
        row.point,
        _number(row.server_gap),
        _number(row.true_gap),
        _number(row.error),
        _number(row.spread),
        _number(row.distance),
        _number(row.residual),
        f"{row.flipped:.0%}",
    )


def _number(value: float) -> str:
    """Three digits; a dash where there is no number."""
    return f"{value:.3g}" if math.isfinite(value) else "-"


def _verdict(rows: Sequence[GapRow]) -> list[str]:
    """How far the theory's assumptions are from what was estimated."""
    highest, lowest, lam = max(r.smoothness for r in rows), max(r.concavity for r in rows), rows[0].lam
    above = "exceeds" if lam > highest else "does not exceed"
    return [
        f"lam = {lam:g} {above} the curvature found: eigenvalues from {-lowest:.3g} to {highest:.3g} at the "
        "centres and half-way to the solutions."
    ]
