"""A search on disk: every trial a line, resumed at any point, and the best settings as a configuration."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from refimpl.data.identity import Identity, Recorded, identities_from
from refimpl.errors import DataError, RefimplError, RunError, cause
from refimpl.experiments.config import Config, keys
from refimpl.experiments.experiment import UNRECORDED, try_out
from refimpl.experiments.jobs import Stop, divide_jobs
from refimpl.experiments.methods import special_keys, takes
from refimpl.experiments.tune.search import FACTOR, Search, search_from
from refimpl.experiments.tune.trial import Job, Trial, best, jobs, run_trials, survivors
from refimpl.federated.warmup import warm_up
from refimpl.files.claims import Claims
from refimpl.files.environment import cores
from refimpl.files.lock import locked
from refimpl.files.storage import (
    append_lines,
    json_value,
    make_folder,
    plain,
    read_bytes,
    toml_text,
    write_whole,
)

OnTold = Callable[[Search, int, Any], None]


@dataclass
class Tuning:
    """Searches with their record: a file of JSON lines, first what is searched, then every trial.

    data: what they are made on, by method and seed, as far as that is known; note: what a result should
    mention of it; shared: whether other processes may work on it at the same time.
    """

    path: Path
    searches: tuple[Search, ...]
    trials: list[Trial]
    data: Mapping[str, Identity]
    note: str
    shared: bool = False

    @classmethod
    def create(cls, path: Path, searches: Sequence[Search], data_dir: Path | None = None) -> Self:
        """A new record, which replaces one that was there. The searches are tried out first."""
        configs = {_key(s, seed): replace(s.config, seed=seed) for s in searches for seed in s.seeds}
        tried = try_out([(f"tune: {key}", config) for key, config in configs.items()], data_dir)
        data = {key: sound.data for key, sound in zip(configs, tried, strict=True)}
        line = _line(
            {
                "searches": [search.table() for search in searches],
                "data": {key: identity.table() for key, identity in data.items()},
            }
        )
        make_folder(path.parent)
        if not path.exists() and parts_of(path).exists():
            raise RunError(f"{parts_of(path)}: belongs to a search that is no longer there; remove it")
        with locked(path, path) if path.exists() else nullcontext():
            shutil.rmtree(parts_of(path), ignore_errors=True)
            write_whole(path, line)
        return cls(path, tuple(searches), [], data, tried[0].note)

    @classmethod
    def join(cls, path: Path, searches: Sequence[Search], data_dir: Path | None = None) -> Self:
        """Begin a shared search, or take part in the one that another machine has begun."""
        found = cls.open(path) if path.exists() else cls.create(path, searches, data_dir)
        if found.searches != tuple(searches):
            raise RunError(f"{path}: holds another search; give all machines the same options")
        return replace(found, shared=True)

    @classmethod
    def open(cls, path: Path) -> Self:
        """A record to be continued, with its parts; a last line cut short is not read."""
        if not path.is_file():
            raise RunError(f"{path}: no such record of trials; start one with refimpl tune")
        content = read_bytes(path)
        whole = content[: content.rfind(b"\n") + 1]
        try:
            first, *rest = (json_value(line) for line in whole.splitlines() + _parts(path))
            searches = tuple(search_from(table, str(path)) for table in first["searches"])
            trials = _trials(searches, rest)
            data = identities_from(str(path), first.get("data", {}))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: expected a record of trials, found damage ({cause(error)})") from None
        return cls(path, searches, trials, data, "" if data else UNRECORDED)

    def left(self) -> list[tuple[Search, int]]:
        """The trials still to be made, trial by trial through the methods; with rungs, those of the next."""
        return sorted((one for search in self.searches for one in self._left(search)), key=lambda one: one[1])

    def _left(self, search: Search) -> list[tuple[Search, int]]:
        """What is left of a search on its first rung that is not complete."""
        count = len(search.settings())
        numbers = list(range(count))
        for rung in range(search.rungs):
            own = [trial for trial in self.of(search.config.method) if trial.rung == rung]
            done = {trial.trial for trial in own}
            if left := [number for number in numbers if number not in done]:
                return [(search.at(rung), number) for number in left]
            numbers = survivors(own, max(1, count // FACTOR ** (rung + 1)))
        return []

    def run(
        self,
        data_dir: Path | None = None,
        threads: int | None = None,
        on_told: OnTold = lambda search, trial, record: None,
        stop: Stop = lambda: False,
    ) -> None:
        """Make what is left, several trials at a time; each is recorded when it is done.

        Raises `KeyboardInterrupt` where `stop` ended it early; trials in progress are then made again.
        Raises `RunError` where another process is at it.
        """
        with (
            locked(self.path, self.path, self.shared),
            Claims(parts_of(self.path) if self.shared else None) as claims,
        ):
            self._look()
            if not self.shared:
                _forget_cut_line(self.path)
            self._run(data_dir, threads, claims, on_told, stop)

    def _look(self) -> None:
        """Take over the trials that other processes have added."""
        found = Tuning.open(self.path)
        if found.searches != self.searches:
            raise RunError(
                f"{self.path}: another process has begun another search there; choose another --out"
            )
        self.trials = found.trials

    def _run(
        self, data_dir: Path | None, threads: int | None, claims: Claims, on_told: OnTold, stop: Stop
    ) -> None:
        for dtype in sorted({search.config.dtype for search in self.searches}):
            warm_up(dtype, threads)

        def left() -> dict[str, Job]:
            if self.shared:
                self._look()
            return {job.name: job for job in self.jobs(data_dir, threads)}

        def told(job: Job, message: Any) -> None:
            on_told(*job.trials[0], message)

        for job, result in divide_jobs(run_trials, left, threads or cores(), claims, told, stop):
            if isinstance(result, RefimplError):
                raise result
            self.trials += result
            lines = b"".join(_line(asdict(trial)) for trial in result)
            if self.shared:
                write_whole(parts_of(self.path) / f"{job.name}.jsonl", lines)
            else:
                append_lines(self.path, lines, "what was there before")
        if self.shared:
            self._look()
            trials = [asdict(trial) for search in self.searches for trial in self.of(search.config.method)]
            first, *_ = read_bytes(self.path).splitlines(keepends=True)
            write_whole(self.path, first + b"".join(map(_line, trials)))

    def jobs(self, data_dir: Path | None = None, threads: int | None = None) -> list[Job]:
        """What is left, trials with the same meta-training together."""
        found = jobs(self.left(), data_dir, threads or cores())
        return [replace(job, data=self._recorded(job.trials[0][0])) for job in found]

    def _recorded(self, search: Search) -> dict[int, Recorded]:
        """The data of a search by seed, as far as they are known."""
        known = {seed: self.data.get(_key(search, seed)) for seed in search.seeds}
        return {seed: Recorded(str(self.path), data) for seed, data in known.items() if data is not None}

    def of(self, method: str) -> list[Trial]:
        """The trials of a method, in order."""
        return sorted((t for t in self.trials if t.method == method), key=lambda t: (t.rung, t.trial))

    def toml(self) -> str:
        """The best settings as a configuration file: what all methods share, and a section for each."""
        configs = {s.config.method: self._found(s) for s in self.searches}
        tables = {method: config.table() for method, config in configs.items()}
        shared = _shared(tables)
        lines = [*self._how(), toml_text(shared)]
        for search in self.searches:
            method = search.config.method
            own = {k: v for k, v in tables[method].items() if k not in shared and takes(method, k)}
            own = {k: v for k, v in own.items() if k not in ("method", "seed")}
            lines += [self._why(search), f"[{method}]\n{toml_text(own)}"]
        return "\n".join(lines)

    def _found(self, search: Search) -> Config:
        """The best configuration; where it was found on the pool for tuning, for the other pool."""
        pool = "report" if search.config.pool == "tuning" else search.config.pool
        return replace(search.config, pool=pool, **best(self.of(search.config.method)).setting)

    def _how(self) -> list[str]:
        search, counts = self.searches[0], sorted({len(search.settings()) for search in self.searches})
        tried = " to ".join(map(str, counts[:1] + counts[1:][-1:]))  # the least and the most
        lines = [
            f"# The best of {tried} settings of each method ({search.kind} search), by mean accuracy",
            f"# after adaptation at {search.validation} validation nodes: the last training nodes of seeds "
            f"{', '.join(map(str, search.seeds))},",
            f"# kept out of training. None of their target nodes was used. All trials: {self.path.name}",
        ]
        if len(self.searches) == 1:
            lines.append(f'method = "{search.config.method}"')
        return lines

    def _why(self, search: Search) -> str:
        trials = self.of(search.config.method)
        found = best(trials)
        where = ", ".join(f"{key} {low:g}..{high:g}" for key, (low, high) in search.ranges.items())
        score = 100 * (found.score or 0.0)
        return f"# {score:.2f} %, trial {found.trial} of 0..{len(search.settings()) - 1}; searched: {where}"


def _trials(searches: Sequence[Search], entries: Sequence[Mapping[str, Any]]) -> list[Trial]:
    """The trials in the entries of a record; each must be one of the searches', with a score or a failure."""
    settings = {search.config.method: search.settings() for search in searches}
    if not settings or len(settings) < len(searches):
        raise ValueError("the searches must be there and differ in method")
    found = [Trial(**entry) for entry in entries]
    trials = list({(trial.method, trial.rung, trial.trial): trial for trial in found}.values())
    for trial in trials:
        number, own = trial.trial, settings[trial.method]
        rungs = next(s.rungs for s in searches if s.config.method == trial.method)
        if type(number) is not int or not 0 <= number < len(own) or trial.setting != own[number]:
            raise ValueError(f"trial {number} is none of the search")
        if type(trial.rung) is not int or not 0 <= trial.rung < rungs:
            raise ValueError(f"trial {number} is on no rung of the search")
        if not (trial.failure or type(trial.score) is float) or not isinstance(
            trial.loss, (float, type(None))
        ):
            raise ValueError(f"trial {number} has neither score nor failure")  # a loss of NaN is none
    return trials


def parts_of(path: Path) -> Path:
    """The folder where processes that share a search claim its jobs, and leave the trials of each."""
    return path.with_suffix(".parts")


def _parts(path: Path) -> list[bytes]:
    """The lines of trials of a shared search."""
    return [line for part in sorted(parts_of(path).glob("*.jsonl")) for line in read_bytes(part).splitlines()]


def _key(search: Search, seed: int) -> str:
    """The name of a search at a seed."""
    return f"{search.config.method}, seed {seed}"


def _shared(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The keys that no method has to itself, where all agree."""
    first, *others = tables.values()
    searched = {name for name, one in keys().items() if one.search}
    special = {"method", "seed", *searched, *special_keys()}
    return {k: v for k, v in first.items() if k not in special and all(t[k] == v for t in others)}


def _line(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(plain(content), allow_nan=False) + "\n").encode()


def _forget_cut_line(path: Path) -> None:
    content = read_bytes(path)
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)
