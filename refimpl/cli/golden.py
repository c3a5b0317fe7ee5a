"""`refimpl golden`: writes golden files, and checks other implementations with them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from refimpl._version import __version__
from refimpl.cli.app import SuggestingGroup
from refimpl.cli.options import FILE, MODEL, PATH, Session, no_talk_options, session_options
from refimpl.cli.output import answer, exit_unless
from refimpl.cli.progress import Talk, working
from refimpl.errors import InputError
from refimpl.files.tables import counted
from refimpl.registry import own_object

if TYPE_CHECKING:
    from refimpl.crosscheck.compare import Comparison, Theirs
    from refimpl.crosscheck.conformance import Outcome
    from refimpl.crosscheck.golden.case import Arrays, Case
    from refimpl.crosscheck.golden.file import Golden
    from refimpl.crosscheck.golden.subject import Subject
    from refimpl.crosscheck.hints import Findings

LEVELS = (
    *("ops", "networks", "prox", "local", "algorithm", "adapt", "baselines", "cooperative", "fewshot"),
    "all",
)
FORMATS = (".md", ".html")

EPILOG = """\b
Examples:
  refimpl golden make --level ops --out ops.npz
  refimpl golden make --network mine.py:network --out mine.npz
  refimpl golden template --level ops > mine.py
  refimpl golden check ops.npz theirs.npz
  refimpl golden check ops.npz theirs.npz --partial --report ops.md
"""


@click.group(cls=SuggestingGroup, epilog=EPILOG)
def command() -> None:
    """Write golden files, and check other implementations with them.

    `make` writes inputs and expected outputs as named arrays. `template` prints a file that computes them,
    into which you put your own implementation piece by piece. `check` compares another program's outputs with
    them and names the first that departs, in the order of execution. If one of the usual mistakes reproduces
    that program's outputs, it names the mistake, too. `python -m pydoc refimpl.crosscheck.golden.file`
    explains the format, and `refimpl.crosscheck.golden.levels` has a module for what each level computes.
    """


# --- make


@command.command(
    "make", epilog="\b\nExample:\n  refimpl golden make --level networks --model cnn3 --out cnn3.npz"
)
@click.option("--level", type=click.Choice(LEVELS), help="What to compute.  [all, with --network]")
@click.option("--out", type=FILE, required=True, help="The .npz file to write.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all inputs.")
@click.option("--dtype", type=click.Choice(("float64", "float32")), default="float64", show_default=True)
@click.option("--model", "models", type=MODEL, multiple=True, help="Models of the level networks.  [all]")
@click.option("--full", is_flag=True, help="Make the networks at full width.")
@click.option("--network", metavar="FILE.py:NAME", help="A network of your own, in place of the package's.")
@click.option("--dataset", help="Draw its samples from a data set or FILE.npz.  [normal numbers]")
@click.option("--batch", type=click.IntRange(min=1), help="Samples of its batches.  [3]")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@session_options("data_dir", "talk")
def make_command(
    level: str | None,
    out: Path,
    seed: int,
    dtype: str,
    models: tuple[str, ...],
    full: bool,
    network: str | None,
    dataset: str | None,
    batch: int | None,
    force: bool,
    session: Session,
) -> None:
    """Write a golden file: computations with their inputs and expected outputs.

    The same options give the same bytes. With --network, all of them are about the network that a Python
    file of yours defines: its layers one by one, the whole network, its groups of gates, local steps, rounds
    of Algorithm 1, adaptation and the methods to compare with. The level cooperative has the loss of a team
    of networks; the level fewshot has episodes of few-shot learning, tests of them, and tickets.
    """
    from refimpl.crosscheck.golden.file import golden_bytes
    from refimpl.crosscheck.golden.levels import build_cases
    from refimpl.files.storage import check_new, write_whole

    if network is None and (level is None or dataset or batch):
        raise InputError("golden: --dataset and --batch go with --network; without it, --level is needed")
    if (models or full) and (network or level not in ("networks", "all")):
        raise InputError(f"golden: --model and --full are for the level networks, not {network or level}")
    check_new(out, force)
    own = None if network is None else _own(network, dataset, batch or 3, session.data_dir)
    cases = list(build_cases(level or "all", seed, dtype, models, full, own))
    write_whole(out, golden_bytes(_computed(cases, session.talk), f"refimpl {__version__}", seed))
    if session.talk != Talk.QUIET:
        arrays = sum(len(case.outputs) for case in cases)
        found = f"{counted(len(cases), 'case')}, {counted(arrays, 'expected array')}"
        click.echo(f"{out}: {found}, {out.stat().st_size:,} bytes")


def _own(network: str, dataset: str | None, batch: int, data_dir: Path | None) -> Subject:
    """The network of a user's file, with the samples of a data set if one is named."""
    from refimpl.crosscheck.golden.subject import Subject, fitted
    from refimpl.data.catalog import load
    from refimpl.nn.network import Network

    found = own_object(network, "--network", "a network")
    if not isinstance(found, Network):
        raise InputError(f"--network: expected {network} to be a refimpl.Network, got {type(found).__name__}")
    if dataset is None:
        return Subject(found, batch)
    data = load(dataset, data_dir)
    return Subject(found, batch, (fitted(data.x(dtype="float64"), found), data.y))


def _computed(cases: Sequence[Case], talk: Talk) -> list[tuple[Case, Arrays]]:
    """Compute the cases with this package."""
    from refimpl.crosscheck.golden.ours import run

    found = []
    with working(len(cases), talk) as progress:
        for case in cases:
            found.append((case, run(case)))
            progress.step(f"golden  {len(found)}/{len(cases)}  {case.name}")
    return found


# --- template


@command.command("template", epilog="\b\nExample:\n  refimpl golden template --level local > mine.py")
@click.option("--level", type=click.Choice(LEVELS[:-1]), required=True, help="What the file computes.")
@click.option("--torch", is_flag=True, help="Compute networks with PyTorch.  [plain NumPy]")
@no_talk_options
def template_command(level: str, torch: bool) -> None:
    """Print a Python file that computes a level without this package.

    The file reads a golden file and writes outputs that `golden check` compares. Replace its functions by
    calls of your own implementation, piece by piece: a departure then lies in what was replaced last. In
    plain NumPy it lacks the method maml, which needs second derivatives. The levels cooperative and fewshot
    have no such file yet.
    """
    from refimpl.crosscheck.template import text

    click.echo(text(level, "torch" if torch else "numpy"), nl=False)


# --- check


@command.command("check", epilog="\b\nExample:\n  refimpl golden check ops.npz theirs.npz --report ops.html")
@click.argument("golden", metavar="F", type=PATH)
@click.argument("theirs", metavar="[THEIRS]", type=PATH, required=False)
@click.option("--partial", is_flag=True, help="Allow arrays to be missing.")
@click.option("--all", "every", is_flag=True, help="Show every array, not only those that depart.")
@click.option("--report", type=FILE, help="Write a report as .md or .html.")
@click.option("--force", is_flag=True, help="Replace the report if it is there.")
@session_options("json", "talk")
def check_command(
    golden: Path,
    theirs: Path | None,
    partial: bool,
    every: bool,
    report: Path | None,
    force: bool,
    session: Session,
) -> None:
    """Compare the outputs in THEIRS with those that the golden file F expects.

    THEIRS is an .npz file with arrays named `<case>/<output>`, as in F. Without THEIRS, this installation
    computes the outputs and so checks itself. Arrays that F does not expect are named and ignored. The
    command exits with 1 if an array departs, or if one is missing and --partial is not given.
    """
    from refimpl.crosscheck import conformance
    from refimpl.crosscheck.report import as_html, as_markdown
    from refimpl.files.storage import check_new, write_whole

    if report is not None:
        if report.suffix not in FORMATS:
            raise InputError(f"{report}: a report is written as {' or '.join(FORMATS)}")
        check_new(report, force)
    outcome = _outcome(golden, theirs, partial, session.talk)
    if report is not None:
        written = as_html(outcome) if report.suffix == ".html" else as_markdown(outcome)
        write_whole(report, written.encode())
    answer(session, conformance.as_json(outcome), conformance.as_text(outcome, every))
    exit_unless(outcome.conforms)


def _outcome(golden_path: Path, theirs_path: Path | None, partial: bool, talk: Talk) -> Outcome:
    from refimpl.crosscheck.compare import as_theirs, compare, read_theirs
    from refimpl.crosscheck.conformance import Outcome
    from refimpl.crosscheck.golden.file import read_golden
    from refimpl.crosscheck.report import about

    golden = read_golden(golden_path)
    if theirs_path is None:  # this installation checks itself
        theirs = as_theirs({case.name: outputs for case, outputs in _computed(golden.cases, talk)})
    else:
        theirs = read_theirs(theirs_path, golden)
    comparison = compare(golden, theirs)
    found = _findings(golden, theirs, comparison, talk)
    facts = about(golden_path, theirs_path, golden, datetime.now(UTC).date())
    return Outcome(golden, comparison, found.hints, partial, facts, found.unexplained)


def _findings(golden: Golden, theirs: Theirs, comparison: Comparison, talk: Talk) -> Findings:
    """Look for causes of the departures, and show which case is being examined."""
    from refimpl.crosscheck.hints import EXAMINED, Findings, examine

    if not comparison.departures:
        return Findings([], [])
    total = min(len(comparison.first_by_case), EXAMINED)
    with working(total, talk) as progress:

        def tell(case: str) -> None:
            progress.step(f"looking for causes  {progress.done + 1}/{total}  {case}")

        return examine(golden, theirs, comparison, tell=tell)
