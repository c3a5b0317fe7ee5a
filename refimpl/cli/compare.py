"""`refimpl compare`: compares several methods, or settings of one, over several seeds."""

from __future__ import annotations

import itertools
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refimpl.cli.interrupt import resumable, stop_requests
from refimpl.cli.options import (
    NAME_LIST,
    PATH,
    SEED_LIST,
    USUAL_SESSION,
    Session,
    file_option,
    run_options,
    share_option,
)
from refimpl.cli.output import answer, command_line
from refimpl.cli.progress import WARM_UP, Talk, adapted_text, round_text, working
from refimpl.errors import TakenError, one_of
from refimpl.experiments.config import PRESETS, Config, resolve
from refimpl.files.storage import json_text, write_whole
from refimpl.files.tables import counted
from refimpl.registry import METHODS as KNOWN

if TYPE_CHECKING:
    from refimpl.experiments.compare.plan import Cell, Claims, Plan
    from refimpl.experiments.compare.run import Comparison
    from refimpl.experiments.compare.work import Outcome
    from refimpl.federated.rounds import RoundRecord

METHODS = ("fedavg", "perfedavg", "metagater-ungated", "metasnip", "metagater")
SEEDS = (0, 1, 2)
DEMO = "demo"  # the preset that `refimpl demo` compares, with the methods and seeds above
SELDOM = 10  # rounds between two checkpoints; a comparison has many short runs, so each loses little

EPILOG = """\b
Examples:
  refimpl compare --preset demo
  refimpl compare --preset mnist --data-dir ~/data --seeds 0-4 --every 10 --out results/mnist
  refimpl compare --resume --out results/mnist --data-dir ~/data
  refimpl compare --preset mnist --data-dir ~/data --out /shared/mnist --share
  refimpl compare --dataset digits --methods metagater,fedavg --seeds 0,1 --rounds 10
  refimpl compare --config fedavg.toml --methods fedavg,reptile
  refimpl compare --methods fedavg,metagater --seeds 0-9 --baseline fedavg --margin 1
\b
One method under varied keys (lists joined by +):
  refimpl compare --methods metagater --vary gates=conv1,conv2,conv1+conv2
  refimpl compare --methods metagater --vary gate_mode=hard,gumbel,ste --vary gate_grad=dense,active
  refimpl compare --methods metagater,metasnip --vary rho=0.001,0.003,0.01 --vary snip_keep=0.3,0.5,0.8
  refimpl compare --methods metagater --vary penalty=group-lasso,l1 --vary rho=0.001,0.003
  refimpl compare --methods metagater --vary lam=0.5,1,2 --vary local_steps=1,5,10
"""


@click.command(epilog=EPILOG)
@file_option
@click.option(
    "--preset",
    "from_preset",
    type=click.Choice(PRESETS.names()),
    help="Preset to start from; `demo` is what `refimpl demo` compares.  [the data set's own]",
)
@click.option("--methods", type=NAME_LIST, help=f"Methods to compare.  [{','.join(METHODS)}]")
@click.option("--seeds", type=SEED_LIST, help="Seeds of every method: 0-4, or 0,2,5.  [0-2]")
@click.option(
    "--vary", multiple=True, metavar="KEY=V,V,...", help="Make a row for each value; may be repeated."
)
@click.option("--every", type=click.IntRange(min=1), help="Measure accuracy every so many rounds.  [never]")
@click.option("--baseline", metavar="ROW", help="The row that all others are compared with.  [none]")
@click.option(
    "--margin",
    metavar="POINTS",
    type=click.FloatRange(min=0),
    help="Differences within +-POINTS (of 100) count as equal; needs --baseline.  [no margin]",
)
@click.option("--out", type=PATH, help="Folder.  [runs/compare-..., or the next free]")
@click.option("--resume", is_flag=True, help="Continue the comparison in --out.")
@click.option("--force", is_flag=True, help="Replace the comparison in --out.")
@share_option
@run_options(without=("method", "seed", "fold"))
def command(
    out: Path | None,
    resume: bool,
    force: bool,
    share: bool,
    baseline: str | None,
    margin: float | None,
    session: Session,
    **wanted: Any,
) -> None:
    """Compare methods, or settings of one, over seeds, in the paper's tables.

    Every method is meta-trained with every seed, several at a time, and adapted at the target nodes. The
    first table is about training and the second about adaptation. They show accuracy after the last round,
    channels off, FLOPs and seconds. A seed has diverged if its training did, or its adaptation at any node;
    such seeds are counted and left out of every mean. --vary makes a row for every value of a key, for the
    methods that take that key. The options at the end hold for all methods; they override preset and file.

    --baseline adds a table of the differences to one row: paired by seed and node, each with a 95 % interval,
    a p-value adjusted over the table, and a verdict: above, below, not separated or within the margin. One
    seed bounds no difference. Both options are stated with the comparison. With --resume they may
    be added to a comparison that has none, which then says so; others than the stated ones are refused.

    --folds makes every node a target once: each seed is then trained in so many folds, which count together
    as one seed.

    The folder holds plan.json, runs/, results.json, table.md and table.csv. With matplotlib it also holds
    figures of accuracy by round (with --every) and of accuracy against FLOPs. Finished work is kept, and
    --resume does the rest. Machines that share the folder share the work: start the same command with --share
    on each of them.
    """
    from refimpl.experiments.compare.plan import Claims
    from refimpl.experiments.compare.run import Comparison

    if margin is not None and baseline is None:
        raise click.UsageError("--margin needs --baseline ROW, the row that differences are taken to")
    claims = Claims(baseline, margin or 0.0) if baseline is not None else None
    if share and (out is None or force):
        raise click.UsageError("--share needs --out FOLDER, which all machines see, and no --force")
    if resume:
        if out is None or force or any(value not in (None, ()) for value in wanted.values()):
            raise click.UsageError("--resume needs --out FOLDER, and takes what to compare from there")
        comparison = replace(Comparison.open(out, session.data_dir, session.threads), shared=share)
        comparison = comparison.claiming(claims) if claims else comparison
    else:
        plan = make_plan(claims=claims, **wanted)
        if share and out is not None:
            comparison = Comparison.join(out, plan, session.data_dir, session.threads)
        else:
            name = f"compare-{wanted['from_preset'] or Path(plan.rows[0][1].dataset).stem}"
            comparison = begin(out, name, plan, force, session)
    run(comparison, session)


def make_plan(
    file: Path | None = None,
    from_preset: str | None = None,
    methods: list[str] | None = None,
    seeds: tuple[int, ...] | None = None,
    vary: tuple[str, ...] = (),
    every: int | None = None,
    claims: Claims | None = None,
    **options: Any,
) -> Plan:
    """The plan that the options describe; an option that was not given is None."""
    from refimpl.experiments.compare.plan import Plan, parse_vary, varied

    options = {"checkpoint_every": SELDOM, **{k: v for k, v in options.items() if v is not None}}
    for method in methods or METHODS:
        one_of("--methods", "method", method, tuple(KNOWN))

    def configure(**setting: Any) -> Config:
        return resolve(file, from_preset, **{**options, **setting})

    rows = tuple(varied(methods or METHODS, [parse_vary(text) for text in vary], configure))
    return Plan(rows, tuple(seeds or SEEDS), every or 0, claims)


def begin(
    out: Path | None, name: str, plan: Plan, force: bool, session: Session = USUAL_SESSION
) -> Comparison:
    """Begin a comparison in `out`, or else in the first free folder of runs/NAME, runs/NAME-2, ..."""
    from refimpl.experiments.compare.run import Comparison

    if out:
        return Comparison.create(out, plan, force, session.data_dir, session.threads)
    paths = (Path("runs") / (f"{name}-{number}" if number > 1 else name) for number in itertools.count(1))
    while True:
        path = next(path for path in paths if not os.path.lexists(path))
        with suppress(TakenError):
            return Comparison.create(path, plan, False, session.data_dir, session.threads)


def run(comparison: Comparison, session: Session) -> None:
    """Do what is left of a comparison, write its tables and figures, and print."""
    from refimpl.experiments.compare.layout import text

    path = comparison.path
    sharing = ["--share"] * comparison.shared
    again = command_line("compare", "--resume", *sharing, "--out", path, session=session)
    with resumable(lambda: f"; what is done is kept; go on with: {again}"):
        outcomes = _outcomes(comparison, session.talk)
        content, figures = _write(comparison, outcomes)
    names = ", ".join(["results.json, table.md, table.csv", *(figure.name for figure in figures)])
    said = f"{text(comparison.plan, outcomes)}\n\n{path}: {names}"
    answer(session, {"folder": str(path), **content}, said)


def _write(comparison: Comparison, outcomes: list[Outcome]) -> tuple[dict[str, Any], list[Path]]:
    """Write results as JSON, tables, and figures that have data if matplotlib is installed.

    Returns the results, and the paths of the figures.
    """
    from refimpl.experiments.compare.claims import claims_of
    from refimpl.experiments.compare.layout import csv_text, markdown_text, results
    from refimpl.experiments.compare.run import CSV, FIGURES, RESULTS, TABLE
    from refimpl.experiments.compare.summary import summarise
    from refimpl.report.canvas import has_matplotlib, save
    from refimpl.report.comparison import figures

    path, plan = comparison.path, comparison.plan
    content = results(plan, outcomes, comparison.threads)
    claims = claims_of(outcomes, plan.claims)
    write_whole(path / RESULTS, json_text(content).encode())
    write_whole(path / TABLE, markdown_text(plan, outcomes).encode())
    write_whole(path / CSV, csv_text(summarise(outcomes), claims).encode())
    drawn = figures(outcomes) if has_matplotlib() else {}
    return content, [save(path / FIGURES[name], draw) for name, draw in drawn.items()]


def _outcomes(comparison: Comparison, talk: Talk) -> list[Outcome]:
    """Compute all outcomes, and show progress."""
    plan = comparison.plan
    trainings = len(plan.trainings())
    with working(comparison.steps(), talk, WARM_UP) as progress, stop_requests() as stop:
        rows, seeds = counted(len(plan.rows), "row"), counted(len(plan.seeds), "seed")
        progress.say(f"{rows} at {seeds} each: {counted(trainings, 'training')}")

        def on_round(cell: Cell, record: RoundRecord) -> None:
            config = cell.config
            progress.step(round_text(cell.title, record, config.rounds, KNOWN[config.method].gated))

        def on_adapted(cell: Cell, accuracy: float) -> None:
            progress.step(f"{cell.title}  adapted  {adapted_text(accuracy)}")

        return comparison.run(on_round, on_adapted, stop)
