"""`refimpl tune`: searches for settings on validation nodes, with the same budget for each method."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refimpl.cli.interrupt import resumable, stop_requests
from refimpl.cli.options import (
    FILE,
    NAME_LIST,
    SEED_LIST,
    Session,
    file_option,
    preset_option,
    run_options,
    share_option,
)
from refimpl.cli.output import answer, command_line, say_data, table
from refimpl.cli.progress import WARM_UP, Talk, round_text, working
from refimpl.errors import ConfigError, RunError, one_of
from refimpl.experiments.config import resolve
from refimpl.files.storage import write_whole
from refimpl.files.tables import counted
from refimpl.registry import METHODS

if TYPE_CHECKING:
    from refimpl.experiments.tune.record import Tuning
    from refimpl.experiments.tune.search import Search
    from refimpl.federated.rounds import RoundRecord

SEEDS = (100,)  # other seeds than those that comparisons report
SHARE = 5  # one of so many training nodes is for validation unless --validation says otherwise
Ranges = dict[str, tuple[float, float]]
HEADER = ("method", "trials", "diverged", "best %", "median %", "best setting")

EPILOG = """\b
Examples:
  refimpl tune --method fedavg --dataset digits --budget 8 --rounds 20 --out fedavg.toml
  refimpl tune --method fedavg,perfedavg,metagater --preset mnist --data-dir ~/data --out mnist.toml
  refimpl tune --method fedavg,metasnip --preset cifar10 --budget 12 --adaptations 4 --out cifar10.toml
  refimpl tune --method fedavg,metagater --preset cifar10 --budget 27 --rungs 3 --pool tuning --out c.toml
  refimpl tune --resume --out mnist.toml --data-dir ~/data
  refimpl tune --method reptile --grid --budget 9 --keys eta,mix --range mix=0.2:1 --out reptile.toml
  refimpl train --config fedavg.toml
  refimpl compare --config mnist.toml --methods fedavg,perfedavg,metagater
"""


@click.command(epilog=EPILOG)
@click.option("--method", "methods", type=NAME_LIST, help="One method or several; each gets the same budget.")
@file_option
@preset_option
@click.option("--budget", type=click.IntRange(min=1), help="Settings to try for each method.  [16]")
@click.option("--grid/--random", default=None, help="How settings are chosen.  [random]")
@click.option(
    "--adaptations",
    type=click.IntRange(min=1),
    help="Random settings of the adaptation for each meta-training.  [1]",
)
@click.option(
    "--rungs",
    type=click.IntRange(min=1),
    help="Successive halving: rungs, each with a third of the settings for three times the rounds.  [1]",
)
@click.option("--keys", type=NAME_LIST, help="Keys to search.  [the method's rates]")
@click.option("--range", "ranges", multiple=True, metavar="KEY=LOW:HIGH", help="Range to search for a key.")
@click.option("--seeds", type=SEED_LIST, help="Seeds of every trial.  [100]")
@click.option("--validation", type=click.IntRange(min=1), help="Nodes kept out of training.  [a fifth]")
@click.option("--out", type=FILE, help="TOML file for the best settings.")
@click.option("--resume", is_flag=True, help="Continue the search of --out.")
@click.option("--force", is_flag=True, help="Replace --out and its trials.")
@share_option
@run_options(without=("method", "seed"))
def command(
    methods: list[str] | None,
    out: Path | None,
    resume: bool,
    force: bool,
    share: bool,
    session: Session,
    **wanted: Any,
) -> None:
    """Search for the best settings of methods on validation nodes.

    For every method the same number of settings of its rates is tried. They are random or form a grid, on
    logarithmic scales. The last training nodes are the validation nodes: each setting is meta-trained without
    them, and its score is the accuracy after adaptation at them. A setting that diverges, in training or at
    any of these nodes, is not chosen. Target nodes are never used. rho and snip_keep trade accuracy for work,
    so they are searched only if --range names them; beta follows lam (lam beta = 1/2).

    With --rungs 3 all settings are first trained for a ninth of the rounds, the best third of them for a
    third of the rounds, and the best ninth for all rounds. This takes a third of the time. With --pool tuning
    nodes hold only images that no node of a run with --pool report holds, and the best settings say so.

    The best settings are written to --out, in the form that `train --config` and `compare --config` read.
    Every trial is one line of a file beside it that ends in .jsonl. Finished trials are kept, and --resume
    does the rest. Machines that share the folder of --out share the work: start the same command with --share
    on each of them.
    """
    from refimpl.experiments.tune.record import Tuning

    if out is None or out.suffix != ".toml":
        raise click.UsageError(f"expected --out FILE.toml, got {out or 'none'}")
    record = out.with_suffix(".jsonl")
    if share and force:
        raise click.UsageError("--share takes part in the search of --out, and --force would replace it")
    if resume:
        if methods or force or any(value not in (None, ()) for value in wanted.values()):
            raise click.UsageError("--resume takes what to search from the record of --out")
        run(replace(Tuning.open(record), shared=share), out, session)
        return
    if not methods:
        raise click.UsageError("--method NAME is missing")
    if wanted["grid"] and wanted["adaptations"]:
        raise click.UsageError("--adaptations is for random settings; a grid shares trainings as it is")
    for path in (out, record):
        if path.exists() and not (force or share):
            raise RunError(f"{path}: exists; continue it with --resume or replace it with --force")
    begin = Tuning.join if share else Tuning.create
    run(begin(record, _searches(methods, **wanted), session.data_dir), out, session)


def _searches(
    methods: list[str],
    file: Path | None,
    from_preset: str | None,
    budget: int | None,
    grid: bool | None,
    adaptations: int | None,
    rungs: int | None,
    keys: list[str] | None,
    ranges: tuple[str, ...],
    seeds: tuple[int, ...] | None,
    validation: int | None,
    **options: Any,
) -> list[Search]:
    """A search for each method, as the options say."""
    from refimpl.experiments.tune.search import Search

    kind, searches = "grid" if grid else "random", []
    for method, own in _ranges(methods, keys, dict(map(_range, ranges))).items():
        config = resolve(file, from_preset, method=method, **options)
        held = validation or max(1, config.nodes // SHARE)
        more = {"adaptations": adaptations or 1, "rungs": rungs or 1}
        searches.append(Search(config, own, budget or 16, kind, seeds or SEEDS, held, **more))
    return searches


def _range(text: str) -> tuple[str, tuple[float, float]]:
    key, _, ends = text.partition("=")
    low, _, high = ends.partition(":")
    try:
        return key.strip().replace("-", "_"), (float(low), float(high))
    except ValueError:
        raise ConfigError(f"--range: expected KEY=LOW:HIGH, got {text!r}") from None


def _ranges(methods: list[str], keys: list[str] | None, given: Ranges) -> dict[str, Ranges]:
    """The ranges to search for each method: of its usual keys or those named, usual or given."""
    from refimpl.experiments.methods import takes
    from refimpl.experiments.tune.search import ranges_of

    for number, method in enumerate(methods):
        one_of("--method", "method", method, tuple(METHODS))
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


def run(tuning: Tuning, out: Path, session: Session) -> None:
    """Make the trials that are left, write the best settings, and print."""
    if session.talk != Talk.QUIET:
        say_data(tuning.note)
    again = command_line("tune", "--resume", *["--share"] * tuning.shared, "--out", out, session=session)
    with resumable(lambda: f" with {counted(len(tuning.trials), 'trial')} recorded; go on with: {again}"):
        _make(tuning, session)
    write_whole(out, tuning.toml().encode())
    methods = [search.config.method for search in tuning.searches]
    found = [_content(tuning, method) for method in methods]
    lines = [
        table(HEADER, [_cells(tuning, method) for method in methods]),
        f"\naccuracy after adaptation at {_nodes(tuning)}; none of their target nodes was used",
        f"{out}: for train --config and compare --config; {tuning.path}: all trials",
    ]
    answer(session, {"file": str(out), "record": str(tuning.path), "methods": found}, "\n".join(lines))


def _make(tuning: Tuning, session: Session) -> None:
    """Make the trials that are left, and show progress."""
    left, jobs = tuning.left(), tuning.jobs()
    searches = [job.trials[0][0] for job in jobs]
    rounds = sum(
        search.config.rounds * len(search.seeds) * (search.rungs - search.rung) for search in searches
    )
    with working(rounds, session.talk, WARM_UP) as progress, stop_requests() as stop:
        shared = f" on {counted(len(jobs), 'meta-training')}" * (len(jobs) < len(left))
        progress.say(f"{counted(len(left), 'trial')} of {counted(len(tuning.searches), 'method')}{shared}")

        def on_told(search: Search, trial: int, record: RoundRecord) -> None:
            name, config = f"{search.config.method}, trial {trial}", search.config
            progress.step(round_text(name, record, config.rounds, METHODS[config.method].gated))

        if left or tuning.shared:
            tuning.run(session.data_dir, session.threads, on_told, stop)


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
        f"{100 * (found.score or 0.0):.2f}",
        f"{100 * statistics.median(scores):.2f}",
        " ".join(f"{key}={value:g}" for key, value in found.setting.items()),
    )


def _nodes(tuning: Tuning) -> str:
    held = sorted({search.validation for search in tuning.searches})
    seeds = ", ".join(map(str, tuning.searches[0].seeds))
    return f"{' or '.join(map(str, held))} validation nodes, the last training nodes of seeds {seeds}"
