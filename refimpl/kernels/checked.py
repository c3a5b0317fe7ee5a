"""`checked`: a compiled function as Python callers see it, which checks its arguments before it runs.

The decorator names the axes and dtypes of each array argument; `arrays` says what is converted and what is
refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from refimpl.errors import InputError
from refimpl.kernels.arrays import ALL_ON, FLOATS, check_writable, tidy, tidy_bool, tidy_float

MEMORY_OF_SHAPES = 1000  # combinations of shapes that a kernel remembers to have checked


class Argument(NamedTuple):
    """What an array argument of a checked kernel must be.

    axes: a letter for each axis; equal letters mean equal sizes. dtypes: those allowed; if empty, float32 or
    float64, the same for all such arguments. A written array is used as it is; others are made tidy.
    """

    axes: str
    dtypes: tuple[np.dtype, ...] = ()
    written: bool = False
    mask: bool = False

    def converted(self, who: str, name: str, array: Any) -> np.ndarray:
        """The argument as compiled code takes it; raises InputError for wrong dtypes."""
        if self.mask:
            return ALL_ON if array is None else tidy_bool(who, name, array)
        if self.written:
            check_writable(who, name, array, *(self.dtypes or FLOATS))
            return array
        if not self.dtypes:
            return tidy_float(who, name, array)
        (wanted,), array = self.dtypes, tidy(array)
        if array.dtype.kind not in ("iu" if wanted.kind == "i" else "iuf"):
            raise InputError(f"{who}: expected {name} to be {wanted}, got {array.dtype}")
        return array.astype(wanted, copy=False)


def given(axes: str, *dtypes: np.dtype) -> Argument:
    """An array that is read; whole numbers are converted to the dtype, and floats if that is a float."""
    return Argument(axes, dtypes)


def written(axes: str, *dtypes: np.dtype) -> Argument:
    """An array that is written."""
    return Argument(axes, dtypes, written=True)


def mask(axes: str) -> Argument:
    """A boolean mask; None, or an empty one, means "all on"."""
    return Argument(axes, mask=True)


class CheckedKernel:
    """A compiled function that checks its arguments, and makes them tidy, before it runs.

    `kernel` is the compiled function itself, for callers that have checked their arrays already; compiled
    callers reach it without the checks.
    """

    def __init__(self, kernel: Any, arguments: dict[str, Argument], also: Callable[..., None] | None) -> None:
        self.kernel = kernel
        self.also = also
        self.sizes: dict[tuple[Any, ...], dict[str, int]] = {}  # of arguments that passed, by `_key`
        self.who = f"{kernel.__module__.rsplit('.', 1)[1]}.{kernel.__name__}"
        self.signature = inspect.signature(getattr(kernel, "py_func", kernel))
        self.names = tuple(self.signature.parameters)
        self.arguments = tuple((self.names.index(name), name, rule) for name, rule in arguments.items())
        self.positions = tuple(at for at, _, _ in self.arguments)
        self.__doc__ = kernel.__doc__

    def __getattr__(self, name: str) -> Any:
        """Every other attribute, such as Numba's type of the function, is the kernel's."""
        return getattr(self.kernel, name)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Check the arguments, then run the kernel."""
        if named or len(args) != len(self.names):
            args = self.signature.bind(*args, **named).args
        key = self._key(args)
        sizes = self.sizes.get(key)
        if sizes is None:
            args, sizes = self._checked(args, key)
        if self.also is not None:
            self.also(self.who, sizes, dict(zip(self.names, args, strict=True)))
        return self.kernel(*args)

    def _key(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Dtypes and shapes of the arrays; empty unless compiled code can use them as they lie in memory."""
        key: list[Any] = []
        for at in self.positions:
            array = args[at]
            if type(array) is not np.ndarray or not array.flags.carray:
                return ()
            key += (array.dtype, array.shape)
        return tuple(key)

    def _checked(self, args: tuple[Any, ...], key: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, int]]:
        """The arguments as compiled code takes them, and the sizes of axes; remembers shapes that passed."""
        ready = list(args)
        for at, name, rule in self.arguments:
            ready[at] = rule.converted(self.who, name, args[at])
        sizes = self._sizes(ready)
        if key and all(ready[at] is args[at] for at in self.positions):
            if len(self.sizes) >= MEMORY_OF_SHAPES:
                self.sizes.clear()
            self.sizes[key] = sizes
        return tuple(ready), sizes

    def _sizes(self, ready: list[Any]) -> dict[str, int]:
        """The size of each axis by its letter; raises InputError where sizes or floats are not alike."""
        sizes: dict[str, int] = {}
        floats = None
        for at, name, rule in self.arguments:
            array = ready[at]
            if array is ALL_ON:
                continue
            found = [sizes.setdefault(axis, size) for axis, size in zip(rule.axes, array.shape, strict=False)]
            if (*found,) != array.shape or len(rule.axes) != array.ndim:
                wanted = ", ".join(str(sizes.get(axis, axis)) for axis in rule.axes)
                raise InputError(f"{self.who}: expected {name} of shape ({wanted}), got {array.shape}")
            if not (rule.dtypes or rule.mask):
                floats = array.dtype if floats is None else floats
                if array.dtype != floats:
                    raise InputError(f"{self.who}: expected {name} to be {floats}, got {array.dtype}")
        return sizes


def checked(
    also: Callable[..., None] | None = None, /, **arguments: Argument
) -> Callable[[Any], CheckedKernel]:
    """Make a compiled function a `CheckedKernel` that requires the named arguments to be as declared.

    also(who, sizes, arguments) raises InputError for what shapes and dtypes do not show.
    """
    return lambda kernel: CheckedKernel(kernel, arguments, also)
