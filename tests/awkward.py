"""Arrays as users may give them, and what must become of them where compiled code is behind the door.

Those of `AWKWARD` lie in memory in another way and give the bits of the tidy ones. Those of `REFUSED`, which
would change numbers or do not fit, are refused in one line.
"""

from __future__ import annotations

import numpy as np
import pytest

from refimpl.errors import InputError


def strided(array):
    wide = np.zeros((*array.shape, 2), array.dtype)
    wide[..., 0] = array
    return wide[..., 0]


def read_only(array):
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def misaligned(array):
    raw = np.zeros(array.nbytes + 1, np.uint8)
    raw[1:] = array.reshape(-1).view(np.uint8)
    return raw[1:].view(array.dtype).reshape(array.shape)


AWKWARD = {
    "columns first": np.asfortranarray,
    "axes turned": lambda array: array.T.copy().T,
    "backwards": lambda array: array[::-1].copy()[::-1],
    "strided": strided,
    "read-only": read_only,
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "misaligned": misaligned,
}
REFUSED = {
    "half precision": lambda array: array.astype(np.float16),
    "whole numbers": lambda array: array.astype(np.int64),
    "complex": lambda array: array.astype(complex),
    "an axis less": lambda array: array[..., 0].copy(),
    "an axis more": lambda array: array[..., None].copy(),
    "no axes": lambda array: array.reshape(-1)[0],
    "text": lambda array: array.astype(str),
}


def refuses(call):
    """Assert that the call raises InputError, in one line."""
    with pytest.raises(InputError) as info:
        call()
    assert "\n" not in str(info.value)
