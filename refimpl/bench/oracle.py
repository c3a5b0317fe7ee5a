"""The right answer in float64: convolution as a matrix product of unfolded windows, times the masks.

It is written with NumPy alone, so that it shares no code with the kernels it judges.
Source: mathematics.md §2.1, §2.3b. Derived (im2col); a test compares it with the readable kernels.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from refimpl.bench.cases import Case, Geometry, LayerData
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


def windows(x: np.ndarray, kernel: int, pad: int, stride: int = 1, dilation: int = 1) -> np.ndarray:
    """x (N,C,H,W) -> view (N,C,k,k,P,Q) of the zero-padded images with stride s and dilation d.

    [..., i, j, p, q] = x[..., s p + d i, s q + d j].
    """
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    extent = dilation * (kernel - 1) + 1
    view = np.lib.stride_tricks.sliding_window_view(padded, (extent, extent), axis=(2, 3))
    return view[:, :, ::stride, ::stride, ::dilation, ::dilation].transpose(0, 1, 4, 5, 2, 3)


def reference(case: Case, data: LayerData) -> Reference:
    """The result of a case in float64: {"y"}, {"dx"} or {"dw", "db"}; group by group."""
    g, mask = case.geometry, data.mask
    x, weight, bias, dy = (array.astype(np.float64) for array in data[:4])
    gate = 1.0 if mask is None else mask[:, :, None, None].astype(np.float64)
    by_group = [np.split(array, g.groups, axis) for array, axis in ((x, 1), (weight, 0), (gate * dy, 1))]
    parts = [_group(case, *group) for group in zip(*by_group, strict=True)]
    found = np.concatenate(parts, axis=0 if case.pass_ == "weight_grad" else 1)
    if case.pass_ == "forward":
        arrays = {"y": gate * (found + bias[:, None, None])}
    elif case.pass_ == "input_grad":
        arrays = {"dx": found}
    else:
        arrays = {"dw": found, "db": (gate * dy).sum(axis=(0, 2, 3))}
    return Reference(arrays, rounding(case.dtype, case.terms))


def _group(case: Case, x: np.ndarray, weight: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """y without bias, dx or dw of one group of channels."""
    g = case.geometry
    if case.pass_ == "input_grad":
        return _spread(g, dy, weight)
    seen = windows(x, g.kernel, g.pad, g.stride, g.dilation)
    if case.pass_ == "forward":
        return np.tensordot(seen, weight, axes=((1, 2, 3), (1, 2, 3))).transpose(0, 3, 1, 2)
    return np.tensordot(dy, seen, axes=((0, 2, 3), (0, 4, 5)))


def _spread(g: Geometry, dy: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """dx: every dy goes back to the pixels of its window, tap by tap."""
    edge, reach = g.size + 2 * g.pad, g.stride * (g.result_size - 1) + 1
    padded = np.zeros((len(dy), weight.shape[1], edge, edge))
    for tap in np.ndindex(g.kernel, g.kernel):
        rows, cols = (slice(g.dilation * i, g.dilation * i + reach, g.stride) for i in tap)
        padded[:, :, rows, cols] += np.einsum("nkpq,kc->ncpq", dy, weight[:, :, *tap])
    return padded[:, :, g.pad : g.pad + g.size, g.pad : g.pad + g.size]


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
