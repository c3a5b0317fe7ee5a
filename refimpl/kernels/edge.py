"""What stands between Python callers and compiled kernels: checks, scratch memory, the choice of kernels.

Compiled code writes where it is told to; a wrong shape would silently corrupt memory. So everything is
checked here, once per call. Read-only or strided arrays would be new types to Numba, each compiled anew
for seconds; they are copied instead.
"""

from __future__ import annotations

import math
import os
import threading
import weakref

import numpy as np

from refimpl.errors import ConfigError, InputError, one_of
from refimpl.kernels.jit import settings

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
INTS = np.dtype(np.int32)
ALL_ON = np.ones((0, 0), dtype=np.bool_)
CACHE_LINE = 64
LARGE_BYTES = 1 << 20
POOL_BYTES = 256 << 20  # of working memory that a thread keeps between calls
LARGEST_PLACE = np.iinfo(INTS).max  # kernels list places in arrays in tables of such numbers


def chosen_kernels() -> str:
    """`tile` (fast) or `plain` (readable), from the environment variable REFIMPL_KERNELS.

    With Numba's compiler switched off only the plain kernels can run. Raises ConfigError for other names.
    """
    name = os.environ.get("REFIMPL_KERNELS", "tile")
    try:
        one_of("REFIMPL_KERNELS", "kernels", name, ("tile", "plain"))
    except InputError as error:
        raise ConfigError(str(error)) from None
    return "plain" if settings.DISABLE_JIT else name


USE_TILE = chosen_kernels() == "tile"


def tidy(array: np.ndarray) -> np.ndarray:
    """The array itself if it is C-contiguous and writable, else a copy that is."""
    flags = array.flags
    return array if flags.c_contiguous and flags.writeable else np.array(array, order="C")


def check_floats(who: str, **arrays: np.ndarray) -> None:
    """Raise InputError unless all arrays have the same dtype, float32 or float64."""
    dtypes = [array.dtype for array in arrays.values()]  # slow to hash, so not a set
    if dtypes[0] not in FLOATS or dtypes.count(dtypes[0]) < len(dtypes):
        got = ", ".join(f"{name} {array.dtype}" for name, array in arrays.items())
        raise InputError(f"{who}: expected arrays that are all float32 or all float64, got {got}")


def check_shape(who: str, name: str, array: np.ndarray, expected: tuple[int, ...]) -> None:
    """Raise InputError unless the array has the expected shape."""
    if array.shape != expected:
        raise InputError(f"{who}: expected {name} of shape {expected}, got {array.shape}")


def check_target(who: str, name: str, array: np.ndarray, dtype: np.dtype, expected: tuple[int, ...]) -> None:
    """Raise InputError unless results of this shape and dtype can be written into the array."""
    check_shape(who, name, array, expected)
    if array.dtype != dtype or not (array.flags.c_contiguous and array.flags.writeable):
        raise InputError(f"{who}: expected {name} to be a writable, C-contiguous {dtype} array")


def tidy_mask(who: str, name: str, mask: np.ndarray | None, samples: int, channels: int) -> np.ndarray:
    """The mask, C-contiguous and writable; None becomes the empty mask that means "all on" when compiled.

    Raises InputError unless it is boolean of shape (samples, channels).
    """
    if mask is None:
        return ALL_ON
    check_shape(who, name, mask, (samples, channels))
    if mask.dtype != np.bool_:
        raise InputError(f"{who}: expected {name} to be boolean, got {mask.dtype}; pass {name} != 0")
    return tidy(mask)


def check_places(who: str, **sizes: int) -> None:
    """Raise InputError where an array of so many numbers has places that the kernels' tables cannot hold."""
    for name, size in sizes.items():
        if size > LARGEST_PLACE:
            raise InputError(
                f"{who}: expected {name} of at most {LARGEST_PLACE} numbers, got {size}; split the batch, "
                "or make the layer smaller where one sample is too much"
            )


class _Shelf:
    """One thread's working memory by use and kind of number, grown on demand."""

    def __init__(self) -> None:
        self.arrays: dict[tuple[str, str], np.ndarray] = {}

    def keep(self, use: str, array: np.ndarray) -> None:
        """Keep the array for the next call, and what else is here unless that takes more than POOL_BYTES."""
        if array.nbytes > POOL_BYTES:
            return
        if array.nbytes + sum(other.nbytes for other in list(self.arrays.values())) > POOL_BYTES:
            self.arrays.clear()
        self.arrays[use, array.dtype.char] = array


_shelves: weakref.WeakSet[_Shelf] = weakref.WeakSet()  # those of all threads that live
_shelves_lock = threading.Lock()  # held while the set changes or is read


class _Pool(threading.local):
    """Each thread's shelf."""

    def __init__(self) -> None:
        self.shelf = _Shelf()
        with _shelves_lock:
            _shelves.add(self.shelf)


_pool = _Pool()


def release_workspaces() -> None:
    """Give back the working memory that all threads keep between calls: at most POOL_BYTES each.

    Results do not depend on it, and calls in progress keep what they use; later ones ask for memory anew.
    """
    with _shelves_lock:
        shelves = list(_shelves)
    for shelf in shelves:
        shelf.arrays.clear()


def lease(use: str, dtype: np.dtype, size: int) -> np.ndarray:
    """This thread's memory for `use`: `size` entries from a cache line on, as its last user left them.

    It is the caller's until another call on this thread leases for the same use.
    """
    kept = _pool.shelf.arrays.get((use, dtype.char))  # a dtype itself is slow to hash
    if kept is None or kept.size < size:
        _pool.shelf.arrays.pop((use, dtype.char), None)
        kept = aligned(dtype, size)
        kept[:] = 0
        _pool.shelf.keep(use, kept)
    return kept[:size]


def take(use: str, dtype: np.dtype, size: int) -> np.ndarray:
    """At least `size` entries as of `lease`, but the caller's own: no other call gets them.

    `give_back` lets later calls have the memory; without it, it is freed with the array.
    """
    kept = _pool.shelf.arrays.pop((use, dtype.char), None)
    return kept if kept is not None and kept.size >= size else aligned(dtype, size)


def give_back(use: str, array: np.ndarray) -> None:
    """Let later calls of this thread `take` (or lease) the array for `use`."""
    _pool.shelf.keep(use, array)


def scratch(dtype: np.dtype, floats: int, ints: int) -> tuple[np.ndarray, np.ndarray]:
    """Scratch of so many entries of `dtype` and int32; its contents do not survive the next call."""
    return lease("floats", dtype, floats), lease("ints", INTS, ints)


def aligned(dtype: np.dtype, size: int) -> np.ndarray:
    """An uninitialised array that starts on a cache line, so that no vector of a panel straddles two."""
    raw = np.empty(size + CACHE_LINE // dtype.itemsize, dtype=dtype)
    skip = -raw.ctypes.data % CACHE_LINE // dtype.itemsize
    return raw[skip : skip + size]


def aligned_copy(vector: np.ndarray) -> np.ndarray:
    """A copy from a cache line on, so that no vector of a matrix row straddles two if rows are whole lines.

    Measured on a matrix 784 -> 100 in the vector: 24.6 us instead of 28.5 forward with 20 samples.
    """
    out = aligned(vector.dtype, vector.size)
    out[:] = vector
    return out


def result_array(who: str, shape: tuple[int, ...], dtype: np.dtype, out: np.ndarray | None) -> np.ndarray:
    """Where a kernel's result goes: `out`, checked, or a new array; a large one starts on a cache line.

    Measured on results of 16 MB with three quarters of the channels off: 7 to 13 % of the pass. On small ones
    it costs more than it gains.
    """
    if out is not None:
        check_target(who, "out", out, dtype, shape)
        return out
    size = math.prod(shape)
    if size * dtype.itemsize < LARGE_BYTES:
        return np.empty(shape, dtype)
    return aligned(dtype, size).reshape(shape)
