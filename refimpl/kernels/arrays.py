"""Checks of the arrays that reach compiled code, and their conversion to the form it takes.

Compiled code writes where it is told to; a wrong shape would silently corrupt memory. So every array is
checked once per call, by one rule. Arrays that are read may lie in memory in any way: what compiled code
cannot use as it lies (other orders and strides, read-only arrays, foreign byte order; each would be a new
type to Numba, which it would compile for seconds) is copied. Nothing is done that would change numbers:
another precision is refused. Masks must be boolean. Arrays that are written must be exactly right.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refimpl.errors import InputError

Pair = tuple[int, int]

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
INTS = np.dtype(np.int32)
INDICES = np.dtype(np.int64)
DOUBLE = np.dtype(np.float64)
ALL_ON = np.ones((0, 0), dtype=np.bool_)
LARGEST_OFFSET = np.iinfo(INTS).max  # kernels keep offsets into arrays in tables of such numbers


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
    check_offsets(who, **{name: np.size(array) for name, array in arrays.items()})
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


def tidy_bool(who: str, name: str, mask: Any) -> np.ndarray:
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
    mask = tidy_bool(who, name, mask)
    check_shape(who, name, mask, (samples, channels))
    return mask


def tidy_group_mask(who: str, name: str, mask: np.ndarray | None, samples: int, features: int) -> np.ndarray:
    """`tidy_mask` for a mask whose columns stand for equal groups of features."""
    if mask is None:
        return ALL_ON
    mask = tidy_bool(who, name, mask)
    groups = mask.shape[1]
    if groups < 1 or features % groups:
        raise InputError(f"{who}: the {groups} columns of {name} do not divide {features} features")
    check_shape(who, name, mask, (samples, groups))
    return mask


def output_size(size: Pair, kernel: Pair, stride: Pair, pad: Pair, dilation: Pair = (1, 1)) -> Pair:
    """Height and width after a window of `kernel` moved by `stride` over `size` padded by `pad`."""
    return (
        (size[0] + 2 * pad[0] - (kernel[0] - 1) * dilation[0] - 1) // stride[0] + 1,
        (size[1] + 2 * pad[1] - (kernel[1] - 1) * dilation[1] - 1) // stride[1] + 1,
    )


def check_offsets(who: str, **sizes: int) -> None:
    """Raise InputError if offsets into arrays of these sizes do not fit into the kernels' 32-bit tables."""
    for name, size in sizes.items():
        if size > LARGEST_OFFSET:
            raise InputError(
                f"{who}: expected {name} of at most {LARGEST_OFFSET} numbers, got {size}; split the batch, "
                "or make the layer smaller where one sample is too much"
            )
