"""`refimpl demo`: a small form of the paper's comparison, offline, on the embedded handwritten digits."""

from pathlib import Path

import click

from refimpl.cli import compare
from refimpl.cli.options import PATH, Session, session_options


@click.command(epilog="\b\nExamples:\n  refimpl demo\n  refimpl demo --seeds 1 --rounds 10 --json")
@click.option("--out", type=PATH, help="Folder.  [runs/demo, or the next free]")
@click.option("--force", is_flag=True, help="Replace the comparison in --out.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Seeds per method.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The first seed.")
@click.option("--rounds", type=click.IntRange(min=1), help="Rounds per run.  [as in the preset]")
@session_options("threads", "json", "talk")
def command(
    out: Path | None, force: bool, seeds: int, seed: int, rounds: int | None, session: Session
) -> None:
    """Meta-train, adapt and compare five methods on handwritten digits, offline.

    Each node holds two classes. The meta-models are adapted at nodes that took no part in training. The
    tables show the test accuracy there after adaptation (the mean over nodes, with mean and spread over
    seeds), the share of channels off, FLOPs and seconds, and the stationarity gap by round. The command does
    the same as `refimpl compare --preset demo`.
    """
    which = tuple(range(seed, seed + seeds))
    plan = compare.make_plan(from_preset=compare.DEMO, seeds=which, rounds=rounds)
    compare.run(compare.begin(out, "demo", plan, force, session), session)
