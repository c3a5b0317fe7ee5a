"""Files in the format of MNIST, written for tests."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refimpl.data.idx import parse_idx
from refimpl.data.unpack import LIMIT, read_unpacked


def format_idx(array: NDArray[np.uint8]) -> bytes:
    """IDX bytes of an array of unsigned bytes, the inverse of `parse_idx`."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 0x08, array.ndim, *array.shape)
    return header + np.ascontiguousarray(array, dtype=np.uint8).tobytes()


def read_idx(path: Path, ndim: int, limit: int = LIMIT) -> NDArray[np.uint8]:
    """The array of an IDX file, plain or packed."""
    return parse_idx(read_unpacked(path, limit), str(path), ndim)
