"""Files as they stand on disk: TOML, JSON and arrays, each appearing whole or not at all.

Contents depend on the values only, so that equal results are equal bytes; what is read is checked, and
nothing that is read can run code.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from refimpl.errors import NPZ_DAMAGE, ConfigError, DataError, InputError, RunError

Arrays = dict[str, np.ndarray]
LIMIT = 4 * 2**30  # bytes of the arrays read from one file

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
        f"TOML: {key} must be str, int, float, bool or list, got {type(value).__name__}; convert it first"
    )


def _toml_string(text: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ConfigError(f"TOML: {text!r} is not valid Unicode; rename it")
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
            sync_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{path}: cannot write: {reason(error)}; what was there before is intact") from None


def read_bytes(path: Path) -> bytes:
    """The content of a file; `DataError` naming it where it cannot be read."""
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
    """The system's words for an error, to stand behind a colon."""
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


class Header(NamedTuple):
    """What an .npz file says of one of its arrays, before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Bytes of the array's contents."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_npz(path: Path, names: Collection[str] | None = None, limit: int = LIMIT) -> Arrays:
    """The arrays of an .npz file, all or those of `names` that are in it.

    `DataError` naming the file where it is missing, corrupt or pickled. Nothing is allocated that the
    file does not hold: an array's header must agree with the size of its entry, all of them with `limit`.
    """
    with _opened(path) as archive:
        headers = _headers(path, archive.zip)
        wanted = [name for name in headers if names is None or name in names]
        size = sum(headers[name].size for name in wanted)
        if size > limit:
            raise DataError(f"{path}: its arrays take {size} bytes, more than the {limit} admitted")
        return {name: archive[name] for name in wanted}


def npz_headers(path: Path) -> dict[str, Header]:
    """Shapes and dtypes of the arrays in an .npz file, without reading them; raises as `read_npz`."""
    with _opened(path) as archive:
        return _headers(path, archive.zip)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The archive, its damage turned into `DataError`."""
    try:
        with open(path, "rb") as file:
            if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
                raise DataError(f"{path}: expected an .npz archive of arrays, found a single array")
            file.seek(0)
            yield np.load(file, allow_pickle=False)
    except DataError:
        raise  # it is a ValueError, too
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read: {reason(error)}") from None
    except NPZ_DAMAGE as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path}: expected an .npz archive of plain arrays, found damage ({detail})"
        ) from None


def _headers(path: Path, archive: zipfile.ZipFile) -> dict[str, Header]:
    """Of every entry; `DataError` where one is no array, or promises other than it holds."""
    headers: dict[str, Header] = {}
    for entry in archive.infolist():
        name = entry.filename.removesuffix(".npy")
        if name == entry.filename or name in headers:
            raise DataError(f"{path}: expected arrays of different names, found an entry {entry.filename!r}")
        with archive.open(entry) as file:
            headers[name] = _header(file)
            held = entry.file_size - file.tell()
        if not headers[name].dtype.hasobject and headers[name].size != held:
            raise DataError(
                f"{path}: {name} should take {headers[name].size} bytes, as shape {headers[name].shape} "
                f"of {headers[name].dtype}, but {held} are there"
            )
    return headers


def _header(file: IO[bytes]) -> Header:
    """Of an .npy stream, which is left where the contents begin."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"unknown version {version} of an array")
    first = version == (1, 0)
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return Header(shape, dtype)


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


# --- JSON -------------------------------------------------------------------------------------------


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


def json_text(content: Any) -> str:
    """`content`, made plain, as indented JSON that ends in a line break."""
    return json.dumps(plain(content), indent=2, allow_nan=False) + "\n"
