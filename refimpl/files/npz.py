"""Read array archives (.npz) safely: a header is compared with the size of its file before memory is taken.

`numpy.load` allocates whatever shape a header claims, evaluates the header as Python, and can unpickle. Here
a header is matched against its grammar, and only arrays of numbers and text are admitted.

The header reader of `numpy.lib.format` alone would not do either: it reads a header of any length before it
compares the length with its limit (a file of 0.6 MB took 1.2 GiB), lets `RecursionError` and `TokenError`
out, accepts negative sizes, and prints warnings.
"""

import math
import re
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refimpl.errors import cause
from refimpl.files.sniff import is_leftover, looks_like

_MAGIC = b"\x93NUMPY"
_HEADER_LIMIT = 4096  # bytes; those of plain arrays have about 100
_COUNT_LIMIT = 100_000  # members of one archive
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the usual ones; an LZMA header can claim 4 GiB
_DTYPE = re.compile(r"([<>|=])([biufcSU])(\d{1,9})")
_ENTRY = re.compile(
    r"\s*['\"](?P<key>descr|fortran_order|shape)['\"]\s*:\s*"
    r"(?:['\"](?P<descr>[^'\"]*)['\"]|(?P<order>True|False)|\((?P<shape>[0-9L,\s]*)\))\s*(?:,|$)"
)
ZIP_DAMAGE = (  # what `zipfile` raises for a damaged or unusual archive
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,  # a compression method, or an encryption, that `zipfile` does not know
    RuntimeError,  # an encrypted member
    KeyError,
    ValueError,
    OverflowError,
)


class DamageError(ValueError):
    """The bytes are not an archive of plain arrays; the text says why, without the file's name."""


class Header(NamedTuple):
    """The header of an array: what is known about it before its contents are read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool = False  # stored column by column

    @property
    def size(self) -> int:
        """Bytes of the array's contents."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_members(
    path: Path, limit: int, names: Collection[str] | None = None
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield (name, array) for every .npy member of the archive, or only for those in `names`.

    All members together may have at most `limit` bytes. Raises `OSError` if the system cannot read the file
    and `DamageError` for everything that is wrong with its bytes.

    Source: the format description in NumPy's documentation (numpy.lib.format), versions 1 to 3.
    """
    with _opened(path) as archive:
        wanted = [(n, entry) for n, entry in _members(archive) if names is None or n in names]
        size = sum(entry.file_size for _, entry in wanted)
        if size > limit:
            raise DamageError(f"{len(wanted)} members of {size} bytes, more than the {limit} admitted")
        for name, entry in wanted:
            yield name, _array(archive, entry)


def member_names(path: Path) -> list[str]:
    """The names of all .npy members, without opening them; raises as `read_members`."""
    with _opened(path) as archive:
        return [name for name, _ in _members(archive)]


def read_headers(path: Path) -> dict[str, Header]:
    """The header of every .npy member, without reading the arrays; raises as `read_members`."""
    with _opened(path) as archive:
        found = {}
        for name, entry in _members(archive):
            with archive.open(entry) as file:
                found[name] = _header(file, entry)
        return found


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The open archive; any fault found in it within the block is raised as `DamageError`."""
    hint = ""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
            if head.startswith(_MAGIC):
                raise DamageError("a single array, not an archive")
            hint = "" if head.startswith(b"PK") else looks_like(head)
            with zipfile.ZipFile(file) as archive:
                yield archive
    except DamageError:
        raise
    except ZIP_DAMAGE as error:
        raise DamageError(ascii(cause(error))[1:-1][:80] + hint) from None


def _members(archive: zipfile.ZipFile) -> list[tuple[str, zipfile.ZipInfo]]:
    """Name and entry of every array."""
    entries = [entry for entry in archive.infolist() if not is_leftover(entry.filename)]
    if len(entries) > _COUNT_LIMIT:
        raise DamageError(f"{len(entries)} members, more than the {_COUNT_LIMIT} admitted")
    found = [(e.filename.removesuffix(".npy"), e) for e in entries if e.filename.endswith(".npy")]
    if len(dict(found)) < len(found):
        raise DamageError("two members of one name")
    for _, entry in found:
        if entry.compress_type not in COMPRESSIONS:
            raise DamageError(f"compression of type {entry.compress_type}; NumPy stores or deflates")
    return found


def _header(file: IO[bytes], entry: zipfile.ZipInfo) -> Header:
    """Read the header of the open member; the file is then positioned at its contents."""
    lead = file.read(8)
    width = 2 if lead[6:7] == b"\1" else 4
    if lead[:6] != _MAGIC or lead[6:7] not in (b"\1", b"\2", b"\3"):
        raise DamageError("a member that is not an array")
    length = int.from_bytes(file.read(width), "little")
    if not 2 <= length <= _HEADER_LIMIT:
        raise DamageError(f"an array with a header of {length} bytes")
    header = _parse(file.read(length).decode("latin-1"))
    found = entry.file_size - 8 - width - length
    if header.size != found:
        raise DamageError(f"an array that claims {_short(header.size)} bytes but has {found}")
    return header


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(entry) as file:
        header = _header(file, entry)
        content = bytearray(file.read(header.size + 1))  # one more byte: zipfile compares the checksum
    if len(content) != header.size:
        raise DamageError(f"an array that claims {header.size} bytes but has {len(content)}")
    return np.ndarray(header.shape, header.dtype, content, order="F" if header.fortran else "C")


def _parse(written: str) -> Header:
    """The header that a member's text describes."""
    text = written.strip()
    inner = text[1:-1].rstrip()
    entries = list(_ENTRY.finditer(inner))
    if text[:1] + text[-1:] != "{}" or "".join(entry[0] for entry in entries) != inner:
        raise DamageError("an array with a damaged header, or of objects or records")
    found = {entry["key"]: entry["descr"] or entry["order"] or entry["shape"] or "" for entry in entries}
    if set(found) != {"descr", "fortran_order", "shape"}:
        raise DamageError("an array with an incomplete header")
    return Header(_shape(found["shape"]), _dtype(found["descr"]), found["fortran_order"] == "True")


def _dtype(text: str) -> np.dtype[Any]:
    match = _DTYPE.fullmatch(text)
    if match is None or int(match[3]) == 0:
        raise DamageError(f"an array of type {ascii(text)[:40]}; objects and records are not read")
    try:
        return np.dtype(text)
    except TypeError:
        raise DamageError(f"an array of type {ascii(text)[:40]}, which does not exist") from None


def _shape(text: str) -> tuple[int, ...]:
    words = [word.strip().removesuffix("L") for word in text.split(",")]
    if words[-1] == "":
        words.pop()
    if not all(re.fullmatch(r"\d{1,18}", word) for word in words) or len(words) > 32:
        raise DamageError("an array with a damaged shape")
    return tuple(int(word) for word in words)


def _short(number: int) -> str:
    return str(number) if number < 10**20 else "more than 10^20"
