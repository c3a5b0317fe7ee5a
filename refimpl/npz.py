"""Array archives (.npz) as data: what a header claims is held against what is there, before memory is taken.

`numpy.load` allocates whatever shape a header claims, evaluates the header as Python, and can unpickle. Here
a header is matched against its grammar, and only arrays of numbers and text are admitted.
"""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refimpl.errors import brief

_MAGIC = b"\x93NUMPY"
_HEADER_LIMIT = 4096  # bytes; those of plain arrays have about 100
_COUNT_LIMIT = 100_000  # members of one archive
_DTYPE = re.compile(r"([<>|=])([biufcSU])(\d{1,9})")
_ENTRY = re.compile(
    r"\s*['\"](?P<key>descr|fortran_order|shape)['\"]\s*:\s*"
    r"(?:['\"](?P<descr>[^'\"]*)['\"]|(?P<order>True|False)|\((?P<shape>[0-9L,\s]*)\))\s*(?:,|$)"
)
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,  # an unknown compression method
    RuntimeError,  # an encrypted member
    KeyError,
    ValueError,
    OverflowError,
)


class DamageError(ValueError):
    """The bytes are not an archive of plain arrays; the text says why, without the file's name."""


def read_members(path: Path, limit: int) -> Iterator[tuple[str, NDArray[Any]]]:
    """(name, array) of every .npy member of the archive, in its order; other members do not come.

    The members may hold at most `limit` bytes together. Raises `OSError` where the system cannot read the
    file and `DamageError` for everything that is wrong with its bytes.

    Source: the format description in NumPy's documentation (numpy.lib.format), versions 1 to 3.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            size = sum(entry.file_size for entry in entries)
            if size > limit or len(entries) > _COUNT_LIMIT:
                raise DamageError(f"{len(entries)} members of {size} bytes, more than the {limit} admitted")
            for entry in entries:
                if entry.filename.endswith(".npy"):
                    name = entry.filename.removesuffix(".npy")
                    yield name, _array(archive, entry)
    except DamageError:
        raise
    except _DAMAGE as error:
        raise DamageError(ascii(brief(error))[1:81]) from None


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(entry) as file:
        lead = file.read(12)
        width = 2 if lead[6:7] == b"\1" else 4
        if lead[:6] != _MAGIC or lead[6:7] not in (b"\1", b"\2", b"\3") or len(lead) < 12:
            raise DamageError("a member that is no array")
        start = 8 + width
        length = int.from_bytes(lead[8:start], "little")
        if not 2 <= length <= _HEADER_LIMIT:
            raise DamageError(f"an array with a header of {length} bytes")
        header = (lead[start:] + file.read(start + length - len(lead))).decode("latin-1")
        dtype, fortran, shape = _parse(header)
        claimed, found = math.prod(shape) * dtype.itemsize, entry.file_size - start - length
        if claimed != found:
            raise DamageError(f"an array that claims {_short(claimed)} bytes, {found} are there")
        content = bytearray(file.read(found + 1))  # and the checksum is compared
    if len(content) != found:
        raise DamageError(f"an array that claims {claimed} bytes, {len(content)} are there")
    return np.ndarray(shape, dtype, content, order="F" if fortran else "C")


def _parse(header: str) -> tuple[np.dtype[Any], bool, tuple[int, ...]]:
    """dtype, Fortran order and shape from the text of a header."""
    text, found = header.strip(), dict[str, str]()
    if text[:1] != "{" or text[-1:] != "}":
        raise DamageError("an array with a damaged header")
    text, position = text[1:-1].rstrip(), 0
    while position < len(text):
        match = _ENTRY.match(text, position)
        if match is None:
            raise DamageError("an array with a damaged header, or of objects or records")
        position, value = (
            match.end(),
            next(v for v in match.group("descr", "order", "shape") if v is not None),
        )
        found[match["key"]] = value
    if set(found) != {"descr", "fortran_order", "shape"}:
        raise DamageError("an array with an incomplete header")
    return _dtype(found["descr"]), found["fortran_order"] == "True", _shape(found["shape"])


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
