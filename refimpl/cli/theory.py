"""`refimpl theory`: checks the paper's lemmas, theorem and rates, and computes the gaps of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refimpl.cli.app import SuggestingGroup
from refimpl.cli.options import FILE, FOLDER, PATH, Parsed, Session, expect_figures, session_options, together
from refimpl.cli.output import answer, exit_unless, facts, table
from refimpl.cli.progress import Progress, Talk, round_text, working
from refimpl.experiments.record import RunFolder
from refimpl.files.tables import counted, number

if TYPE_CHECKING:
    from refimpl.federated.rounds import RoundRecord
    from refimpl.theory import Row, Summary
    from refimpl.theory.stationarity import GapRow, Inspection, Point

CHECKPOINT = "checkpoint"
GAPS = ("round", "at", "server's gap", "true gap", "+- if", "+- starts", "distance", "residual", "flipped")
HEADER = ("statement", "family", "left", "right", "slack", "verdict")
SECTIONS = {  # the name of each section with its line in the list of commands
    "gap": "Both forms of the gap on known problems; or the true gap of a RUN.",
    "lemmas": "Envelope gradient, Lemma 1, Lemma 3.",
    "theorem": "Theorem 1 term by term, each inequality of its proof.",
    "rates": "How fast the gap falls with the rounds, and where it stops.",
    "sweep": "The statements over lam/L, local steps and heterogeneity.",
}

EPILOG = """\b
Examples:
  refimpl theory all
  refimpl theory theorem --verbose --seed 1
  refimpl theory all --figures figures
  refimpl theory gap runs/first --rounds 1,3,10
  refimpl theory follow mine.py:problem
"""


class Sections(SuggestingGroup):
    """A group whose first word may be left out; then `all` is meant."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `all` in front of the arguments, unless they name a section or ask for help."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["all", *args]
        return super().parse_args(ctx, args)


@click.group(cls=Sections, epilog=EPILOG)
def command() -> None:
    """Check the paper's lemmas, theorem and rates numerically.

    Each statement has the form left <= right. It is checked on several families of problems whose constants
    are known. The output shows, for each statement, the family that comes nearest to violating it, and every
    violation. A row is unchecked if a side is NaN or infinite; such rows are counted and shown. The command
    exits with 1 if a statement is violated, or if no row could be checked. Without a section, all sections
    are checked. `python -m pydoc refimpl.theory` explains what each statement says, and how it differs from
    the paper's.
    """


_checks = together(  # the options of every section
    click.option("-v", "--verbose", is_flag=True, help="Show every row, not only the tightest."),
    click.option(
        "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all numbers."
    ),
    session_options("json", "quiet"),
)


@command.command("all", epilog="\b\nExample:\n  refimpl theory all --figures figures")
@_checks
@click.option("--figures", type=FOLDER, help="Also draw figures into this folder (needs matplotlib).")
def everything(verbose: bool, seed: int, figures: Path | None, session: Session) -> None:
    """Check every section, and draw figures if --figures is given."""
    expect_figures(figures)
    passed = check(tuple(SECTIONS), verbose, seed, session)
    if figures is not None:
        _draw(figures, seed, session.talk)
    exit_unless(passed)


def _draw(folder: Path, seed: int, talk: Talk) -> None:
    """Draw the figures of the theory, and show progress."""
    from refimpl.report.theory import THEORY_FIGURES, theory_figure

    with Progress(len(THEORY_FIGURES), talk) as progress:
        for name in THEORY_FIGURES:
            progress.step(f"drawn   {theory_figure(name, folder, seed)}")


def _section(name: str) -> click.Command:
    """The command of a section without options of its own."""

    @_checks
    def run(verbose: bool, seed: int, session: Session) -> None:
        exit_unless(check((name,), verbose, seed, session))

    epilog = f"\b\nExample:\n  refimpl theory {name} --verbose"
    return click.command(name, help=SECTIONS[name], epilog=epilog)(run)


for _name in ("lemmas", "theorem", "rates", "sweep"):
    command.add_command(_section(_name))

GAP_EPILOG = """\b
Examples:
  refimpl theory gap
  refimpl theory gap runs/first
  refimpl theory gap runs/first --rounds 1,3,10 --figure gap.png
  refimpl theory gap runs/first --rounds checkpoint
"""


def _rounds(text: str) -> list[int]:
    """The numbers in ascending order, each once; empty for `checkpoint`."""
    rounds = [] if text == CHECKPOINT else sorted({int(word) for word in text.split(",")})
    if rounds and rounds[0] < 1:
        raise ValueError
    return rounds


ROUNDS = Parsed(f"k,k,...|{CHECKPOINT}", _rounds, f"rounds from 1 on, like 1,10,50, or {CHECKPOINT}")


@command.command("gap", short_help=SECTIONS["gap"], epilog=GAP_EPILOG)
@click.argument("run", required=False, type=PATH)
@click.option("--rounds", type=ROUNDS, help="Rounds to look at.  [four, from first to last]")
@click.option("--tolerance", type=float, help="Residual to reach, relative to the centre's.  [1e-3]")
@click.option("--starts", type=click.IntRange(min=1), help="Starting points of each local problem.  [2]")
@click.option(
    "--figure",
    type=FILE,
    help="File of the figure (needs matplotlib).  [RUN/report/gap.png, if matplotlib is installed]",
)
@click.option("-v", "--verbose", is_flag=True, help="Without a RUN: show every row.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Without a RUN: seed of all numbers.")
@session_options("threads", "data_dir", "json", "quiet")
def gap(
    run: Path | None,
    rounds: list[int] | None,
    tolerance: float | None,
    starts: int | None,
    figure: Path | None,
    verbose: bool,
    seed: int,
    session: Session,
) -> None:
    """Check stationarity on known problems; or, given a RUN folder, compute its true gap.

    For the true gap, grad F is computed over all training nodes; each local problem is solved in float64 on
    all of the node's data. The table shows it beside the gap that the server saw, which comes from
    mini-batches and a few local steps. Both belong to the centre of their round. To find the centres, the
    training is run again; it repeats itself bit for bit, and every round is compared with the run's record.
    With --rounds checkpoint nothing is repeated, and the true gap is that of the last meta-model. The table
    is also written to RUN/report/gap.json.

    For networks every number is an estimate, because no Lipschitz constant is proven. The lines below the
    table explain the columns.
    """
    if run is None:
        if any(given is not None for given in (rounds, tolerance, starts, figure)):
            raise click.UsageError("--rounds, --tolerance, --starts and --figure need a RUN")
        exit_unless(check(("gap",), verbose, seed, session))
        return
    expect_figures(figure)
    wanted = {"tolerance": tolerance, "starts": starts}
    effort = {name: value for name, value in wanted.items() if value is not None}
    _show_gap(run, rounds, effort, figure, session)


def _show_gap(
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
    where = f"{saved}; {drawn or 'no figure, as matplotlib is not installed (the extra `plot`)'}"
    text = "\n\n".join([table(GAPS, [_gap_cells(row) for row in rows]), "\n".join(note), where])
    answer(session, {"run": str(run), "figure": drawn and str(drawn), **content}, text)


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


def _gap_cells(row: GapRow) -> tuple[str, ...]:
    numbers = (row.server_gap, row.true_gap, row.error, row.spread, row.distance, row.residual)
    return (str(row.round), row.point, *(number(one, ".3g") for one in numbers), f"{row.flipped:.0%}")


FOLLOW_EPILOG = """\b
Examples:
  refimpl theory follow mine.py:problem
  refimpl theory follow mine.py:problem --steps 3 --rounds 200 --w0 start --region ball
  refimpl theory follow mine.py:problem --json > mine.json
  refimpl theory follow mine.py:problem --figure mine.png
"""


@command.command("follow", epilog=FOLLOW_EPILOG)
@click.argument("problem", metavar="FILE.py:NAME")
@click.option("--lam", type=float, help="Moreau weight, above L.  [2.5 L]")
@click.option(
    "--steps", type=click.IntRange(min=0), default=1, show_default=True, help="Local steps; 0: exact."
)
@click.option("--rounds", type=click.IntRange(min=1), default=50, show_default=True, help="Rounds to run.")
@click.option("--w0", metavar="NAME", help="The start, as FILE.py names it.  [random]")
@click.option("--schedule", metavar="NAME", help="The server's steps, likewise.  [those of Theorem 1]")
@click.option("--region", metavar="NAME", help="Where the constants hold, likewise: a box or a ball.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all numbers.")
@click.option(
    "--figure", type=FILE, help="Also draw gaps and bound by round into this file (needs matplotlib)."
)
@session_options("json", "talk")
def follow(
    problem: str,
    lam: float | None,
    steps: int,
    rounds: int,
    seed: int,
    figure: Path | None,
    session: Session,
    **names: str | None,
) -> None:
    """Run the method on a problem of your own, and compare every round with the theory.

    FILE.py defines NAME as a `refimpl.theory.Problem`, or as a function that returns one: the losses of the
    nodes and a penalty. The table shows by round the true gap with its error bar, the server's gap, the
    inexactness of g with its bound, both sides of Theorem 1, the curvature seen and how many of the proof's
    inequalities hold. Constants that do not hold, a region that is left and a run that diverges are found and
    named; the command then exits with 1, as it does where a statement is violated. The worked example is in
    the README of refimpl/theory.
    """
    expect_figures(figure)
    with working(rounds, session.talk) as progress:
        progress.say(f"theory  follow {problem}")
        from refimpl import theory
        from refimpl.registry import own_object

        own = own_object(problem, "theory follow", "a Problem")
        file = problem.rpartition(":")[0]
        given: dict[str, Any] = {
            option: own_object(f"{file}:{name}", f"--{option}", f"the {option}")
            for option, name in names.items()
            if name is not None
        }
        found = theory.follow(
            own, lam, steps, rounds, seed=seed, on_round=lambda one: progress.step(f"theory  {one}"), **given
        )
    if figure is not None:
        found.figure(figure)
    click.echo(found.json() if session.as_json else found.table(), nl=not session.as_json)
    exit_unless(found.holds)


# --- checks -----------------------------------------------------------------------------------------


def check(sections: Sequence[str], verbose: bool, seed: int, session: Session) -> bool:
    """Run the sections and print their rows; returns whether every row that could be checked holds."""
    from refimpl import theory

    found: dict[str, list[Row]] = {}
    parts = sum(theory.SECTIONS[name].parts for name in sections)
    with working(parts, session.talk) as progress:
        for name in sections:

            def on_part(rows: Sequence[Row], name: str = name) -> None:
                progress.step(f"theory  {name}: {rows[-1].family}")

            found[name] = theory.run_section(name, seed, on_part)
    rows = [row for section_rows in found.values() for row in section_rows]
    passed = theory.all_hold(rows)
    shown = {name: [row._asdict() for row in of] for name, of in found.items()}
    unchecked = theory.count(rows, theory.UNCHECKED)
    content = {"passed": passed, "unchecked": unchecked, "seed": seed, "sections": shown}
    text = [_text(name, of, verbose) + "\n" for name, of in found.items()]
    answer(session, content, "\n".join([*text, _verdict(rows)]))
    return passed


def _verdict(rows: Sequence[Row]) -> str:
    """The last line, which says how many rows there are and how many do not hold."""
    from refimpl import theory

    counts = {verdict: theory.count(rows, verdict) for verdict in (theory.VIOLATED, theory.UNCHECKED)}
    found = ", ".join(f"{number} {verdict.upper()}" for verdict, number in counts.items() if number)
    return f"{counted(len(rows), 'row')}, {found or 'all hold'}" if rows else "no rows: nothing was checked"


def _text(section: str, rows: Sequence[Row], verbose: bool) -> str:
    """One table of a section, followed by the terms of the rows that have any."""
    from refimpl import theory

    if verbose:
        shown, cells = list(rows), [_cells(row, row.verdict) for row in rows]
    else:
        summaries = theory.summarise(rows)
        shown = [summary.tightest for summary in summaries]
        cells = [_cells(s.tightest, _tally(s)) for s in summaries]
        others = [row for row in rows if row.verdict != theory.HOLDS and not any(row is one for one in shown)]
        cells += [_cells(row, row.verdict) for row in others]
    terms = [_terms(row) for row in shown if row.terms]
    return "\n".join([section, table(HEADER, cells), *terms])


def _tally(summary: Summary) -> str:
    """How many of a statement's rows hold, and how many were not checked."""
    more = f", {summary.unchecked} unchecked" if summary.unchecked else ""
    return f"{summary.held} of {summary.checked} hold{more}"


def _terms(row: Row) -> str:
    """The terms that the sides of a row consist of, one on each line."""
    pairs = [(f"  {name}", f"{value:.6g}") for name, value in row.terms]
    return f"\n{row.statement}; {row.family}\n" + facts(pairs)


def _cells(row: Row, verdict: str) -> tuple[str, ...]:
    return (row.statement, row.family, f"{row.left:.4g}", f"{row.right:.4g}", f"{row.slack:.2g}", verdict)
