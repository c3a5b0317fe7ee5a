"""A small PNG decoder: grey images of 1 or 8 bits, not interlaced; all that Omniglot needs."""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from refimpl.errors import DataError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NONE, _SUB, _UP, _AVERAGE, _PAETH = range(5)


def decode_png(data: bytes, who: str, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Grey values (H, W), 0 to 255, of a PNG file that must have exactly `shape` = (H, W).

    1-bit images give 0 and 255. Raises `DataError` starting with `who` for anything else: wrong
    signature, size or kind, a checksum that does not match, pixel data missing or left over.

    Source: PNG specification (W3C), sections 5, 9 and 11; verified against Omniglot's files.
    """
    if not data.startswith(_SIGNATURE):
        raise DataError(f"{who}: not a PNG file")
    pixels, bits = [], 0
    for kind, content in _chunks(data, who):
        if kind == b"IHDR":
            bits = _bits_per_pixel(content, who, shape)
        elif kind == b"IDAT":
            pixels.append(content)
    if bits == 0:
        raise DataError(f"{who}: damaged PNG file: no header")
    height, width = shape
    stride = (width * bits + 7) // 8
    lines = _inflate(b"".join(pixels), who, height * (stride + 1)).reshape(height, stride + 1)
    rows = _unfilter(lines[:, 0], lines[:, 1:], who)
    return np.unpackbits(rows, axis=1)[:, :width] * np.uint8(255) if bits == 1 else rows


def _chunks(data: bytes, who: str) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content) of every chunk up to IEND, checksums verified."""
    position = len(_SIGNATURE)
    while position + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, position)
        kind, end = data[position + 4 : position + 8], position + 8 + size
        if end + 4 > len(data):
            break
        if zlib.crc32(data[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise DataError(f"{who}: damaged PNG file: checksum of chunk {kind!a} does not match")
        if kind == b"IEND":
            return
        yield kind, data[position + 8 : end]
        position = end + 4
    raise DataError(f"{who}: truncated PNG file")


def _bits_per_pixel(header: bytes, who: str, shape: tuple[int, int]) -> int:
    if len(header) != 13:
        raise DataError(f"{who}: damaged PNG file: header of {len(header)} bytes")
    width, height, bits, colour, method, filters, interlace = struct.unpack(">IIBBBBB", header)
    if (height, width) != shape:
        raise DataError(f"{who}: expected an image of {shape[0]}x{shape[1]} pixels, got {height}x{width}")
    if colour != 0 or bits not in (1, 8) or method or filters or interlace:
        raise DataError(
            f"{who}: expected a grey PNG of 1 or 8 bits, not interlaced; got colour type {colour}, "
            f"{bits} bits, interlace {interlace}"
        )
    return int(bits)


def _inflate(data: bytes, who: str, size: int) -> NDArray[np.uint8]:
    decoder = zlib.decompressobj()
    try:
        lines = decoder.decompress(data, size + 1)
    except zlib.error as error:
        raise DataError(f"{who}: damaged PNG file: {error}") from error
    if len(lines) != size or not decoder.eof:
        raise DataError(f"{who}: damaged PNG file: pixel data is not the {size} bytes of its size")
    return np.frombuffer(lines, dtype=np.uint8)


def _unfilter(kinds: NDArray[np.uint8], lines: NDArray[np.uint8], who: str) -> NDArray[np.uint8]:
    """Undo the prediction of each row. Pixels have at most one byte: the left neighbour is one byte away."""
    if not kinds.any():
        return lines
    rows = lines.copy()
    above = np.zeros_like(rows[0])
    for kind, row in zip(kinds, rows, strict=True):
        if kind == _SUB:
            row[:] = np.cumsum(row, dtype=np.uint8)
        elif kind == _UP:
            row += above
        elif kind in (_AVERAGE, _PAETH):
            row[:] = _predicted(int(kind), row.tolist(), above.tolist())
        elif kind != _NONE:
            raise DataError(f"{who}: damaged PNG file: unknown row filter {kind}")
        above = row
    return rows


def _predicted(kind: int, row: list[int], above: list[int]) -> list[int]:
    left = corner = 0
    out = []
    for value, up in zip(row, above, strict=True):
        guess = (left + up) // 2 if kind == _AVERAGE else _paeth(left, up, corner)
        left, corner = (value + guess) & 0xFF, up
        out.append(left)
    return out


def _paeth(left: int, up: int, corner: int) -> int:
    """The neighbour nearest to left + up - corner; of equally near ones the first of left, up, corner."""
    to_left, to_up, to_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
    if to_left <= to_up and to_left <= to_corner:
        return left
    return up if to_up <= to_corner else corner
