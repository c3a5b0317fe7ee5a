"""Files in the format of MNIST, written for tests."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray


def format_idx(array: NDArray[np.uint8]) -> bytes:
    """IDX bytes of an array of unsigned bytes, the inverse of `parse_idx`."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 0x08, array.ndim, *array.shape)
    return header + np.ascontiguousarray(array, dtype=np.uint8).tobytes()
