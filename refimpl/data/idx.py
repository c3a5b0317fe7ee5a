"""The IDX format of the MNIST files: big-endian header, then unsigned bytes."""

import math
import struct

import numpy as np
from numpy.typing import NDArray

from refimpl.errors import DataError
from refimpl.files.sniff import looks_like

_UNSIGNED_BYTE = 0x08


def parse_idx(data: bytes, who: str, ndim: int) -> NDArray[np.uint8]:
    """Array of unsigned bytes with `ndim` axes from the content of an IDX file.

    Raises `DataError` starting with `who` for anything but exactly what the header announces. Sizes are
    compared with the bytes at hand before any memory is taken.

    Source: the format description published with MNIST (LeCun, Cortes, Burges); verified on its files.
    """
    if len(data) < 4:
        raise DataError(f"{who}: truncated IDX file: {len(data)} bytes, too short for a header")
    zero, kind, axes = struct.unpack(">HBB", data[:4])
    if zero != 0:
        raise DataError(
            f"{who}: not an IDX file: expected magic 0x0000{_UNSIGNED_BYTE:02x}.., got 0x{data[:4].hex()}"
            f"{looks_like(data)}"
        )
    if kind != _UNSIGNED_BYTE:
        raise DataError(f"{who}: expected IDX type 0x08 (unsigned byte), got 0x{kind:02x}")
    if axes != ndim:
        raise DataError(
            f"{who}: expected an IDX file with {ndim} axes, got {axes}; images and labels swapped?"
        )
    start = 4 + 4 * axes
    if len(data) < start:
        raise DataError(f"{who}: truncated IDX file: {len(data)} bytes, too short for {axes} sizes")
    shape = struct.unpack(f">{axes}I", data[4:start])
    expected, found = math.prod(shape), len(data) - start
    if found != expected:
        verdict = "truncated IDX file" if found < expected else "trailing bytes"
        raise DataError(
            f"{who}: {verdict}: the header announces shape {shape} = {expected} bytes, {found} follow it"
        )
    if math.prod(filter(None, shape)) > np.iinfo(np.intp).max:  # NumPy refuses such sizes beside a zero, too
        raise DataError(f"{who}: damaged IDX file: shape {shape} is too large for any array")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape).copy()
