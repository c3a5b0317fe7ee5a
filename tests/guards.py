"""Arrays that lie against pages nobody may touch: who reads or writes beside them is ended by the system."""

from __future__ import annotations

import ctypes
import mmap
from functools import lru_cache

import numpy as np

PAGE = mmap.PAGESIZE


@lru_cache(maxsize=1)
def _mprotect():
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return protect


def guarded(array, at_end):
    """A C-contiguous copy of `array` in memory of its own that begins or ends exactly at a forbidden page."""
    if array.size == 0:  # nothing, beside the forbidden page
        one = guarded(np.zeros(1, array.dtype), at_end)
        return (one[1:] if at_end else one[:0]).reshape(array.shape)
    size = -(-array.nbytes // PAGE) * PAGE
    memory = mmap.mmap(-1, size + 2 * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (address, address + PAGE + size):
        if _mprotect()(page, PAGE, 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    start = PAGE + (size - array.nbytes if at_end else 0)
    copy = np.frombuffer(memory, dtype=array.dtype, count=array.size, offset=start).reshape(array.shape)
    copy[...] = array
    return copy
