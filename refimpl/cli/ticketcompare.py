"""`refimpl tickets compare` and `refimpl tickets demo`: several finders beside the dense network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refimpl.cli.fewshot import BY_PRESET, KEYS, preset_option
from refimpl.cli.interrupt import resumable, stop_requests
from refimpl.cli.options import (
    FILE,
    NAME_LIST,
    PATH,
    SEED_LIST,
    SHARE_LIST,
    Session,
    expect_figures,
    file_option,
    key_options,
    session_options,
)
from refimpl.cli.output import answer, exit_if, table
from refimpl.cli.progress import working
from refimpl.fewshot.config import resolve
from refimpl.files.tables import counted
from refimpl.registry import FINDERS

if TYPE_CHECKING:
    from refimpl.experiments.experiment import OnRound
    from refimpl.fewshot.tickets.comparison import Plan

RUN_KEYS = [one for name, one in KEYS.items() if name != "ticket"]
FINDER_KEYS = FINDERS.keys().keys()
DEMO = ("mwt", "pmt", "sr", "rm", "snip")  # the finders that the demo compares
COMPARED = ("mwt", "pmt", "sr", "rm", "snip", "rr")  # those that `compare` does, unless told otherwise


def watch(session: Session) -> Any:
    """Shows the progress of each training."""

    @contextmanager
    def watch(name: str, left: int) -> Iterator[OnRound]:
        with working(left, session.talk) as progress:
            yield lambda record: progress.step(f"{name}  iteration {record.round}  loss {record.loss:.4f}")

    return watch


@click.command(
    "compare",
    epilog="\b\nExamples:\n"
    "  refimpl tickets compare --preset digits-2way-1shot --rounds 50 --out runs/tickets\n"
    "  refimpl tickets compare --preset omniglot-5way-1shot --pruned 0.6,0.8,0.9 --out runs/tickets\n"
    "  refimpl tickets compare --preset digits-2way-1shot --baseline mwt --margin 1 --out runs/tickets",
)
@file_option
@preset_option
@click.option("--finders", type=NAME_LIST, default=",".join(COMPARED), show_default=True, help="Finders.")
@click.option("--pruned", type=SHARE_LIST, default="0.8", show_default=True, help="Shares of weights pruned.")
@click.option("--seeds", type=SEED_LIST, default="0-4", show_default=True, help="Seeds of every network.")
@click.option("--baseline", default="dense", show_default=True, help="Finder to compare the others with.")
@click.option("--margin", type=click.FloatRange(min=0), default=0, help="Points that count as equal.  [0]")
@click.option("--out", type=PATH, required=True, help="Folder of all networks and of comparison.json.")
@click.option("--figure", type=FILE, help="Draw accuracy against the share pruned into this file.")
@session_options("threads", "data_dir", "json", "talk")
@key_options(FINDERS.keys().values(), frozenset())
@key_options([one for one in RUN_KEYS if one.name != "seed"], BY_PRESET)
def compare_command(
    file: Path | None,
    from_preset: str | None,
    finders: list[str],
    pruned: list[float],
    seeds: tuple[int, ...],
    baseline: str,
    margin: float,
    out: Path,
    figure: Path | None,
    session: Session,
    **options: Any,
) -> None:
    """Compare tickets of several finders with each other and with the dense network, over seeds.

    Each seed trains the dense network once; tickets that need it share it. All networks are tested on the
    same episodes. Differences to --baseline are paired by seed and episode. Their 95 % interval is a
    bootstrap over seeds, or Student's t with fewer than eight; one seed bounds nothing. p-values are adjusted
    over the table (Holm). FLOPs and seconds are shares of those of dense training: of finding the ticket, and
    of finding and training it.

    A network has diverged if its training, or its adaptation in a test episode, ends in infinity or NaN. It
    is counted and left out of all means, the others are made all the same, and the command exits with 1.

    What is in --out is not made again, so the same command goes on where it was stopped.
    """
    from refimpl.fewshot.experiment import prepare
    from refimpl.fewshot.tickets.comparison import COSTS_NOTE, Plan, cells
    from refimpl.report.canvas import save
    from refimpl.report.tickets import comparison_figure

    expect_figures(figure)
    given = {name: value for name, value in options.items() if value is not None}
    keys = {name: given.pop(name) for name in FINDER_KEYS & given.keys()}
    run = prepare(resolve(file, from_preset, **given), session.data_dir)
    plan = Plan(run, tuple(finders), tuple(pruned), seeds, baseline, margin, keys)
    rows = _compared(plan, out, session)
    many = f"{counted(len(seeds), 'seed')}, {run.config.test_episodes} test episodes"
    note = f"{many}; against {baseline}: percentage points; {COSTS_NOTE}"
    answer(session, {"networks": rows}, f"{table(*cells(rows, baseline))}\n{note}")
    if figure is not None:
        click.echo(save(figure, lambda: comparison_figure(rows)), err=session.as_json)
    _exit_unless_finite(rows)


def _exit_unless_finite(rows: Sequence[Mapping[str, Any]]) -> None:
    """End with exit code 1 and a line if a network diverged."""
    lost = [row for row in rows if row["diverged"]]
    if lost:
        reason = next(filter(None, lost[0]["reasons"]), "")
        where = lost[0]["network"] + (f": {reason}" if reason else " (not finite)")
        exit_if(
            f"training or adaptation diverged in {len(lost)} of {len(rows)} rows, first in {where}; "
            "try a smaller alpha, eta, test_alpha or test_steps"
        )


def _compared(plan: Plan, out: Path, session: Session) -> list[dict[str, Any]]:
    """Make what is missing in `out`; the rows that came out, which are also in comparison.json there."""
    from refimpl.fewshot.tickets.comparison import compare
    from refimpl.fewshot.tickets.finders import Search

    with resumable(lambda: "; the same command goes on"), stop_requests() as stop:
        begin_search = partial(Search, threads=session.threads, watch=watch(session), stop=stop)
        return compare(plan, out, begin_search)


# --- demo


@click.command(
    "demo", epilog="\b\nExamples:\n  refimpl tickets demo\n  refimpl tickets demo --rounds 50 --json"
)
@click.option("--out", type=PATH, default=Path("runs/tickets-demo"), show_default=True, help="Folder.")
@click.option("--pruned", type=float, default=0.8, show_default=True, help="Share of weights to prune.")
@click.option("--rounds", type=click.IntRange(min=1), default=200, show_default=True, help="Meta-iterations.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed.")
@session_options("threads", "json", "talk")
def demo_command(out: Path, pruned: float, rounds: int, seed: int, session: Session) -> None:
    """Find five tickets for handwritten digits, train and test them beside the dense network, offline.

    What is in --out already is not done again. All networks are tested on the same episodes; the difference
    is the mean over them, with its 95 % interval. FLOPs and seconds are relative to those of the dense
    training: of finding the ticket, and of finding and training it.
    """
    from refimpl.fewshot.experiment import prepare
    from refimpl.fewshot.tickets.comparison import COSTS, COSTS_NOTE, Plan, accuracy_cell, cost_cells

    run = prepare(resolve(None, "digits-2way-1shot", rounds=rounds, validate_every=0))
    keys = {"gamma": max(1, rounds // 60)}
    plan = Plan(run, DEMO, (pruned,), (seed,), keys=keys)
    rows = _compared(plan, out, session)
    lines = [
        [row["network"], accuracy_cell(row), _over_episodes(row["episodes"]), *cost_cells(row)]
        for row in rows
    ]
    about = f"{100 * pruned:g} % of the convolution weights pruned; {run.config.test_episodes} test episodes"
    text = [about, table(["network", "accuracy %", "minus dense", *COSTS], lines), COSTS_NOTE]
    answer(session, {"pruned": pruned, "rounds": rounds, "networks": rows}, "\n".join(text))
    _exit_unless_finite(rows)


def _over_episodes(found: Mapping[str, float] | None) -> str:
    return "" if found is None else f"{100 * found['mean']:+.1f} +- {100 * found['half']:.1f}"
