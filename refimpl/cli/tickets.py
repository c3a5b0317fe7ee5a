"""`refimpl tickets`: finds sparse networks for few-shot learning, trains them and compares their masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refimpl.cli.app import SuggestingGroup
from refimpl.cli.fewshot import BY_PRESET, Episodic, preset_option
from refimpl.cli.interrupt import resumable, stop_requests
from refimpl.cli.options import (
    FOLDER,
    PATH,
    Session,
    expect_figures,
    file_option,
    key_options,
    session_options,
)
from refimpl.cli.output import answer, command_line, facts, table
from refimpl.cli.ticketcompare import RUN_KEYS, compare_command, demo_command, watch
from refimpl.experiments.record import CONFIG, RunFolder, read_recorded
from refimpl.fewshot.config import FewShotConfig, resolve
from refimpl.fewshot.tickets.ticket import (
    FACTS,
    TRAINED,
    Settings,
    TicketConfig,
    begin,
    check_new,
    facts_of,
    settings_from,
    settings_of,
)
from refimpl.registry import FINDERS, keys_of

if TYPE_CHECKING:
    from refimpl.fewshot.experiment import FewShot

OWN_KEYS = {**keys_of(TicketConfig), **FINDERS.keys()}

EPILOG = """\b
Examples:
  refimpl tickets demo
  refimpl tickets find --preset digits-2way-1shot --finder pmt --pruned 0.8 --out runs/pmt
  refimpl tickets train runs/pmt
  refimpl fewshot test runs/pmt/trained
"""


@click.group(cls=SuggestingGroup, epilog=EPILOG)
def command() -> None:
    """Find sparse networks that meta-train as well as dense ones.

    A ticket is a mask with the weights that training starts from. `find` makes one, `train` meta-trains it,
    and `refimpl fewshot test` tests it like any run. `compare` does all three for several finders and seeds,
    and says which differences are separated from zero. `patterns` compares masks.
    """


# --- find


@command.command(
    "find",
    epilog="\b\nExamples:\n  refimpl tickets find --preset digits-2way-1shot --finder mwt --out runs/mwt\n"
    "  refimpl tickets find --finder rr --dense runs/mwt/dense --pruned 0.9 --out runs/rr\n"
    "  refimpl tickets find --preset omniglot-5way-1shot --finder pmt --delta 0.9 --out runs/pmt\n"
    "  refimpl tickets find --out runs/pmt --resume",
)
@file_option
@preset_option
@click.option("--out", type=PATH, required=True, help="Folder of the ticket.")
@click.option("--resume", is_flag=True, help="Go on with the search in --out.")
@click.option("--force", is_flag=True, help="Replace the ticket in --out, with its trainings.")
@session_options("threads", "data_dir", "json", "talk")
@key_options(OWN_KEYS.values(), frozenset())
@key_options(RUN_KEYS, BY_PRESET)
def find_command(
    file: Path | None,
    from_preset: str | None,
    out: Path,
    resume: bool,
    force: bool,
    session: Session,
    **options: Any,
) -> None:
    """Find a ticket, with all trainings that it takes.

    With --dense RUN the dense training is that of a finished run of `refimpl fewshot train`, whose settings
    are used as well: several tickets can share it. FLOPs and seconds of finding are printed and kept. Ctrl-C
    stops after the iteration in progress; --resume goes on, and ends in the same bytes.
    """
    from refimpl.fewshot.experiment import prepare
    from refimpl.fewshot.tickets.finders import Search, find

    given = {name: value for name, value in options.items() if value is not None}
    if resume:
        if force or file or from_preset or given:
            raise click.UsageError("--resume takes no settings")
        settings = settings_of(out)
        run = None if (out / FACTS).is_file() else prepare(settings.run, session.data_dir, read_recorded(out))
    else:
        settings = _settings(given, file, from_preset)
        check_new(out, force)
        dense = settings.ticket.dense
        run = prepare(settings.run, session.data_dir, read_recorded(Path(dense)) if dense else None)
        begin(out, settings, run.data, force)
    if run is not None:
        again = command_line("tickets", "find", "--resume", "--out", out, session=session)
        with resumable(lambda: f"; go on with: {again}"), stop_requests() as stop:
            find(Search(run, settings, out, session.threads, watch(session), stop))
    known = facts_of(out)
    answer(session, {"ticket": str(out), **known}, facts(_told(out, settings, known, session)))


def _settings(given: dict[str, Any], file: Path | None, from_preset: str | None) -> Settings:
    """What the options ask for; with --dense, the few-shot settings are those of that run."""
    own = {name: value for name, value in given.items() if name in OWN_KEYS}
    others = {name: value for name, value in given.items() if name not in OWN_KEYS}
    if "dense" not in own:
        return settings_from(resolve(file, from_preset, **others).table() | own, "options")
    if file or from_preset or others:
        raise click.UsageError(f"with --dense, {', '.join(others) or 'others'} are those of that run")
    own["dense"] = str(Path(own["dense"]).expanduser().absolute())
    with RunFolder.open(own["dense"], lock=False) as folder:
        return settings_from(folder.config | own, own["dense"])


def _told(out: Path, settings: Settings, known: Mapping[str, Any], session: Session) -> list[tuple[str, str]]:
    layers = [
        f"{name.removesuffix('.weight')} {kept}/{known['weights'][name]}"
        for name, kept in known["kept"].items()
    ]
    lines = [("ticket", str(out)), ("finder", known["finder"]), ("kept", ", ".join(layers))]
    if "stopped" in known:
        rounds, stopped = settings.run.rounds, known["stopped"]
        when = (
            f"iteration {stopped} of {rounds}" if stopped else f"not before iteration {rounds}: never stable"
        )
        lines.append(("stopped", f"{when} (rule {settings.finder.rule}, delta {settings.finder.delta:g})"))
    cost = f"{known['flops'] / 1e9:.4g} GFLOP, {known['seconds']:.3g} s"
    return [*lines, ("finding took", cost), ("next", command_line("tickets", "train", out, session=session))]


# --- train


@command.command("train", epilog="\b\nExample:\n  refimpl tickets train runs/pmt --seed 1 --out runs/pmt-1")
@click.argument("ticket", type=PATH)
@click.option("--out", type=PATH, help="Run folder.  [TICKET/trained]")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the training.  [that of the search]")
@click.option("--rounds", type=click.IntRange(min=1), help="Meta-iterations.  [those of the search]")
@click.option("--force", is_flag=True, help="Begin again, if the run is there.")
@session_options("threads", "data_dir", "json", "talk")
def train_command(
    ticket: Path, out: Path | None, seed: int | None, rounds: int | None, force: bool, session: Session
) -> None:
    """Meta-train a ticket into a run folder, on the data that it was found on; a run that is there goes on.

    Weights outside the mask stay zero, here and in `refimpl fewshot test` of the run.
    """
    wanted: dict[str, Any] = {"seed": seed, "rounds": rounds}
    given = {name: value for name, value in wanted.items() if value is not None}
    trainer, out = Found(session), out or ticket / TRAINED
    if (out / CONFIG).is_file() and not force:
        trainer.go_on(out)
    else:
        facts_of(ticket)  # raises an error if the ticket has not been found yet
        config = replace(settings_of(ticket).run, ticket=str(ticket.absolute()), **given)
        trainer.begin(config, out, force)


class Found(Episodic):
    """What `refimpl tickets train` does."""

    def prepare(self, config: FewShotConfig) -> FewShot:
        """See `Trainer`."""
        recorded = read_recorded(Path(config.ticket))
        run: FewShot = self.experiment.prepare(config, self.session.data_dir, recorded)
        return run


# --- patterns


@command.command(
    "patterns", epilog="\b\nExample:\n  refimpl tickets patterns runs/mwt-0 runs/mwt-1 --out figures"
)
@click.argument("tickets", metavar="TICKET...", nargs=-1, required=True, type=PATH)
@click.option("--out", type=FOLDER, help="Folder for figures (they need the extra `plot`).  [none]")
@session_options("json", "talk")
def patterns_command(tickets: tuple[Path, ...], out: Path | None, session: Session) -> None:
    """Compare the masks of tickets by layer, and show how masks changed in dense training.

    The second table has what all of the first g tickets keep, in percent of what one keeps. For tickets from
    one start, find them with one --start-seed and different --seed. A ticket found with --every M has the
    masks of its dense training, whose occurrence is the share of the last mask's weights that they keep.
    """
    from refimpl.fewshot.tickets.patterns import has_trace, of_tickets, of_training

    expect_figures(out)
    found = {**of_tickets(tickets), "training": [of_training(path) for path in tickets if has_trace(path)]}
    if out is not None:
        _draw(found, out, err=session.as_json)
    numbers = [str(number + 1) for number in range(len(tickets))]
    lines = [f"{number}: {path}" for number, path in zip(numbers, tickets, strict=True)]
    lines.append(_by_layer("pruned %", numbers, found["pruned"]))
    lines.append(_by_layer("kept by the first, %", numbers, found["overlap"]))
    if len(tickets) > 1:
        distances = {name: matrix[-1] for name, matrix in found["hamming"].items()}
        lines.append(_by_layer(f"differs from {numbers[-1]}, %", numbers, distances))
    for entry in found["training"]:
        lines.append(f"dense training of {entry['ticket']}")
        at = [str(number) for number in entry["iterations"]]
        lines.append(_by_layer("of the last mask after iteration, %", at, entry["occurrence"]))
    answer(session, found, "\n".join(lines))


def _by_layer(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[float]]) -> str:
    cells = [[name, *(f"{100 * value:.1f}" for value in row)] for name, row in rows.items()]
    return "\n" + table([title, *columns], cells)


def _draw(found: Mapping[str, Any], out: Path, err: bool) -> None:
    """Write the figures and say where they are."""
    from refimpl.report.canvas import save
    from refimpl.report.tickets import tickets_figure, training_figure

    click.echo(save(out / "tickets.png", lambda: tickets_figure(found)), err=err)
    for number, entry in enumerate(found["training"], start=1):
        figure = save(out / f"training-{number}.png", partial(training_figure, entry))
        click.echo(figure, err=err)


command.add_command(compare_command)
command.add_command(demo_command)
