"""Bytes of a data file, plain, gzip or xz by their content, never more than a stated limit.

A file decides nothing about memory: its size is checked before reading and its expansion while
decompressing, so that a small hostile file cannot fill the machine.
"""

from __future__ import annotations

import lzma
import zlib
from pathlib import Path

from refimpl.errors import DataError

GZIP_MAGIC = b"\x1f\x8b"
XZ_MAGIC = b"\xfd7zXZ\x00"
_XZ_MEMORY = 256 * 2**20  # an xz header may ask for a 4 GiB dictionary; no data set needs more than this


def read_file(path: Path, limit: int) -> bytes:
    """The raw bytes of a regular file of at most `limit` bytes; `DataError` names the file otherwise."""
    try:
        if not path.is_file():
            raise DataError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
        size = path.stat().st_size
        if size > limit:
            raise DataError(f"{path}: {size} bytes, more than the {limit} expected at most")
        with path.open("rb") as file:
            return file.read(size)  # a larger number would be allocated at once
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def decompress(raw: bytes, who: str, limit: int) -> bytes:
    """`raw` unpacked if it is one gzip or xz stream, else `raw` itself; at most `limit` bytes.

    Raises `DataError` starting with `who` if the stream is damaged, truncated, followed by other bytes, or
    unpacks to more than `limit` bytes.
    """
    if raw.startswith(GZIP_MAGIC):
        return _one_stream(zlib.decompressobj(wbits=31), "gzip", raw, who, limit)
    if raw.startswith(XZ_MAGIC):
        decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
        return _one_stream(decoder, "xz", raw, who, limit)
    if len(raw) > limit:
        raise DataError(f"{who}: {len(raw)} bytes, more than the {limit} expected at most")
    return raw


def read_unpacked(path: Path, limit: int) -> bytes:
    """Content of a plain, gzip or xz file, at most `limit` bytes before and after unpacking."""
    return decompress(read_file(path, limit), str(path), limit)


def _one_stream(
    decoder: zlib._Decompress | lzma.LZMADecompressor, kind: str, raw: bytes, who: str, limit: int
) -> bytes:
    try:
        data = decoder.decompress(raw, limit + 1)
    except (zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{who}: damaged {kind} data: {error}; fetch the file again") from error
    if len(data) > limit:
        raise DataError(f"{who}: {kind} data unpacks to more than the {limit} bytes expected at most")
    if not decoder.eof:
        raise DataError(f"{who}: truncated {kind} data; fetch the file again")
    if decoder.unused_data:
        raise DataError(f"{who}: {len(decoder.unused_data)} unexpected bytes after the {kind} data")
    return data
