"""`refimpl report`: writes tables and figures of runs and comparisons, as one page and PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from refimpl.cli.options import PATH, Session, session_options
from refimpl.cli.output import answer
from refimpl.cli.progress import WARM_UP, Progress, working
from refimpl.cli.supervised import report_teams

if TYPE_CHECKING:
    from refimpl.report.gather import View
    from refimpl.report.subject import Subject

EPILOG = """\b
Examples:
  refimpl report runs/first
  refimpl report runs/demo
  refimpl report runs/digits-metagater-0 runs/digits-fedavg-0 --out report
  refimpl report runs/mnist --data-dir ~/data --full
"""


@click.command(epilog=EPILOG)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=PATH)
@click.option("--out", type=PATH, help="Folder.  [RUN/report; runs/report for several]")
@click.option(
    "--full/--quick",
    default=None,
    help="Whether to do what takes long: repeat the training for accuracy by round and true gap.  "
    "[what takes a few seconds]",
)
@session_options("threads", "data_dir", "json", "talk")
def command(runs: tuple[Path, ...], out: Path | None, full: bool | None, session: Session) -> None:
    """Write tables and figures of runs, as one page and PNG files.

    A RUN is the folder of a run or of a comparison. Of a comparison, the figures show the runs of the first
    seed, and the tables show all seeds. All runs share the same figures: loss and accuracy by round; the
    stationarity gap (the server's and the true one) with the theorem's slope; which classes open which
    channels before and after adaptation; sparsity over nodes; executed FLOPs against seconds. The page also
    has the tables, and each run's configuration and environment. It is one file that needs no network.

    Runs of `refimpl cooperative` have a page of their own: accuracy of every depth against FLOPs and time.

    Target nodes are adapted as by `refimpl adapt`. Results for which the training must be repeated are kept
    in the run's report folder and not computed again. Figures need matplotlib (the extra `plot`); without it
    the page has tables only.
    """
    out = out or (runs[0] if len(runs) == 1 else Path("runs")) / "report"
    page, *figures = map(str, _report(runs, out, full, session))
    answer(session, {"page": page, "figures": figures}, "\n".join([page, *figures]))


def _report(runs: tuple[Path, ...], out: Path, full: bool | None, session: Session) -> list[Path]:
    """Measure, draw and write; returns the paths of the files, with the page first."""
    from refimpl.experiments.kinds import COOPERATIVE
    from refimpl.experiments.record import kind_at
    from refimpl.report.canvas import MISSING, has_matplotlib
    from refimpl.report.subject import find
    from refimpl.report.write import plans, write

    if all(kind_at(run) is COOPERATIVE for run in runs):
        return report_teams(runs, out, session)
    subjects, compared = find(runs, session.data_dir)
    views = [
        _view(subject, full, f"run {number}/{len(subjects)}", len(subjects), session)
        for number, subject in enumerate(subjects, start=1)
    ]
    if not has_matplotlib():
        click.echo(f"refimpl: {MISSING}; the page will have tables only", err=True)
    chosen = plans(views, compared)
    with Progress(len(chosen), session.talk) as progress:
        return write(out, views, compared, chosen, lambda name: progress.step(f"drawn  {name}"))


def _view(subject: Subject, full: bool | None, which: str, runs: int, session: Session) -> View:
    """Gather one of the runs, and show progress."""
    from refimpl.federated.warmup import warm_up
    from refimpl.report.gather import Gathering

    with working(0, session.talk, WARM_UP) as progress:

        def on_step(text: str) -> None:
            progress.step(f"{which}  {text}")

        warm_up(subject.config.dtype)
        gathering = Gathering.begin(subject, session.data_dir, full, session.threads, on_step, runs)
        progress.total = gathering.steps()
        return gathering.view()
