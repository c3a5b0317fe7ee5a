"""Pooling over (N, C, H, W), forward and backward, skipping closed channels (their outputs are zero).

Masks are boolean (N, C), empty for "all on". The first maximum in scan order wins a tie, and the first NaN
wins over everything, as in common frameworks. Windows of 2 x 2 with stride 2 go to `halving`, with the same
results; the loops here say what is meant, for any window.

Source: mathematics.md §2.1.
"""

from __future__ import annotations

from typing import Any

from refimpl.errors import InputError
from refimpl.kernels import halving
from refimpl.kernels.arrays import INTS, output_size
from refimpl.kernels.checked import checked, given, mask, written
from refimpl.kernels.jit import kernel, settings
from refimpl.kernels.panels import clear
from refimpl.kernels.plain import is_on
from refimpl.kernels.target import VECTOR_BYTES

COMPILED = not settings.DISABLE_JIT


def _check_windows(who: str, sizes: dict[str, int], arguments: dict[str, Any]) -> None:
    """Raise InputError unless P x Q windows are what fits into H x W pixels."""
    size, stride = arguments["size"], arguments["stride"]
    pixels, result = (sizes["H"], sizes["W"]), (sizes["P"], sizes["Q"])
    if min(*size, *stride) < 1 or output_size(pixels, size, stride, (0, 0)) != result:
        raise InputError(
            f"{who}: windows of {size} with stride {stride} in images of {pixels} pixels do not give the "
            f"expected {result}"
        )


def _check_places(who: str, sizes: dict[str, int], arguments: dict[str, Any]) -> None:
    """`_check_windows`, and that the maxima lie inside the windows."""
    _check_windows(who, sizes, arguments)
    where, (rows, cols) = arguments["where"], arguments["size"]
    if where.size and not 0 <= where.min() <= where.max() < rows * cols:
        raise InputError(f"{who}: expected places in 0..{rows * cols - 1}, got {where.min()}..{where.max()}")


@kernel
def _halves(size, stride):
    """Whether the window is 2 x 2 with stride 2."""
    return COMPILED and size[0] == 2 and size[1] == 2 and stride[0] == 2 and stride[1] == 2


@kernel
def _plane(image, result, number, q):
    """Where column q of the number-th result plane lies, and the window's first pixel in the image."""
    places = number * result.shape[2] * result.shape[3] + q
    return places, number * image.shape[2] * image.shape[3] + 2 * q


@checked(_check_windows, x=given("NCHW"), mask=mask("NC"), y=written("NCPQ"), where=written("NCPQ", INTS))
@kernel
def max_forward(x, size, stride, mask, y, where):
    """y = largest value of each window; `where` (int32) its flat position in the window."""
    n_samples, channels, rows, cols = y.shape
    halves = _halves(size, stride)
    for n in range(n_samples):
        for c in range(channels):
            if not is_on(mask, n, c):
                clear(y[n, c].reshape(-1))
                clear(where[n, c].reshape(-1))
            elif not halves:
                for p in range(rows):
                    for q in range(cols):
                        best = x[n, c, p * stride[0], q * stride[1]]
                        at = 0
                        for i in range(size[0]):
                            for j in range(size[1]):
                                value = x[n, c, p * stride[0] + i, q * stride[1] + j]
                                if value > best or (value != value and best == best):
                                    best = value
                                    at = i * size[1] + j
                        y[n, c, p, q] = best
                        where[n, c, p, q] = at
    if halves:
        _halve_max(x, y, where, mask)


@kernel
def _halve_max(x, y, where, mask):
    """The open channels, by `halving.largest`."""
    rows, cols, channels = y.shape[2], y.shape[3], y.shape[1]
    flat_x, flat_y, places = x.reshape(-1), y.reshape(-1), where.reshape(-1)
    for number in range(y.shape[0] * channels):
        if is_on(mask, number // channels, number % channels):
            for q in range(0, cols, VECTOR_BYTES // x.itemsize):
                at, start = _plane(x, y, number, q)
                image, result = (flat_x, start, x.shape[3]), (flat_y, at, cols)
                halving.largest(rows, cols - q, image, result, places)


@checked(_check_places, dy=given("NCPQ"), where=given("NCPQ", INTS), mask=mask("NC"), dx=written("NCHW"))
@kernel
def max_backward(dy, where, size, stride, mask, dx):
    """dx = dy sent to the position that was largest; windows may overlap."""
    n_samples, channels, rows, cols = dy.shape
    halves = _halves(size, stride)
    covers = halves and 2 * rows == dx.shape[2] and 2 * cols == dx.shape[3]
    for n in range(n_samples):
        for c in range(channels):
            on = is_on(mask, n, c)
            if not (on and covers):
                clear(dx[n, c].reshape(-1))
            if on and not halves:
                for p in range(rows):
                    for q in range(cols):
                        at = where[n, c, p, q]
                        i, j = p * stride[0] + at // size[1], q * stride[1] + at % size[1]
                        dx[n, c, i, j] += dy[n, c, p, q]
    if halves:
        _halve_max_backward(dx, dy, where, mask)


@kernel
def _halve_max_backward(dx, dy, where, mask):
    """The open channels, by `halving.send_back`."""
    rows, cols, channels = dy.shape[2], dy.shape[3], dy.shape[1]
    flat_dx, flat_dy, places = dx.reshape(-1), dy.reshape(-1), where.reshape(-1)
    for number in range(dy.shape[0] * channels):
        if is_on(mask, number // channels, number % channels):
            for q in range(0, cols, VECTOR_BYTES // dx.itemsize):
                at, start = _plane(dx, dy, number, q)
                image, result = (flat_dx, start, dx.shape[3]), (flat_dy, at, cols)
                halving.send_back(rows, cols - q, image, result, places)


@checked(_check_windows, x=given("NCHW"), mask=mask("NC"), y=written("NCPQ"))
@kernel
def average_forward(x, size, stride, mask, y):
    """y = mean of each window."""
    n_samples, channels, rows, cols = y.shape
    area = x.dtype.type(size[0] * size[1])
    halves = _halves(size, stride)
    for n in range(n_samples):
        for c in range(channels):
            if not is_on(mask, n, c):
                clear(y[n, c].reshape(-1))
            elif not halves:
                for p in range(rows):
                    for q in range(cols):
                        total = x[n, c, p * stride[0], q * stride[1]]
                        for at in range(1, size[0] * size[1]):
                            total += x[n, c, p * stride[0] + at // size[1], q * stride[1] + at % size[1]]
                        y[n, c, p, q] = total / area
    if halves:
        _halve_mean(x, y, mask)


@kernel
def _halve_mean(x, y, mask):
    """The open channels, by `halving.mean`."""
    rows, cols, channels = y.shape[2], y.shape[3], y.shape[1]
    flat_x, flat_y = x.reshape(-1), y.reshape(-1)
    for number in range(y.shape[0] * channels):
        if is_on(mask, number // channels, number % channels):
            for q in range(0, cols, VECTOR_BYTES // x.itemsize):
                at, start = _plane(x, y, number, q)
                image, result = (flat_x, start, x.shape[3]), (flat_y, at, cols)
                halving.mean(rows, cols - q, image, result)


@checked(_check_windows, dy=given("NCPQ"), mask=mask("NC"), dx=written("NCHW"))
@kernel
def average_backward(dy, size, stride, mask, dx):
    """dx = dy shared equally by its window; windows may overlap."""
    n_samples, channels, rows, cols = dy.shape
    area = dy.dtype.type(size[0] * size[1])
    halves = _halves(size, stride)
    covers = halves and 2 * rows == dx.shape[2] and 2 * cols == dx.shape[3]
    for n in range(n_samples):
        for c in range(channels):
            on = is_on(mask, n, c)
            if not (on and covers):
                clear(dx[n, c].reshape(-1))
            if on and not halves:
                for p in range(rows):
                    for q in range(cols):
                        share = dy[n, c, p, q] / area
                        for i in range(size[0]):
                            for j in range(size[1]):
                                dx[n, c, p * stride[0] + i, q * stride[1] + j] += share
    if halves:
        _halve_mean_backward(dx, dy, mask)


@kernel
def _halve_mean_backward(dx, dy, mask):
    """The open channels, by `halving.share_out`."""
    rows, cols, channels = dy.shape[2], dy.shape[3], dy.shape[1]
    flat_dx, flat_dy = dx.reshape(-1), dy.reshape(-1)
    for number in range(dy.shape[0] * channels):
        if is_on(mask, number // channels, number % channels):
            for q in range(0, cols, VECTOR_BYTES // dx.itemsize):
                at, start = _plane(dx, dy, number, q)
                image, result = (flat_dx, start, dx.shape[3]), (flat_dy, at, cols)
                halving.share_out(rows, cols - q, image, result)
