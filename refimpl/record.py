"""A run's folder: resolved configuration, metrics by round, checkpoints, the meta-model, the environment.

Killing the process at any instant loses at most the round in progress: files appear whole or not at all
(temporary name, fsync, rename), metrics grow by one flushed line a round, and the array files are
byte-reproducible, so that a resumed run can be compared with an uninterrupted one byte by byte.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import platform
import re
import shutil
import subprocess
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refimpl._version import __version__
from refimpl.errors import ConfigError, DataError, InputError, RunError

try:
    import fcntl

    CAN_LOCK = True
except ImportError:  # Windows has no locks of this kind: runs are not guarded there
    CAN_LOCK = False

Arrays = dict[str, np.ndarray]

CONFIG, METRICS, ENVIRONMENT = "config.toml", "metrics.jsonl", "environment.json"
CHECKPOINT, MODEL, REPORT, LOCK = "checkpoint.npz", "meta_model.npz", "report", ".lock"
OWN_FILES = frozenset({CONFIG, METRICS, ENVIRONMENT, CHECKPOINT, MODEL, REPORT, LOCK})
META = "__meta__"  # the entry of a checkpoint that is not an array of the state

# --- TOML -------------------------------------------------------------------------------------------

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def toml_text(table: Mapping[str, Any]) -> str:
    """A flat table of str, int, float, bool and lists of them as TOML that `tomllib` reads back equal.

    Raises `ConfigError` for any other value (None, tuples, nested tables, NumPy scalars).
    """
    return "".join(f"{_toml_key(key)} = {_toml_value(key, value)}\n" for key, value in table.items())


def _toml_key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _toml_string(key)


def _toml_value(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if type(value) is int:
        return str(value)
    if type(value) is float:
        return repr(value)  # shortest text that reads back to the same float; also inf and nan
    if type(value) is str:
        return _toml_string(value)
    if type(value) is list:
        return f"[{', '.join(_toml_value(key, item) for item in value)}]"
    raise ConfigError(
        f"{CONFIG}: {key} must be str, int, float, bool or list, got {type(value).__name__}; convert it first"
    )


def _toml_string(text: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ConfigError(f"{CONFIG}: {text!r} is not valid Unicode; rename it")
    return '"' + "".join(_ESCAPES.get(letter, _visible(letter)) for letter in text) + '"'


def _visible(letter: str) -> str:
    return letter if letter >= " " and letter != "\x7f" else f"\\u{ord(letter):04x}"


# --- files that are whole or absent -----------------------------------------------------------------


def write_whole(path: Path, content: bytes) -> None:
    """Replace `path` by `content`: readers see the old file or the new one, even after a power cut.

    Raises `RunError` where the system refuses (disk full, no permission); the old file is then intact.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{path}: cannot write: {_reason(error)}; what was there before is intact") from None


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable (POSIX; elsewhere folders cannot be opened)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


# --- array files ------------------------------------------------------------------------------------


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """`arrays` as an .npz file that depends on names and values only: sorted, no times, not compressed."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for name in sorted(arrays):
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # the same bytes on every platform
            entry.external_attr = 0o644 << 16
            file.writestr(entry, _npy_bytes(name, arrays[name]))
    return archive.getvalue()


def _npy_bytes(name: str, value: np.ndarray) -> bytes:
    array = np.asarray(value, order="C")
    if array.dtype.hasobject:
        raise InputError(f"npz: {name} must be a numeric array, got dtype {array.dtype}; convert it first")
    content = io.BytesIO()
    little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
    np.lib.format.write_array(content, little_endian, version=(1, 0), allow_pickle=False)
    return content.getvalue()


def read_npz(path: Path) -> Arrays:
    """All arrays of an .npz file; `DataError` naming the file where it is missing, corrupt or pickled."""
    try:
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise DataError(f"{path}: expected an .npz archive of arrays, found a single array")
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read: {_reason(error)}") from None
    except _NOT_AN_ARCHIVE as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path}: expected an .npz archive of plain arrays, found damage ({detail})"
        ) from None


# All that zipfile and NumPy raise on damaged or hostile bytes.
_NOT_AN_ARCHIVE = (
    zipfile.BadZipFile,
    ValueError,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    SyntaxError,
    OverflowError,
    TypeError,
)


def check_like(path: Path, found: Mapping[str, np.ndarray], like: Mapping[str, np.ndarray]) -> None:
    """Raise `DataError` unless `found` has exactly the names, shapes and dtypes of `like`."""
    missing, extra = sorted(set(like) - set(found)), sorted(set(found) - set(like))
    if missing or extra:
        raise DataError(
            f"{path}: expected {len(like)} arrays; missing: {', '.join(missing) or 'none'}, "
            f"unknown: {', '.join(extra) or 'none'}; was it made with another configuration?"
        )
    for name in sorted(like):
        wanted, got = like[name], found[name]
        if (wanted.shape, wanted.dtype) != (got.shape, got.dtype):
            raise DataError(
                f"{path}: expected {name} as {wanted.dtype} of shape {wanted.shape}, "
                f"found {got.dtype} of shape {got.shape}; was it made with another configuration?"
            )


# --- metrics ----------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """`value` as JSON knows it: NumPy scalars and arrays, tuples become plain; NaN and infinities null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def _metric_lines(path: Path, content: bytes) -> Iterator[tuple[dict[str, Any], int]]:
    """Each round's record with the position just behind its line; a last line cut short is left out."""
    end = 0
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            return
        end += len(line)
        try:
            record = json.loads(line)
            _ = int(record["round"])
        except (ValueError, TypeError, KeyError):
            raise DataError(
                f"{path}: expected a JSON record with a round in line {number}, found {line[:40]!r}"
            ) from None
        yield record, end


# --- the folder -------------------------------------------------------------------------------------


class Checkpoint(NamedTuple):
    """A method's state after `round` rounds; `meta` is whatever the writer needs besides arrays."""

    round: int
    arrays: Arrays
    meta: dict[str, Any]


class RunFolder:
    """One run on disk, held under an exclusive lock; use it as a context manager.

    `create` starts a new run, `open` returns to one. A second process that wants to write the same run
    gets a `RunError`. `path` is the folder; `config` the resolved configuration as a plain table.
    """

    def __init__(self, path: Path, lock: int | None) -> None:
        self.path = path
        self._lock = lock
        self._appended = False  # whether this process has written metrics

    @classmethod
    def create(
        cls, path: str | Path, config: Mapping[str, Any], force: bool = False, threads: int | None = None
    ) -> RunFolder:
        """A new run at `path`, complete or not there at all; an existing run goes only with `force`."""
        path = Path(path)
        text = toml_text(config)
        check_free(path, force)
        building = path.with_name(f".{path.name}.{os.getpid()}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            building.mkdir()
            (building / REPORT).mkdir()
            write_whole(building / CONFIG, text.encode())
            write_whole(building / ENVIRONMENT, _json_bytes(environment(threads)))
            write_whole(building / METRICS, b"")
            run = cls(path, _take_lock(building))
            try:
                _move_into_place(building, path, force)
            except BaseException:
                run.close()
                raise
            return run
        except OSError as error:
            raise RunError(f"{path}: cannot make a run folder: {_reason(error)}") from None
        finally:
            shutil.rmtree(building, ignore_errors=True)

    @classmethod
    def open(cls, path: str | Path, lock: bool = True) -> RunFolder:
        """An existing run, to be continued; with `lock=False` to be read only."""
        path = Path(path)
        if not (path / CONFIG).is_file():
            raise RunError(f"{path}: not a run folder (it has no {CONFIG}); start one with refimpl train")
        return cls(path, _take_lock(path) if lock else None)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock; the folder stays."""
        _release(self._lock)
        self._lock = None

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration the run was started with."""
        try:
            return tomllib.loads((self.path / CONFIG).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise DataError(f"{self.path / CONFIG}: not readable as TOML: {error}") from None

    @property
    def report(self) -> Path:
        """Folder for tables and figures."""
        return self.path / REPORT

    # metrics

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one round's record, which has a `round`, as one durable line of metrics.jsonl.

        A resumed run repeats the rounds after its checkpoint: what they left is forgotten first.
        """
        if "round" not in record:
            raise InputError(
                f"RunFolder.append_metrics: expected a record with a round, got {sorted(record)}"
            )
        if not self._appended:
            self.truncate_metrics(int(record["round"]) - 1)
            self._appended = True
        path = self.path / METRICS
        line = json.dumps(plain(record), allow_nan=False) + "\n"
        try:
            with open(path, "ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"{path}: cannot write: {_reason(error)}; the last checkpoint is intact") from None

    def metrics(self) -> list[dict[str, Any]]:
        """All rounds' records in order; values that were NaN are None."""
        path = self.path / METRICS
        return [record for record, _ in _metric_lines(path, _read(path))]

    def truncate_metrics(self, round_: int) -> None:
        """Forget the rounds after `round_`, and a last line cut short.

        Raises `DataError` unless the rounds 1..round_ are then there, each once and in order.
        """
        path = self.path / METRICS
        content = _read(path)
        kept = [(record, end) for record, end in _metric_lines(path, content) if record["round"] <= round_]
        rounds = [int(record["round"]) for record, _ in kept]
        if rounds != list(range(1, round_ + 1)):
            raise DataError(f"{path}: expected rounds 1..{round_}, each once, found {_ranges(rounds)}")
        write_whole(path, content[: kept[-1][1] if kept else 0])

    # checkpoints and models

    @property
    def has_checkpoint(self) -> bool:
        """Whether a checkpoint has been saved."""
        return (self.path / CHECKPOINT).is_file()

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
        if names != sorted(arrays):  # the directory of a zip archive has no checksum
            raise DataError(
                f"{path}: expected the arrays {', '.join(names)}, found {', '.join(sorted(arrays))}"
            )
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
            raise RunError(f"{self.path}: has no meta-model yet; finish it with refimpl train --resume")
        arrays = read_npz(path)
        if like is not None:
            check_like(path, arrays, like)
        for name in sorted(arrays):
            if arrays[name].dtype.kind == "f" and not np.isfinite(arrays[name]).all():
                raise DataError(f"{path}: expected finite numbers, found NaN or infinity in {name}")
        return arrays

    def save_report(self, name: str, content: Any) -> Path:
        """Write `content` as report/<name>.json; returns its path."""
        path = self.report / f"{name}.json"
        try:
            self.report.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(f"{path}: cannot write: {_reason(error)}") from None
        write_whole(path, _json_bytes(content))
        return path


def _read_header(path: Path, entry: np.ndarray | None) -> tuple[int, dict[str, Any], list[str]]:
    """Round, meta and array names from a checkpoint's entry META."""
    try:
        header = json.loads(str(entry))
        round_, meta, names = header["round"], header["meta"], header["arrays"]
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path}: expected a checkpoint with a round, found none") from None
    if type(round_) is not int or round_ < 0 or not isinstance(meta, dict) or not isinstance(names, list):
        raise DataError(f"{path}: expected a round of at least 0 with its meta data, found {round_!r}")
    return round_, meta, names


def _json_bytes(content: Any) -> bytes:
    return (json.dumps(plain(content), indent=2, allow_nan=False) + "\n").encode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read: {_reason(error)}") from None


def _ranges(rounds: Sequence[int]) -> str:
    return f"{len(rounds)} rounds from {rounds[0]} to {rounds[-1]}" if rounds else "none"


def check_free(path: Path, force: bool) -> None:
    """Raise `RunError` unless a run may be put at `path`; with `force` an existing run is in order."""
    if not path.exists():
        return
    if not path.is_dir():
        raise RunError(f"{path}: expected a folder, found a file; choose another --out")
    present = sorted(item.name for item in path.iterdir())
    if not present:
        return
    if CONFIG not in present:
        raise RunError(f"{path}: exists and is not a run folder; choose another --out")
    if not force:
        raise RunError(f"{path}: exists; continue it with --resume or replace it with --force")
    foreign = [name for name in present if name not in OWN_FILES]
    if foreign:
        raise RunError(f"{path}: --force would delete {', '.join(foreign)}; move that elsewhere first")


def _move_into_place(building: Path, path: Path, force: bool) -> None:
    """Rename the finished folder to `path`; with `force` a run there is moved aside, then deleted."""
    if not (force and (path / CONFIG).is_file()):
        if path.is_dir():
            path.rmdir()  # an empty folder goes, any other is an error
        os.rename(building, path)
        _sync_folder(path.parent)
        return
    old_lock = _take_lock(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        os.rename(path, aside)
        try:
            os.rename(building, path)
        except OSError:
            os.rename(aside, path)
            raise
        _sync_folder(path.parent)
        shutil.rmtree(aside)
    finally:
        _release(old_lock)


_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # file systems that cannot lock


def _take_lock(folder: Path) -> int | None:
    """Hold `folder` exclusively until the returned handle is released (None: no locks on this system)."""
    if not CAN_LOCK:
        return None
    handle = None
    try:
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), os.stat(folder / LOCK)):
            return handle
        _release(handle)  # the folder was replaced between opening and locking: whoever did so holds it
    except OSError as error:
        _release(handle)
        if error.errno in _NO_LOCKS:
            return None
        if not isinstance(error, (BlockingIOError, FileNotFoundError)):
            raise RunError(f"{folder}: cannot be locked: {_reason(error)}") from None
    raise RunError(f"{folder}: in use by another refimpl process; wait for it or choose another folder")


def _release(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


# --- the environment --------------------------------------------------------------------------------


def environment(threads: int | None = None) -> dict[str, Any]:
    """What a run's numbers and times may depend on: versions, CPU, threads, commit; nothing personal."""
    return {
        "refimpl": __version__,
        "commit": _commit(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: _version(name) for name in ("numpy", "numba", "llvmlite", "scipy", "click")},
        "platform": " ".join(
            part for part in (platform.system(), platform.machine(), *platform.libc_ver()) if part
        ),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> dict[str, Any]:
    """Model name, and name and features as the compiler sees them (`NUMBA_CPU_*` overrides included)."""
    from llvmlite import binding as llvm  # only here: importing the package must stay cheap

    features = os.environ.get("NUMBA_CPU_FEATURES") or llvm.get_host_cpu_features().flatten()
    return {
        "model": _cpu_model(),
        "name": os.environ.get("NUMBA_CPU_NAME") or llvm.get_host_cpu_name(),
        "features": sorted(item[1:] for item in features.split(",") if item.startswith("+")),
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if match:
            return match.group(1)
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Commit of the checkout this package runs from, `-dirty` if edited; None for an installed package."""
    here = Path(__file__)

    def git(*words: str) -> str:
        command = ["git", "-C", str(here.parent), *words]
        return subprocess.run(command, capture_output=True, check=True, timeout=10, text=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # not merely installed below someone's checkout
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None
