"""Recognise files by their first bytes: browsers and unpackers change names, so names say little."""

import codecs
from pathlib import PurePosixPath

GZIP, XZ, BZIP2, ZIP = b"\x1f\x8b", b"\xfd7zXZ\x00", b"BZh", b"PK\x03\x04"
_KINDS = (
    (GZIP, "gzip data"),
    (XZ, "xz data"),
    (BZIP2, "bzip2 data"),
    (ZIP, "a zip archive"),
    (b"\x28\xb5\x2f\xfd", "Zstandard data"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"PAR1", "a Parquet file"),
    (b"version https://git-lfs", "a Git LFS pointer instead of the file"),
    (b"/annex/objects", "a git-annex pointer instead of the file"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
)
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


def looks_like(data: bytes) -> str:
    """`; it looks like KIND` if `data` begins like a well-known kind of file, else empty."""
    lead = data[:64].lstrip().lower()
    found = (kind for start, kind in _KINDS if data.startswith(start) or lead.startswith(start))
    return next((f"; it looks like {kind}" for kind in found), "")


def decoded(data: bytes, plain: str = "utf-8") -> str:
    """Text with plain line ends, in UTF-8 or UTF-16 where a byte order mark says so, else in `plain`.

    Editors on Windows write such marks, and other line ends. Raises `UnicodeDecodeError` for other bytes.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            data, plain = data[len(mark) :], encoding
            break
    return data.decode(plain).replace("\r\n", "\n").replace("\r", "\n")


def is_leftover(path: str) -> bool:
    """Whether a path is hidden or one that macOS adds: `.DS_Store`, `._name`, `__MACOSX/`."""
    parts = PurePosixPath(path).parts
    return any(part == "__MACOSX" or (part.startswith(".") and part != "..") for part in parts)
