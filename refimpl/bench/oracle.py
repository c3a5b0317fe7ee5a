"""The right answer in float64: convolution as a matrix product of unfolded windows, multiplied by the masks.

It is written with NumPy alone, so that it shares no code with the kernels it judges.
Source: mathematics.md §2.1, §2.3b. Derived (im2col); a test compares it with the readable kernels.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from refimpl.bench.cases import Case, LayerData
from refimpl.errors import RefimplError

Arrays = dict[str, np.ndarray]


class WrongResultError(RefimplError):
    """A candidate's result is not the reference's; it must not be timed."""


def largest(array: np.ndarray) -> float:
    """The largest magnitude."""
    return float(np.abs(array).max(initial=0.0))


def length(array: np.ndarray) -> float:
    """The Euclidean norm."""
    return float(np.linalg.norm(array))


class Reference(NamedTuple):
    """Arrays by name, and the size of the error allowed relative to the size of each."""

    arrays: Arrays
    tolerance: float
    size: Callable[[np.ndarray], float] = largest


def windows(x: np.ndarray, kernel: int, pad: int) -> np.ndarray:
    """x (N,C,H,W) -> view (N,C,k,k,P,Q) of the zero-padded images: [..., i, j, p, q] = x[..., p+i, q+j]."""
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    view = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(2, 3))
    return view.transpose(0, 1, 4, 5, 2, 3)


def reference(case: Case, data: LayerData) -> Reference:
    """The result of a case in float64: {"y"}, {"dx"} or {"dw", "db"}."""
    x, weight, bias, dy = (array.astype(np.float64) for array in data[:4])
    mask = data.mask
    gate = 1.0 if mask is None else mask[:, :, None, None].astype(np.float64)
    kernel, pad = case.geometry.kernel, case.geometry.pad
    if case.pass_ == "forward":
        y = np.tensordot(windows(x, kernel, pad), weight, axes=((1, 2, 3), (1, 2, 3)))
        arrays = {"y": gate * (y.transpose(0, 3, 1, 2) + bias[:, None, None])}
    elif case.pass_ == "input_grad":
        turned = np.flip(weight, axis=(2, 3))
        dx = np.tensordot(windows(gate * dy, kernel, kernel - 1 - pad), turned, axes=((1, 2, 3), (0, 2, 3)))
        arrays = {"dx": dx.transpose(0, 3, 1, 2)}
    else:
        dw = np.tensordot(gate * dy, windows(x, kernel, pad), axes=((0, 2, 3), (0, 4, 5)))
        arrays = {"dw": dw, "db": (gate * dy).sum(axis=(0, 2, 3))}
    return Reference(arrays, rounding(case.dtype, case.terms))


def rounding(dtype: str, terms: int) -> float:
    """Error that rounding may cause in a sum of `terms` random terms, relative to the sums' magnitude.

    The partial sums of n terms grow like sqrt(k), each rounded by eps/2: together about eps sqrt(n/8)
    of the final sum. Sixteen times that covers the maximum over many sums, their spread, and algorithms
    that add in other orders or through transforms; a wrong tap or channel is wrong by 1/sqrt(n) or more.
    """
    return float(16 * np.finfo(dtype).eps * np.sqrt(terms / 8 + 1))


def error_of(arrays: Arrays, wanted: Reference) -> float:
    """Largest relative error of any array; infinite for a missing array or NaN."""
    worst = 0.0
    for name, right in wanted.arrays.items():
        got = arrays.get(name)
        if got is None or got.shape != right.shape or not np.isfinite(got).all():
            return float("inf")
        scale = max(wanted.size(right), np.finfo(np.float64).tiny)
        worst = max(worst, wanted.size(got.astype(np.float64) - right) / scale)
    return worst


def check(name: str, arrays: Arrays, wanted: Reference) -> float:
    """The candidate's error; raises `WrongResultError` if it is above the tolerance."""
    error = error_of(arrays, wanted)
    if not error <= wanted.tolerance:
        raise WrongResultError(
            f"bench: {name} differs from the float64 reference by {error:.2g} (relative), allowed "
            f"{wanted.tolerance:.2g}; it is not timed"
        )
    return error
