"""`refimpl bench`: times single layers and whole programs, and compares the times with executed FLOPs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from refimpl.cli.app import SuggestingGroup
from refimpl.cli.options import FILE, Session, session_options
from refimpl.cli.output import answer, exit_unless, table
from refimpl.cli.ownbench import WORKER, layer, network
from refimpl.cli.progress import Progress
from refimpl.errors import InputError
from refimpl.files.storage import write_whole

if TYPE_CHECKING:
    from refimpl.bench.process import Event
    from refimpl.bench.session import Results

EPILOG = """\b
Examples:
  refimpl bench --smallest
  refimpl bench --only kernels --out bench.json
  refimpl bench layer --in 48 --out 96 --kernel 5 --size 20 --batch 7 --off 0.6
  refimpl bench network mine.py:network --off 0,0.5,0.75 --batch 1,32
"""


@click.group(cls=SuggestingGroup, invoke_without_command=True, epilog=EPILOG)
@click.option("--smallest", is_flag=True, help="Smoke test with tiny sizes; its times mean nothing.")
@click.option("--only", type=click.Choice(("kernels", "end-to-end")), help="Time only this part.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Threads for whole programs; single layers are timed on one thread.",
)
@click.option(
    "--clock",
    type=click.Choice(("wall", "cpu")),
    default="wall",
    show_default=True,
    help="cpu leaves out the time that other programs take.",
)
@click.option("--out", type=FILE, help="Also write the JSON here.")
@session_options("json", "talk")
@click.pass_context
def command(
    ctx: click.Context, smallest: bool, only: str | None, clock: str, out: Path | None, session: Session
) -> None:
    """Time layers and whole programs, dense and gated, against the FLOPs they execute.

    `bench layer` and `bench network` time what you bring; without one of them, usual cases are timed.

    Every candidate is first compared with a float64 reference. One that is wrong is not timed, and the
    command exits with 1. Candidates take turns, and times are medians. A column with another program's name
    shows its time divided by ours.

    The comparison with PyTorch, JAX and onnxruntime needs a checkout: run python -m bench there.
    """
    if ctx.invoked_subcommand is not None:
        return
    from refimpl.bench import process
    from refimpl.bench.session import gather, refused

    if out is not None and not out.parent.is_dir():  # checked before minutes are spent on measuring
        raise InputError(f"{out}: expected a file in an existing folder; make {out.parent} first")
    threads = session.threads or 1
    if threads > 1 and only == "kernels":
        raise click.UsageError("single layers are timed on one thread")
    if threads > 1 and clock == "cpu":
        raise click.UsageError("processor time is summed over threads; use --clock wall")
    arguments = [
        *(["--smallest"] if smallest else []),
        *(["--only", only] if only else []),
        *("--clock", clock),
    ]
    with Progress(1, session.talk) as progress:
        progress.say("benchmark; the first run also compiles the kernels")
        results = gather(_shown(process.listen(WORKER, arguments, threads), progress))
    if out is not None:
        write_whole(out, (json.dumps(results, indent=1) + "\n").encode())
    answer(session, results, _text(results))
    exit_unless(not refused(results))


command.add_command(layer)
command.add_command(network)


def _shown(events: Iterator[Event], progress: Progress) -> Iterator[Event]:
    """Pass the events on, and show progress meanwhile."""
    for kind, value in events:
        if kind == "total":
            progress.total = value
        elif kind == "done":
            progress.step(f"bench  {progress.done + 1}/{progress.total}  {value}")
        yield kind, value


def _text(results: Results) -> str:
    """The tables, and which candidates were refused."""
    from refimpl.bench import tables
    from refimpl.bench.session import refused

    found = [make(results) for make in (tables.peak_table, tables.layer_table, tables.program_table)]
    lines = [table(header, rows) + "\n" for header, rows in found if rows]
    lines.append(f"largest spread between quartiles: {tables.largest_noise(results):.0%} of the median")
    return "\n".join([*lines, *(f"REFUSED: {why}" for why in refused(results))])
