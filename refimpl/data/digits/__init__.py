"""The embedded handwritten digits: 1797 images of 8x8 pixels from 0 to 16; source and licence in NOTE.txt"""

from __future__ import annotations

from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from refimpl.data.idx import parse_idx
from refimpl.data.unpack import decompress

_LIMIT = 2**20


def read_digits() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (1797, 8, 8) with values 0..16 and labels (1797,) from 0 to 9, in the published order.

    Source: Alpaydin & Kaynak 1998, UCI Machine Learning Repository; see NOTE.txt.
    """
    return _read("images.idx.gz", 3), _read("labels.idx.gz", 1)


def _read(name: str, ndim: int) -> NDArray[np.uint8]:
    raw = (files(__package__) / name).read_bytes()
    return parse_idx(decompress(raw, name, _LIMIT), name, ndim)
