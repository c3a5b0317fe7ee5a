"""`refimpl tune`: settings of methods by search on validation nodes, the same budget for each."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refimpl.cli.app import INTERRUPTED
from refimpl.cli.compiling import WARM_UP, notice
from refimpl.cli.interrupt import stop_requests
from refimpl.cli.options import FILE, Names, Seeds, file_option, preset_option, run_options
from refimpl.cli.output import command_line, print_json, say_data, table
from refimpl.cli.progress import Progress, Talk, round_text
from refimpl.errors import ConfigError, RunError, one_of
from refimpl.experiments.config import METHODS, resolve
from refimpl.files.storage import write_whole

if TYPE_CHECKING:
    from refimpl.experiments.tune.record import Tuning
    from refimpl.experiments.tune.search import Search
    from refimpl.federated.rounds import RoundRecord

SEEDS = (100,)  # comparisons report others
SHARE = 5  # of the training nodes, every fifth is for validation unless told otherwise
Ranges = dict[str, tuple[float, float]]
HEADER = ("method", "trials", "diverged", "best %", "median %", "best setting")

EPILOG = """\b
Examples:
  refimpl tune --method fedavg --dataset digits --budget 8 --rounds 20 --out fedavg.toml
  refimpl tune --method fedavg,perfedavg,metagater --preset mnist --data-dir ~/data --out mnist.toml
  refimpl tune --method fedavg,metasnip --preset cifar10 --budget 12 --adaptations 4 --out cifar10.toml
  refimpl tune --resume --out mnist.toml --data-dir ~/data
  refimpl tune --method reptile --grid --budget 9 --keys eta,mix --range mix=0.2:1 --out reptile.toml
  refimpl train --config fedavg.toml
  refimpl compare --config mnist.toml --methods fedavg,perfedavg,metagater
"""


@click.command(epilog=EPILOG)
@click.option("--method", "methods", type=Names(), help="Method, or several with the same budget each.")
@file_option
@preset_option
@click.option("--budget", type=click.IntRange(min=1), help="Settings tried of each method.  [16]")
@click.option("--grid/--random", default=None, help="How settings are chosen.  [random]")
@click.option(
    "--adaptations",
    type=click.IntRange(min=1),
    help="Random settings of the adaptation for each of the meta-training.  [1]",
)
@click.option("--keys", type=Names(), help="Keys that are searched.  [the method's rates]")
@click.option("--range", "ranges", multiple=True, metavar="KEY=LOW:HIGH", help="Where a key is searched.")
@click.option("--seeds", type=Seeds(), help="Seeds of every trial.  [100]")
@click.option("--validation", type=click.IntRange(min=1), help="Nodes held out of training.  [a fifth]")
@click.option("--out", type=FILE, help="TOML file of the best settings.")
@click.option("--resume", is_flag=True, help="Go on with the search of --out.")
@click.option("--force", is_flag=True, help="Replace --out and its trials.")
@run_options(without=("method", "seed"))
@click.pass_context
def command(
    ctx: click.Context,
    methods: list[str] | None,
    file: Path | None,
    from_preset: str | None,
    budget: int | None,
    grid: bool | None,
    adaptations: int | None,
    keys: list[str] | None,
    ranges: tuple[str, ...],
    seeds: tuple[int, ...] | None,
    validation: int | None,
    out: Path | None,
    resume: bool,
    force: bool,
    threads: int | None,
    data_dir: Path | None,
    as_json: bool,
    talk: Talk,
    **options: Any,
) -> None:
    """Search the best settings of methods on validation nodes.

    Every method gets the same number of settings of its rates, random or on a grid, on logarithmic scales.
    A setting is meta-trained without the validation nodes, the last of the training nodes, and scored by
    accuracy after adaptation at them; one that diverges, in training or at any of them, is no candidate.
    Target nodes are not touched. rho and snip_keep trade accuracy for
    work and are not searched unless named in --range; beta follows lam (lam beta = 1/2).

    The best settings are written to --out, as `train --config` and `compare --config` take them; every trial
    is a line of the file beside it that ends in .jsonl. What is finished is kept: --resume does the rest.
    """
    from refimpl.experiments.tune.record import Tuning
    from refimpl.experiments.tune.search import Search

    if out is None or out.suffix != ".toml":
        raise click.UsageError(f"expected --out FILE.toml, got {out or 'none'}", ctx)
    record = out.with_suffix(".jsonl")
    if resume:
        given = (
            methods
            or file
            or from_preset
            or budget
            or adaptations
            or keys
            or ranges
            or seeds
            or validation
            or force
        )
        if given or grid is not None or any(value is not None for value in options.values()):
            raise click.UsageError("--resume takes what to search from the record of --out", ctx)
        ctx.exit(run(Tuning.open(record), out, data_dir, threads, as_json, talk))
    if not methods:
        raise click.UsageError("--method NAME is missing", ctx)
    if grid and adaptations:
        raise click.UsageError("--adaptations is for random settings; a grid shares trainings as it is", ctx)
    _check_free((out, record), force)
    searches = []
    for method, own in _ranges(methods, keys, dict(map(_range, ranges))).items():
        config = resolve(file, from_preset, method=method, **options)
        held = validation or max(1, config.nodes // SHARE)
        kind = "grid" if grid else "random"
        more = adaptations or 1
        searches.append(Search(config, own, budget or 16, kind, seeds or SEEDS, held, adaptations=more))
    tuning = Tuning.create(record, searches, data_dir)
    ctx.exit(run(tuning, out, data_dir, threads, as_json, talk))


def _check_free(paths: tuple[Path, ...], force: bool) -> None:
    for path in paths:
        if path.exists() and not force:
            raise RunError(f"{path}: exists; continue it with --resume or replace it with --force")


def _range(text: str) -> tuple[str, tuple[float, float]]:
    key, _, ends = text.partition("=")
    low, _, high = ends.partition(":")
    try:
        return key.strip().replace("-", "_"), (float(low), float(high))
    except ValueError:
        raise ConfigError(f"--range: expected KEY=LOW:HIGH, got {text!r}") from None


def _ranges(methods: list[str], keys: list[str] | None, given: Ranges) -> dict[str, Ranges]:
    """What is searched of each method: its usual keys or those named, in the usual ranges or those given."""
    from refimpl.experiments.methods import takes
    from refimpl.experiments.tune.search import ranges_of

    for number, method in enumerate(methods):
        one_of("--method", "method", method, METHODS)
        if method in methods[:number]:
            raise ConfigError(f"--method: expected every method once, got {method} again")
    for key in given:
        if key not in resolve().table() or not any(takes(method, key) for method in methods):
            raise ConfigError(f"--range: {key} is no key that {' or '.join(methods)} takes")
    usual = {method: {**ranges_of(method), **given} for method in methods}
    wanted = [key.replace("-", "_") for key in keys] if keys else None
    for key in wanted or ():
        one_of("--keys", "key", key, tuple(sorted({key for own in usual.values() for key in own})))
    return {
        method: {key: own[key] for key in wanted or own if key in own and takes(method, key)}
        for method, own in usual.items()
    }


def run(
    tuning: Tuning, out: Path, data_dir: Path | None, threads: int | None, as_json: bool, talk: Talk
) -> int:
    """Make the trials that are left, write the best settings, and print; returns the exit code."""
    if talk != Talk.QUIET:
        say_data(tuning.note)
    try:
        _make(tuning, data_dir, threads, talk)
    except KeyboardInterrupt:
        again = command_line("tune", "--resume", "--out", out, data_dir=data_dir, threads=threads)
        click.echo(
            f"refimpl: stopped with {len(tuning.trials)} trials recorded; go on with: {again}", err=True
        )
        return INTERRUPTED
    write_whole(out, tuning.toml().encode())
    methods = [search.config.method for search in tuning.searches]
    if as_json:
        print_json(
            {"file": str(out), "record": str(tuning.path), "methods": [_content(tuning, m) for m in methods]}
        )
        return 0
    click.echo(table(HEADER, [_cells(tuning, method) for method in methods]))
    click.echo(f"\naccuracy after adaptation at {_nodes(tuning)}; none of their target nodes was used")
    click.echo(f"{out}: for train --config and compare --config; {tuning.path}: all trials")
    return 0


def _make(tuning: Tuning, data_dir: Path | None, threads: int | None, talk: Talk) -> None:
    """The trials, with progress."""
    left, jobs = tuning.left(), tuning.jobs()
    searches = [job.trials[0][0] for job in jobs]
    rounds = sum(search.config.rounds * len(search.seeds) for search in searches)
    with Progress(rounds, talk) as progress, notice(progress, WARM_UP), stop_requests() as stop:
        shared = f" on {len(jobs)} meta-trainings" * (len(jobs) < len(left))
        progress.say(f"{len(left)} trials of {len(tuning.searches)} methods{shared}")

        def on_told(search: Search, trial: int, record: RoundRecord) -> None:
            name, config = f"{search.config.method}, trial {trial}", search.config
            progress.step(round_text(name, record, config.rounds, config.method == "metagater"))

        if left:
            tuning.run(data_dir, threads, on_told, stop)


def _content(tuning: Tuning, method: str) -> dict[str, Any]:
    from refimpl.experiments.tune.trial import best

    trials = tuning.of(method)
    return {"method": method, "best": vars(best(trials)), "trials": [vars(trial) for trial in trials]}


def _cells(tuning: Tuning, method: str) -> tuple[str, ...]:
    from refimpl.experiments.tune.trial import best

    trials = tuning.of(method)
    scores = [trial.score or 0.0 for trial in trials if not trial.diverged]
    found = best(trials)
    return (
        method,
        str(len(trials)),
        str(len(trials) - len(scores)),
        f"{100 * max(scores):.2f}",
        f"{100 * statistics.median(scores):.2f}",
        " ".join(f"{key}={value:g}" for key, value in found.setting.items()),
    )


def _nodes(tuning: Tuning) -> str:
    held = sorted({search.validation for search in tuning.searches})
    seeds = ", ".join(map(str, tuning.searches[0].seeds))
    return f"{' or '.join(map(str, held))} validation nodes, the last training nodes of seeds {seeds}"
