"""The folder of a run: resolved configuration, metrics by round, checkpoints, meta-model and environment.

Killing the process at any time loses at most the round in progress: files are complete or not there
(temporary name, fsync, rename), and metrics grow by one flushed line a round. Equal arrays give equal
bytes, so that a resumed run can be compared with an uninterrupted one byte by byte.
"""

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refimpl.data.identity import Identity, Recorded, identity_from
from refimpl.errors import DataError, InputError, RunError, TakenError
from refimpl.experiments.config import read_toml
from refimpl.experiments.kinds import Kind, kind_of, other_kind
from refimpl.files.environment import environment
from refimpl.files.folders import building, leftovers, move_into_place
from refimpl.files.lock import release_lock, take_lock
from refimpl.files.storage import (
    Arrays,
    append_lines,
    check_like,
    json_text,
    json_value,
    npz_bytes,
    plain,
    read_bytes,
    read_json,
    read_npz,
    reason,
    toml_text,
    write_whole,
)
from refimpl.files.tables import counted

CONFIG, METRICS, ENVIRONMENT, DATA = "config.toml", "metrics.jsonl", "environment.json", "data.json"
CHECKPOINT, MODEL, REPORT, LOCK = "checkpoint.npz", "meta_model.npz", "report", ".lock"
OWN_FILES = frozenset({CONFIG, METRICS, ENVIRONMENT, DATA, CHECKPOINT, MODEL, REPORT, LOCK})
META = "__meta__"  # the entry of a checkpoint that is not an array of the state


class Checkpoint(NamedTuple):
    """A method's state.

    round: the number of rounds that it has behind it; arrays: the state; meta: what the caller stores
    besides.
    """

    round: int
    arrays: Arrays
    meta: dict[str, Any]


class RunFolder:
    """One run on disk, locked for this process; use it as a context manager.

    `create` starts a new run, `open` opens an existing one. A second process that tries to write the same
    run gets a `RunError`. `path` is the folder; `config` the resolved configuration as a plain table.
    """

    def __init__(self, path: Path, lock: int | None) -> None:
        self.path = path
        self._lock = lock
        self._appended = False  # whether this process has written metrics
        self._opened: os.stat_result | None = None  # the folder, where it was opened without a lock

    @classmethod
    def create(
        cls,
        path: str | Path,
        config: Mapping[str, Any],
        force: bool = False,
        threads: int | None = None,
        data: Identity | None = None,
    ) -> "RunFolder":
        """Make the folder of a new run at `path`; an existing run is replaced only with `force`.

        data: the data the run must be trained on; without it, `train` records the data it uses.
        """
        path = Path(path)
        text = toml_text(config)
        check_free(path, force)
        with building(path) as folder:
            (folder / REPORT).mkdir()
            write_whole(folder / CONFIG, text.encode())
            write_whole(folder / ENVIRONMENT, json_text(environment(threads)).encode())
            write_whole(folder / METRICS, b"")
            if data is not None:
                write_whole(folder / DATA, json_text(data.table()).encode())
            run = cls(path, take_lock(folder / LOCK, path))
            try:
                replaced = [path / LOCK] if force and (path / CONFIG).is_file() else []
                move_into_place(folder, path, CONFIG, replaced)
            except BaseException:
                run.close()
                raise
            return run

    @classmethod
    def open(cls, path: str | Path, lock: bool = True) -> "RunFolder":
        """Open an existing run to continue it, or with `lock=False` only to read it."""
        path = Path(path)
        if not (path / CONFIG).is_file():
            hint = other_kind(path) or "start one with refimpl train"
            raise RunError(f"{path}: not a run folder (it has no {CONFIG}); {hint}")
        run = cls(path, take_lock(path / LOCK, path) if lock else None)
        run._opened = None if lock else os.stat(path)
        return run

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock; the folder stays."""
        release_lock(self._lock)
        self._lock = None

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration the run was started with."""
        return read_toml(self.path / CONFIG)

    @property
    def report(self) -> Path:
        """Folder for tables and figures."""
        return self.path / REPORT

    # data

    @property
    def data(self) -> Recorded | None:
        """The data the run was begun with; None if they were not recorded."""
        return read_recorded(self.path)

    def hold_data(self, data: Identity) -> None:
        """Record the data of a new run; raises `RunError` if the run was begun with other data."""
        recorded = self.data
        if recorded is not None:
            recorded.check(data)
        elif not self.has_checkpoint:  # without a record, what a run has been trained on is unknown
            write_whole(self.path / DATA, json_text(data.table()).encode())

    # metrics

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one round's record, which has a `round`, as one durable line of metrics.jsonl.

        A resumed run repeats the rounds after its checkpoint: their old lines are removed first.
        """
        if "round" not in record:
            raise InputError(
                f"RunFolder.append_metrics: expected a record with a round, got {sorted(record)}"
            )
        if not self._appended:
            self.truncate_metrics(int(record["round"]) - 1)
            self._appended = True
        line = json.dumps(plain(record), allow_nan=False) + "\n"
        append_lines(self.path / METRICS, line.encode(), "the last checkpoint")

    def metrics(self) -> list[dict[str, Any]]:
        """All rounds' records in order; values that were NaN are None."""
        path = self.path / METRICS
        return [record for record, _ in _metric_lines(path, read_bytes(path))]

    def truncate_metrics(self, round_: int) -> None:
        """Remove the rounds after `round_`, and a last line that is incomplete.

        Raises `DataError` unless the rounds 1..round_ remain, each once and in order.
        """
        path = self.path / METRICS
        content = read_bytes(path)
        kept = [(record, end) for record, end in _metric_lines(path, content) if record["round"] <= round_]
        rounds = [record["round"] for record, _ in kept]
        if rounds != list(range(1, round_ + 1)):
            raise DataError(f"{path}: expected rounds 1..{round_}, each once, found {_ranges(rounds)}")
        write_whole(path, content[: kept[-1][1] if kept else 0])

    # checkpoints and models

    @property
    def has_checkpoint(self) -> bool:
        """Whether a checkpoint has been saved."""
        return (self.path / CHECKPOINT).is_file()

    @property
    def rounds_saved(self) -> int:
        """The number of rounds behind the last checkpoint; 0 without one."""
        return self.load_checkpoint().round if self.has_checkpoint else 0

    def save_checkpoint(self, round_: int, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Replace the checkpoint by the state after `round_` rounds."""
        if META in arrays:
            raise InputError(f"RunFolder.save_checkpoint: the array name {META} is reserved; rename it")
        header = {"round": int(round_), "meta": plain(meta), "arrays": sorted(arrays)}
        entry = np.array(json.dumps(header, sort_keys=True, allow_nan=False))
        write_whole(self.path / CHECKPOINT, npz_bytes({**arrays, META: entry}))

    def load_checkpoint(self, like: Mapping[str, np.ndarray] | None = None) -> Checkpoint:
        """The last checkpoint: (round, arrays, meta); with `like`, names, shapes and dtypes must agree."""
        path = self.path / CHECKPOINT
        if not path.is_file():
            raise RunError(f"{self.path}: has no checkpoint yet; start it again with --force")
        arrays = read_npz(path)
        round_, meta, names = _read_header(path, arrays.pop(META, None))
        if names != sorted(arrays):  # no checksum protects the names in a zip archive
            wanted, found = ", ".join(map(str, names))[:200], ", ".join(sorted(arrays))[:200]
            raise DataError(f"{path}: expected the arrays {wanted}, found {found}")
        if like is not None:
            check_like(path, arrays, like)
        return Checkpoint(round_, arrays, meta)

    @property
    def has_model(self) -> bool:
        """Whether the finished meta-model has been saved."""
        return (self.path / MODEL).is_file()

    def save_model(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the meta-model by parameter name; equal values give equal bytes."""
        write_whole(self.path / MODEL, npz_bytes(arrays))

    def load_model(self, like: Mapping[str, np.ndarray] | None = None) -> Arrays:
        """The meta-model by parameter name; with `like`, names, shapes and dtypes must agree."""
        path = self.path / MODEL
        if not path.is_file():
            raise RunError(
                f"{self.path}: has no meta-model yet; finish it with train --resume --out {self.path}"
            )
        arrays = read_npz(path)
        if like is not None:
            check_like(path, arrays, like)
        for name in sorted(arrays):
            if arrays[name].dtype.kind == "f" and not np.isfinite(arrays[name]).all():
                raise DataError(f"{path}: expected finite numbers, found NaN or infinity in {name}")
        return arrays

    def save_report(self, name: str, content: Any) -> Path:
        """Write `content` as report/<name>.json; returns its path.

        Raises `RunError` if the run was opened without a lock and another run has replaced it since.
        """
        path = self.report / f"{name}.json"
        try:
            if self._opened and not os.path.samestat(self._opened, os.stat(self.path)):
                raise RunError(
                    f"{self.path}: was replaced by another run meanwhile; start this command again"
                )
            self.report.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(f"{path}: cannot write: {reason(error)}") from None
        write_whole(path, json_text(content).encode())
        return path


def kind_at(path: Path) -> Kind | None:
    """The kind of the run in a folder; None if there is no run, or one of no known kind."""
    return kind_of(read_toml(path / CONFIG)) if (path / CONFIG).is_file() else None


def read_recorded(folder: Path) -> Recorded | None:
    """The data that what is in a folder was begun with; None if they were not recorded."""
    path = folder / DATA
    return Recorded(str(folder), identity_from(str(path), read_json(path))) if path.is_file() else None


def _metric_lines(path: Path, content: bytes) -> Iterator[tuple[dict[str, Any], int]]:
    """Each round's record and the position just behind its line; a last incomplete line is left out."""
    end = 0
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            return
        end += len(line)
        try:
            record = json_value(line)
            if type(record["round"]) is not int:
                raise TypeError
        except (ValueError, TypeError, KeyError):
            raise DataError(
                f"{path}: expected a JSON record with a round in line {number}, found {line[:40]!r}"
            ) from None
        yield record, end


def _read_header(path: Path, entry: np.ndarray | None) -> tuple[int, dict[str, Any], list[str]]:
    """Round, meta and array names from a checkpoint's entry META."""
    try:
        header = json_value(str(entry))
        round_, meta, names = header["round"], header["meta"], header["arrays"]
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path}: expected a checkpoint with a round, found none") from None
    if type(round_) is not int or round_ < 0 or not isinstance(meta, dict) or not isinstance(names, list):
        raise DataError(f"{path}: expected a round of at least 0 with its meta data, found {round_!r}")
    return round_, meta, names


def _ranges(rounds: Sequence[int]) -> str:
    return f"{counted(len(rounds), 'round')} from {rounds[0]} to {rounds[-1]}" if rounds else "none"


def check_free(
    path: Path, force: bool, mark: str = CONFIG, own: Collection[str] = OWN_FILES, what: str = "a run folder"
) -> None:
    """Raise `RunError` unless a run may be created at `path`; with `force` it may replace an existing run.

    For other kinds of folders: `mark` is the file that identifies them, `own` all names that may be deleted.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise RunError(f"{path}: expected a folder, found a file; choose another --out")
    torn = {f".{name}.tmp" for name in own}  # left by a process that was killed while it wrote
    half_filled = leftovers(path)
    present = sorted(item.name for item in path.iterdir() if item.name not in torn | half_filled)
    if not present:
        return
    if mark not in present and not half_filled:
        raise TakenError(f"{path}: exists and is not {what}; choose another --out")
    if mark in present and not force:
        raise TakenError(f"{path}: exists; continue it with --resume or replace it with --force")
    foreign = [name for name in present if name not in own]
    if foreign:
        raise RunError(f"{path}: --force would delete {', '.join(foreign)}; move that elsewhere first")
