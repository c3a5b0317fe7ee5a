"""What stands between Python callers and compiled kernels: checks, scratch memory, the choice of kernels.

Compiled code writes where it is told to; a wrong shape would silently corrupt memory. So everything is
checked here, once per call, by one rule. Arrays that are read may lie in memory in any way: what compiled
code cannot use as it lies (other orders and strides, read-only arrays, foreign byte order; each would be a
new type to Numba, compiled anew for seconds) is copied. What would change numbers is never done: another
precision is refused. Masks must be boolean. Arrays that are written must be exactly right.
"""

from __future__ import annotations

import inspect
import math
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from refimpl.errors import ConfigError, InputError, one_of
from refimpl.kernels.jit import settings

Pair = tuple[int, int]

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
INTS = np.dtype(np.int32)
INDICES = np.dtype(np.int64)
DOUBLE = np.dtype(np.float64)
ALL_ON = np.ones((0, 0), dtype=np.bool_)
CACHE_LINE = 64
FAMILIAR = 1000  # combinations of shapes an entry recognises without checking them again
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


def tidy(array: Any) -> np.ndarray:
    """The array itself if it is C-contiguous, aligned, writable, in native byte order; else such a copy."""
    if type(array) is np.ndarray and array.flags.carray and array.dtype.isnative:
        return array
    array = np.asarray(array)
    return np.array(array, array.dtype.newbyteorder("="), order="C")


def tidy_float(who: str, name: str, array: Any) -> np.ndarray:
    """The array, made tidy. Raises InputError unless it is float32 or float64."""
    if type(array) is not np.ndarray or not array.flags.carray or array.dtype not in FLOATS:
        array = tidy(array)
        if array.dtype not in FLOATS:
            raise InputError(
                f"{who}: expected {name} to be float32 or float64, got {array.dtype}; convert with astype"
            )
    return array


def tidy_floats(who: str, **arrays: Any) -> list[np.ndarray]:
    """The arrays, made tidy. Raises InputError unless they have the same dtype, float32 or float64.

    Arrays that are too large for the kernels' tables are refused before anything is copied.
    """
    check_places(who, **{name: np.size(array) for name, array in arrays.items()})
    found = [tidy(array) for array in arrays.values()]
    dtypes = [array.dtype for array in found]  # slow to hash, so not a set
    if dtypes[0] not in FLOATS or dtypes.count(dtypes[0]) < len(dtypes):
        got = ", ".join(f"{name} {dtype}" for name, dtype in zip(arrays, dtypes, strict=True))
        raise InputError(
            f"{who}: expected arrays that are all float32 or all float64, got {got}; convert with astype"
        )
    return found


def check_axes(who: str, name: str, array: np.ndarray, axes: str) -> None:
    """Raise InputError unless the array has as many axes as there are letters."""
    if array.ndim != len(axes):
        raise InputError(f"{who}: expected {name} of shape ({', '.join(axes)}), got {array.shape}")


def check_shape(who: str, name: str, array: np.ndarray, expected: tuple[int, ...]) -> None:
    """Raise InputError unless the array has the expected shape."""
    if array.shape != expected:
        raise InputError(f"{who}: expected {name} of shape {expected}, got {array.shape}")


def check_like(who: str, name: str, array: np.ndarray, other: np.ndarray) -> None:
    """Raise InputError unless the array has the shape and dtype of the other."""
    if array.shape != other.shape or array.dtype != other.dtype:
        raise InputError(
            f"{who}: expected {name} of shape {other.shape} and {other.dtype}, "
            f"got {array.shape} and {array.dtype}"
        )


def check_writable(who: str, name: str, array: Any, *dtypes: np.dtype) -> None:
    """Raise InputError unless it is an array of one of the dtypes that compiled code can write into."""
    if not (isinstance(array, np.ndarray) and array.dtype in dtypes and array.flags.carray):
        wanted = " or ".join(str(dtype) for dtype in dtypes)
        raise InputError(f"{who}: expected {name} to be a writable, C-contiguous {wanted} array")


def check_target(who: str, name: str, array: Any, dtype: np.dtype, expected: tuple[int, ...]) -> None:
    """Raise InputError unless results of this shape and dtype can be written into the array."""
    check_writable(who, name, array, dtype)
    check_shape(who, name, array, expected)


def _tidy_bool(who: str, name: str, mask: Any) -> np.ndarray:
    """The mask, made tidy; `ALL_ON` if it is empty. Raises InputError unless it is boolean (N, C)."""
    mask = tidy(mask)
    if mask.dtype != np.bool_:
        raise InputError(f"{who}: expected {name} to be boolean, got {mask.dtype}; pass {name} != 0")
    check_axes(who, name, mask, "NC")
    return ALL_ON if mask.shape == ALL_ON.shape else mask


def tidy_mask(who: str, name: str, mask: np.ndarray | None, samples: int, channels: int) -> np.ndarray:
    """The mask, made tidy; None becomes the empty mask that means "all on" when compiled.

    Raises InputError unless it is boolean of shape (samples, channels).
    """
    if mask is None:
        return ALL_ON
    mask = _tidy_bool(who, name, mask)
    check_shape(who, name, mask, (samples, channels))
    return mask


def tidy_group_mask(who: str, name: str, mask: np.ndarray | None, samples: int, features: int) -> np.ndarray:
    """`tidy_mask` for a mask whose columns stand for equal groups of features."""
    if mask is None:
        return ALL_ON
    mask = _tidy_bool(who, name, mask)
    groups = mask.shape[1]
    if groups < 1 or features % groups:
        raise InputError(f"{who}: the {groups} columns of {name} do not divide {features} features")
    check_shape(who, name, mask, (samples, groups))
    return mask


def output_size(size: Pair, kernel: Pair, stride: Pair, pad: Pair) -> Pair:
    """Height and width after a window of `kernel` moved by `stride` over `size` padded by `pad`."""
    return (
        (size[0] + 2 * pad[0] - kernel[0]) // stride[0] + 1,
        (size[1] + 2 * pad[1] - kernel[1]) // stride[1] + 1,
    )


class Place(NamedTuple):
    """What an argument of an entry must be.

    axes: a letter for each axis, equal letters for equal sizes; dtypes: those allowed, where empty float32
    or float64, the same for all such arguments; a written array is taken as it is, any other made tidy.
    """

    axes: str
    dtypes: tuple[np.dtype, ...] = ()
    written: bool = False
    mask: bool = False

    def take(self, who: str, name: str, array: Any) -> np.ndarray:
        """The argument as compiled code takes it; raises InputError for wrong dtypes."""
        if self.mask:
            return ALL_ON if array is None else _tidy_bool(who, name, array)
        if self.written:
            check_writable(who, name, array, *(self.dtypes or FLOATS))
            return array
        if not self.dtypes:
            return tidy_float(who, name, array)
        (wanted,), array = self.dtypes, tidy(array)
        if array.dtype.kind not in ("iu" if wanted.kind == "i" else "iuf"):
            raise InputError(f"{who}: expected {name} to be {wanted}, got {array.dtype}")
        return array.astype(wanted, copy=False)


def given(axes: str, *dtypes: np.dtype) -> Place:
    """An array that is read; with a dtype, whole numbers are converted to it, and floats to a float one."""
    return Place(axes, dtypes)


def written(axes: str, *dtypes: np.dtype) -> Place:
    """An array that is written."""
    return Place(axes, dtypes, written=True)


def mask(axes: str) -> Place:
    """A boolean mask; None, or an empty one, means "all on"."""
    return Place(axes, mask=True)


class Entry:
    """A compiled function as Python callers see it: arguments are checked, and made tidy, first.

    `kernel` is the compiled function itself, for callers whose arrays are checked already; compiled callers
    get it by themselves.
    """

    def __init__(self, kernel: Any, places: dict[str, Place], also: Callable[..., None] | None) -> None:
        self.kernel = kernel
        self.also = also
        self.familiar: dict[tuple[Any, ...], dict[str, int]] = {}  # sizes by what `_key` says; checked before
        self.who = f"{kernel.__module__.rsplit('.', 1)[1]}.{kernel.__name__}"
        self.signature = inspect.signature(getattr(kernel, "py_func", kernel))
        self.names = tuple(self.signature.parameters)
        self.places = tuple((self.names.index(name), name, place) for name, place in places.items())
        self.arrays = tuple(at for at, _, _ in self.places)
        self.__doc__ = kernel.__doc__

    def __getattr__(self, name: str) -> Any:
        """Whatever else is asked, Numba's type of the function among it, is the kernel's."""
        return getattr(self.kernel, name)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Check the arguments, then run the kernel."""
        if named or len(args) != len(self.names):
            args = self.signature.bind(*args, **named).args
        key = self._key(args)
        sizes = self.familiar.get(key)
        if sizes is None:
            args, sizes = self._checked(args, key)
        if self.also is not None:
            self.also(self.who, sizes, dict(zip(self.names, args, strict=True)))
        return self.kernel(*args)

    def _key(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Dtypes and shapes of the arrays; empty unless all lie in memory as compiled code wants them."""
        key: list[Any] = []
        for at in self.arrays:
            array = args[at]
            if type(array) is not np.ndarray or not array.flags.carray:
                return ()
            key += (array.dtype, array.shape)
        return tuple(key)

    def _checked(self, args: tuple[Any, ...], key: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, int]]:
        """The arguments as compiled code takes them, and the sizes of axes; keeps what was right in mind."""
        ready = list(args)
        for at, name, place in self.places:
            ready[at] = place.take(self.who, name, args[at])
        sizes = self._sizes(ready)
        if key and all(ready[at] is args[at] for at in self.arrays):
            if len(self.familiar) >= FAMILIAR:
                self.familiar.clear()
            self.familiar[key] = sizes
        return tuple(ready), sizes

    def _sizes(self, ready: list[Any]) -> dict[str, int]:
        """The size of each axis by its letter; raises InputError where sizes or floats are not alike."""
        sizes: dict[str, int] = {}
        floats = None
        for at, name, place in self.places:
            array = ready[at]
            if array is ALL_ON:
                continue
            found = [
                sizes.setdefault(axis, size) for axis, size in zip(place.axes, array.shape, strict=False)
            ]
            if (*found,) != array.shape or len(place.axes) != array.ndim:
                wanted = ", ".join(str(sizes.get(axis, axis)) for axis in place.axes)
                raise InputError(f"{self.who}: expected {name} of shape ({wanted}), got {array.shape}")
            if not (place.dtypes or place.mask):
                floats = array.dtype if floats is None else floats
                if array.dtype != floats:
                    raise InputError(f"{self.who}: expected {name} to be {floats}, got {array.dtype}")
        return sizes


def entry(also: Callable[..., None] | None = None, **places: Place) -> Callable[[Any], Entry]:
    """Make a compiled function an `Entry` whose named arguments must be as told.

    also(who, sizes, arguments): raises InputError for what shapes and dtypes do not tell.
    """
    return lambda kernel: Entry(kernel, places, also)


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
