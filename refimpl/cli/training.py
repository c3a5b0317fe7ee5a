"""What all commands that train have in common: the options of a new or resumed run, and what they do."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import click

from refimpl.cli.interrupt import resumable, stop_requests
from refimpl.cli.options import PATH, Decorator, Session, file_option, gathered
from refimpl.cli.output import answer, command_line, facts
from refimpl.cli.progress import WARM_UP, working
from refimpl.errors import OlderVersionWarning, RunError
from refimpl.experiments.config import absolute
from refimpl.experiments.record import RunFolder, check_free
from refimpl.files.storage import toml_text

if TYPE_CHECKING:
    from refimpl.experiments.experiment import Trainable, Trained

Records = Sequence[Mapping[str, Any]]  # of the rounds of a run
Lines = list[tuple[str, str]]  # names with what is said of each


@dataclass(frozen=True)
class Begin:
    """Where the settings of a run come from, where the run is kept, and whether it is begun or continued."""

    file: Path | None = None
    from_preset: str | None = None
    out: Path | None = None
    resume: bool = False
    force: bool = False
    dry_run: bool = False


def begin_options(preset_option: Decorator, usual_out: str) -> Decorator:
    """The options of `Begin`, as one argument `begin`; the run folder is usually runs/`usual_out`."""
    return gathered(
        "begin",
        Begin,
        file_option,
        preset_option,
        click.option("--out", type=PATH, help=f"Run folder.  [runs/{usual_out}]"),
        click.option("--resume", is_flag=True, help="Continue the run in --out from its checkpoint."),
        click.option("--force", is_flag=True, help="Replace the run in --out."),
        click.option("--dry-run", is_flag=True, help="Print the resolved configuration as TOML and stop."),
    )


@dataclass(frozen=True)
class Trainer(ABC):
    """What a command that trains does; a subclass says what is trained, and what is shown of it.

    words: the command; room: the package whose module `config` makes the settings (`resolve`, `from_table`),
    and whose module `experiment` makes a run of them (`prepare`, `reopen`); prefix, chosen: what a run
    folder's name begins with, and the setting that it names; warms: whether all kernels of the rounds are
    compiled beforehand.
    """

    session: Session

    words: ClassVar[tuple[str, ...]]
    room: ClassVar[str]
    prefix: ClassVar[str] = ""
    chosen: ClassVar[str] = "method"
    warms: ClassVar[bool] = False

    @property
    def settings(self) -> ModuleType:
        """The module that makes settings."""
        return import_module(f"{self.room}.config")

    @property
    def experiment(self) -> ModuleType:
        """The module that makes runs; it takes a while to import, so the help does without."""
        return import_module(f"{self.room}.experiment")

    def name(self, config: Any) -> str:
        """The name of the run folder in runs/, if none is given."""
        return f"{self.prefix}{Path(config.dataset).stem}-{getattr(config, self.chosen)}-{config.seed}"

    def prepare(self, config: Any) -> Trainable:
        """A new run with these settings."""
        run: Trainable = self.experiment.prepare(config, self.session.data_dir)
        return run

    def reopen(self, folder: RunFolder) -> Trainable:
        """The run in the folder, on the data it was begun with."""
        run: Trainable = self.experiment.reopen(folder, self.session.data_dir)
        return run

    def note(self, run: Any) -> str:
        """What there is to say about the data."""
        return str(run.dataset.note)

    @abstractmethod
    def opening(self, run: Any) -> str:
        """What is said before the first round."""

    @abstractmethod
    def told(self, run: Any, record: Any) -> str:
        """What is said of a round."""

    @abstractmethod
    def numbers(self, run: Any, rounds: Records) -> dict[str, Any]:
        """What JSON has of a finished run besides its folder, seconds and settings."""

    @abstractmethod
    def lines(self, run: Any, folder: RunFolder, rounds: Records) -> Lines:
        """What people are told of it, by name, besides its folder, `chosen` setting and data."""

    def show(self, run: Any, folder: RunFolder) -> None:
        """Print the summary of a finished run."""
        rounds, path, config = folder.metrics(), str(folder.path), folder.config
        seconds = sum(entry["seconds"] for entry in rounds)
        content = {"run": path, "seconds": seconds, **self.numbers(run, rounds), "config": config}
        about = [("run", path), (self.chosen, config[self.chosen])]
        about += [("data", note)] if (note := self.note(run)) else []
        answer(self.session, content, facts(about + self.lines(run, folder, rounds)))

    def train(self, run: Any, folder: RunFolder, **how: Any) -> Trained:
        """Run the rounds that are left; `how`: the other arguments of `experiment.train`."""
        from refimpl.experiments.experiment import train

        return train(run, folder, **how)

    def run(self, begin: Begin, options: Mapping[str, Any]) -> None:
        """Begin or continue a run as the options ask for."""
        if begin.resume:
            if begin.force or begin.dry_run or begin.out is None:
                raise click.UsageError("--resume needs --out RUN, and neither --force nor --dry-run")
            self.go_on(begin.out, lambda folder: self._check_agrees(folder, begin, options))
            return
        config = self.settings.resolve(begin.file, begin.from_preset, **options)
        if begin.dry_run:
            click.echo(toml_text(config.table()), nl=False)
        else:
            self.begin(config, begin.out or Path("runs") / self.name(config), begin.force)

    def begin(self, config: Any, out: Path, force: bool) -> None:
        """Train a new run in the folder `out`."""
        check_free(out, force)  # checked before the data are read, and again when the folder is made
        run = self.prepare(config)
        with RunFolder.create(out, config.table(), force, self.session.threads, run.data) as folder:
            self._train(run, folder, saved=0)

    def go_on(self, out: Path, check: Callable[[RunFolder], None] = lambda folder: None) -> None:
        """Continue the run in the folder `out` unless `check` raises an error."""
        with RunFolder.open(out) as folder:
            check(folder)
            self._train(self.reopen(folder), folder, folder.rounds_saved)

    def _check_agrees(self, folder: RunFolder, begin: Begin, options: Mapping[str, Any]) -> None:
        """Raise `RunError` if an option that is given again differs from the run's own."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OlderVersionWarning)  # it is said when the run is reopened
            stored = self.settings.from_table(folder.config, str(folder.path)).table()
        given = {key: value for key, value in options.items() if value is not None}
        if "dataset" in given:
            given["dataset"] = absolute(given["dataset"])
        if begin.file or begin.from_preset:
            given = self.settings.resolve(begin.file, begin.from_preset, **given).table()
        for key, value in given.items():
            if stored[key] != value:
                raise RunError(
                    f"{folder.path}: was started with {key} = {stored[key]!r}, not {value!r}; "
                    "resume it without that option, or start another run"
                )

    def _train(self, run: Trainable, folder: RunFolder, saved: int) -> None:
        """Train from the checkpoint after `saved` rounds and print a summary."""
        from refimpl.federated.warmup import warm_up

        config, session, total = run.config, self.session, WARM_UP if self.warms else None

        def how() -> str:
            again = command_line(*self.words, "--resume", "--out", folder.path, session=session)
            return f" with {folder.rounds_saved} rounds saved; go on with: {again}"

        with resumable(how):
            left = config.rounds - saved
            with working(left, session.talk, total) as progress, stop_requests() as stop:
                progress.say(self.opening(run))
                if self.warms:
                    warm_up(config.dtype, session.threads)

                def on_round(record: Any) -> None:
                    progress.step(self.told(run, record))

                trained = self.train(
                    run, folder, resume=saved > 0, threads=session.threads, on_round=on_round, stop=stop
                )
            if trained.rounds < config.rounds:
                raise KeyboardInterrupt
            self.show(run, folder)
