"""Read and write TOML, JSON and array files; each file on disk is either complete or not there.

Contents depend on the values only, so that equal results give equal bytes. Everything that is read is
checked, and nothing that is read can run code.
"""

import contextlib
import errno
import io
import json
import math
import os
import re
import stat
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.errors import ConfigError, DataError, InputError, RunError
from refimpl.files.lock import locked_when_free
from refimpl.files.npz import DamageError, Header, read_headers, read_members

Arrays = dict[str, np.ndarray]
NPZ_LIMIT = 4 * 2**30  # bytes of the arrays of one file, unpacked
LARGEST_NUMBER = 1e100  # in a table of facts; sums of larger ones overflow

# --- TOML -------------------------------------------------------------------------------------------

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def toml_text(table: Mapping[str, Any]) -> str:
    """A flat table of str, int, float, bool and lists of them as TOML that `tomllib` reads back equal.

    The package `tomli-w` is not used: it puts every item of a list on a line of its own, and writes tuples,
    NumPy scalars and text that is not valid Unicode without complaint, so most of this would remain.
    Raises `ConfigError` for any other value (None, tuples, nested tables, NumPy scalars).
    """
    keys = (key if _BARE_KEY.fullmatch(key) else _toml_string(key) for key in table)
    pairs = zip(keys, table.items(), strict=True)
    return "".join(f"{written} = {_toml_value(key, value)}\n" for written, (key, value) in pairs)


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
        f"TOML: {key} must be str, int, float, bool or list, got {type(value).__name__}; convert it first"
    )


def _toml_string(text: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ConfigError(f"TOML: {text!r} is not valid Unicode; rename it")
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON lets this one stand


# --- files that are complete or absent --------------------------------------------------------------


def check_new(path: Path, force: bool) -> None:
    """Raise `InputError` if `path` exists and `--force` was not given."""
    if os.path.exists(path) and not force:
        raise InputError(f"{path}: exists already; --force replaces it")


def make_folder(path: Path) -> None:
    """Make a folder and those around it, where they are missing; `RunError` if the system refuses."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path}: cannot make a folder: {reason(error)}") from None


def write_whole(path: Path, content: bytes) -> None:
    """Replace `path` by `content`: readers see the old file or the new one, even after a power cut.

    Processes that write the same file take turns, so that none damages what another is writing. A link stays
    a link: the file it names is replaced, and the new file gets the mode of the old one. A device or a pipe
    is written to. Raises `RunError` if the system refuses (disk full, no permission); the old file is then
    intact.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            _write_through(path, content)
        else:
            _replace(Path(os.path.realpath(path)), content)
    except OSError as error:
        raise RunError(f"{path}: cannot write: {reason(error)}; what was there before is intact") from None


def append_lines(path: Path, lines: bytes, intact: str) -> None:
    """Add durable lines to a file. Raises `RunError`, which says what is then `intact`, if that fails."""
    try:
        with open(path, "ab") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(f"{path}: cannot write: {reason(error)}; {intact} is intact") from None


def _replace(path: Path, content: bytes) -> None:
    """Write a file beside `path` and rename it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with locked_when_free(temporary):
        old = path.stat() if path.exists() else None
        try:
            if old:
                resemble(temporary, old, 0o600)  # nobody else may read what is written next
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        if old:
            resemble(path, old)
        sync_folder(path.parent)


def _write_through(path: Path, content: bytes) -> None:
    """Write to a device, or to a pipe, which must have a reader."""
    try:
        handle = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for a reader
    except OSError as error:
        if error.errno == errno.ENXIO and path.is_fifo():
            raise OSError(errno.ENXIO, "nobody reads this pipe; start its reader first") from None
        raise
    if hasattr(os, "O_NONBLOCK"):
        os.set_blocking(handle, True)
    with open(handle, "wb") as target:
        target.write(content)


def resemble(path: Path, old: os.stat_result, more: int = 0) -> None:
    """Give `path` the owner of what it replaces, and its mode plus the bits `more`, if the system permits."""
    if os.name == "posix":
        with contextlib.suppress(OSError):
            os.chown(path, old.st_uid, old.st_gid)
    with contextlib.suppress(OSError):
        os.chmod(path, stat.S_IMODE(old.st_mode) | more)


def read_bytes(path: Path) -> bytes:
    """The content of a file; raises `DataError` naming it if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read: {reason(error)}") from None


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable (POSIX; elsewhere folders cannot be opened)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def reason(error: OSError) -> str:
    """What the system says about an error, written so that it can follow a colon."""
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


def read_npz(path: Path, names: Collection[str] | None = None, limit: int = NPZ_LIMIT) -> Arrays:
    """The arrays of an .npz file: all of them, or those of `names` that it has.

    `DataError` naming the file where it is missing, corrupt or pickled, or holds more than `limit` bytes;
    nothing is allocated that the file does not hold.
    """
    with readable(path):
        return dict(read_members(path, limit, names))


def npz_headers(path: Path) -> dict[str, Header]:
    """Shapes and dtypes of the arrays in an .npz file, without reading them; raises as `read_npz`."""
    with readable(path):
        return read_headers(path)


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn the errors of reading an archive within the block into `DataError`."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read: {reason(error)}") from None
    except DamageError as error:
        raise DataError(f"{path}: expected an .npz archive of plain arrays, found damage ({error})") from None


def check_like(path: Path, found: Mapping[str, np.ndarray], like: Mapping[str, np.ndarray]) -> None:
    """Raise `DataError` unless `found` has exactly the names, shapes and dtypes of `like`."""
    missing, extra = sorted(set(like) - set(found)), sorted(set(found) - set(like))
    if missing or extra:
        raise DataError(
            f"{path}: expected {len(like)} arrays; missing: {', '.join(missing)[:200] or 'none'}, "
            f"unknown: {', '.join(extra)[:200] or 'none'}; was it made with another configuration?"
        )
    for name in sorted(like):
        wanted, got = like[name], found[name]
        if (wanted.shape, wanted.dtype) != (got.shape, got.dtype):
            raise DataError(
                f"{path}: expected {name} as {wanted.dtype} of shape {wanted.shape}, "
                f"found {got.dtype} of shape {got.shape}; was it made with another configuration?"
            )


# --- JSON -------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """`value` in JSON's types: NumPy values and tuples become numbers and lists, NaN and infinity None."""
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


def json_value(text: str | bytes) -> Any:
    """The value of JSON text; raises `ValueError` for anything that `json_text` would not write."""
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"not a finite number: {text[:20]}")
    return value


def json_text(content: Any) -> str:
    """`content`, converted by `plain`, as indented JSON that ends in a line break."""
    return json.dumps(plain(content), indent=2, allow_nan=False) + "\n"


def read_entries(path: Path, what: str, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """The table in a file that `json_text` wrote; `DataError` unless it has entries of these kinds.

    Entries of the kind float are numbers that float arithmetic can hold.
    """
    found = read_json(path)

    def fits(value: object, kind: type | tuple[type, ...]) -> bool:
        if kind is float:
            return isinstance(value, (int, float)) and abs(value) <= LARGEST_NUMBER
        return isinstance(value, kind)

    if not (
        isinstance(found, dict)
        and all(name in found and fits(found[name], kind) for name, kind in kinds.items())
    ):
        raise DataError(
            f"{path}: expected {what} with {', '.join(kinds)}, found something else; make it again"
        )
    return found


def read_json(path: Path) -> Any:
    """The value of a file that `json_text` wrote; raises `DataError` naming the file for anything else."""
    try:
        return json_value(read_bytes(path))
    except ValueError:
        raise DataError(f"{path}: expected JSON, found damage; remove it to have it made again") from None
