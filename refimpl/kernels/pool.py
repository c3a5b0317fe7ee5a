"""Pooling over (N, C, H, W), forward and backward, skipping closed channels (their outputs are zero).

Masks are boolean (N, C), empty for "all on". Of equal maxima the first in scan order counts, and the first
NaN counts as larger than everything, as in common frameworks. Padding is as in PyTorch: at most half a
window, so that every window meets the image; for a maximum it is minus infinity, for a mean it is zeros that
count as pixels (count_include_pad).

The loops here define the results for any window; `halving` computes the same for windows of 2 x 2 with stride
2 and no padding.

Source: mathematics.md §2.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refimpl.errors import InputError
from refimpl.kernels import halving
from refimpl.kernels.arrays import INTS, output_size
from refimpl.kernels.checked import checked, given, mask, written
from refimpl.kernels.jit import inlined, kernel, large_kernel
from refimpl.kernels.panels import clear
from refimpl.kernels.plain import is_on
from refimpl.kernels.sums import COMPILED
from refimpl.kernels.target import VECTOR_BYTES


def _check_windows(who: str, sizes: dict[str, int], arguments: dict[str, Any]) -> None:
    """Raise InputError unless exactly P x Q windows fit into H x W pixels with their padding."""
    size, stride, pad = arguments["size"], arguments["stride"], arguments["pad"]
    pixels, result = (sizes["H"], sizes["W"]), (sizes["P"], sizes["Q"])
    fits = min(*size, *stride) >= 1 and all(0 <= 2 * p <= k for p, k in zip(pad, size, strict=True))
    if not fits or output_size(pixels, size, stride, pad) != result:
        raise InputError(
            f"{who}: windows of {size} with stride {stride} and padding {pad} (at most half a window) in "
            f"images of {pixels} pixels do not give the expected {result}"
        )


def _check_positions(who: str, sizes: dict[str, int], arguments: dict[str, Any]) -> None:
    """`_check_windows`, and that the maxima lie inside the windows and inside the images."""
    _check_windows(who, sizes, arguments)
    where, (rows, cols) = arguments["where"], arguments["size"]
    if where.size and not 0 <= where.min() <= where.max() < rows * cols:
        raise InputError(f"{who}: expected places in 0..{rows * cols - 1}, got {where.min()}..{where.max()}")
    if where.size and max(arguments["pad"]) > 0:
        stride, pad = arguments["stride"], arguments["pad"]
        i = np.arange(sizes["P"])[:, None] * stride[0] - pad[0] + where // cols
        j = np.arange(sizes["Q"]) * stride[1] - pad[1] + where % cols
        outside = (i < 0) | (i >= sizes["H"]) | (j < 0) | (j >= sizes["W"])
        if (outside[arguments["mask"]] if arguments["mask"].size else outside).any():
            raise InputError(f"{who}: expected places inside the images, got some on their padding")


@kernel
def _halves(size, stride, pad):
    """Whether the window is 2 x 2 with stride 2, without padding."""
    return COMPILED and min(size) == max(size) == min(stride) == max(stride) == 2 and max(pad) == 0


@kernel
def _inside(size, start, pixels):
    """First and one-past-last row (or column) of a window that starts at `start` which meet the image."""
    return max(0, -start), min(size, pixels - start)


@inlined
def _halve(function, images, results, where, mask):
    """Apply a function of `halving` to the open channels: vector by vector of columns of the result."""
    channels, rows, cols = results.shape[1:]
    pixels, width, area = images.reshape(-1), images.shape[3], images.shape[2] * images.shape[3]
    values, places = results.reshape(-1), where.reshape(-1)
    for number in range(results.shape[0] * channels):
        if is_on(mask, number // channels, number % channels):
            for q in range(0, cols, VECTOR_BYTES // images.itemsize):
                image = (pixels, number * area + 2 * q, width)
                result = (values, number * rows * cols + q, cols)
                function(rows, cols - q, image, result, places)


@kernel
def _largest(image, top, left, size):
    """The largest value of a window, and its flat position in the window."""
    first, last = _inside(size[0], top, image.shape[0])
    begin, end = _inside(size[1], left, image.shape[1])
    best, at = image[top + first, left + begin], first * size[1] + begin
    for i in range(first, last):
        for j in range(begin, end):
            value = image[top + i, left + j]
            if value > best or (value != value and best == best):
                best = value
                at = i * size[1] + j
    return best, at


@kernel
def _total(image, top, left, size):
    """The sum of the pixels of a window, row by row."""
    first, last = _inside(size[0], top, image.shape[0])
    begin, end = _inside(size[1], left, image.shape[1])
    total = image.dtype.type(-0.0)  # to which any number can be added without a change, -0 too
    for i in range(first, last):
        for j in range(begin, end):
            total += image[top + i, left + j]
    return total


@checked(_check_windows, x=given("NCHW"), mask=mask("NC"), y=written("NCPQ"), where=written("NCPQ", INTS))
@large_kernel
def max_forward(x, size, stride, pad, mask, y, where):
    """y = largest value of each window; `where` (int32) its flat position in the window."""
    n_samples, channels, rows, cols = y.shape
    halves = _halves(size, stride, pad)
    for n in range(n_samples):
        for c in range(channels):
            if not is_on(mask, n, c):
                clear(y[n, c].reshape(-1))
                clear(where[n, c].reshape(-1))
            elif not halves:
                for p in range(rows):
                    for q in range(cols):
                        best, at = _largest(x[n, c], p * stride[0] - pad[0], q * stride[1] - pad[1], size)
                        y[n, c, p, q] = best
                        where[n, c, p, q] = at
    if halves:
        _halve(halving.largest, x, y, where, mask)


@checked(_check_positions, dy=given("NCPQ"), where=given("NCPQ", INTS), mask=mask("NC"), dx=written("NCHW"))
@large_kernel
def max_backward(dy, where, size, stride, pad, mask, dx):
    """dx = dy sent to the position that was largest; windows may overlap."""
    n_samples, channels, rows, cols = dy.shape
    halves = _halves(size, stride, pad)
    _clear_unwritten(dx, dy, halves, mask)
    if halves:
        _halve(halving.send_back, dx, dy, where, mask)
        return
    for n in range(n_samples):
        for c in range(channels):
            if is_on(mask, n, c):
                for p in range(rows):
                    for q in range(cols):
                        at = where[n, c, p, q]
                        i = p * stride[0] - pad[0] + at // size[1]
                        j = q * stride[1] - pad[1] + at % size[1]
                        dx[n, c, i, j] += dy[n, c, p, q]


@kernel
def _clear_unwritten(dx, dy, halves, mask):
    """Zero the channels of dx, but for open ones that 2 x 2 windows cover: these are written as a whole."""
    covered = halves and 2 * dy.shape[2] == dx.shape[2] and 2 * dy.shape[3] == dx.shape[3]
    for n in range(dx.shape[0]):
        for c in range(dx.shape[1]):
            if not (covered and is_on(mask, n, c)):
                clear(dx[n, c].reshape(-1))


@checked(_check_windows, x=given("NCHW"), mask=mask("NC"), y=written("NCPQ"))
@large_kernel
def average_forward(x, size, stride, pad, mask, y):
    """y = mean of each window."""
    n_samples, channels, rows, cols = y.shape
    area = x.dtype.type(size[0] * size[1])
    halves = _halves(size, stride, pad)
    for n in range(n_samples):
        for c in range(channels):
            if not is_on(mask, n, c):
                clear(y[n, c].reshape(-1))
            elif not halves:
                for p in range(rows):
                    for q in range(cols):
                        total = _total(x[n, c], p * stride[0] - pad[0], q * stride[1] - pad[1], size)
                        y[n, c, p, q] = total / area
    if halves:
        _halve(halving.mean, x, y, y, mask)


@checked(_check_windows, dy=given("NCPQ"), mask=mask("NC"), dx=written("NCHW"))
@large_kernel
def average_backward(dy, size, stride, pad, mask, dx):
    """dx = dy shared equally by its window; windows may overlap."""
    n_samples, channels, rows, cols = dy.shape
    area = dy.dtype.type(size[0] * size[1])
    halves = _halves(size, stride, pad)
    _clear_unwritten(dx, dy, halves, mask)
    if halves:
        _halve(halving.share_out, dx, dy, dy, mask)
        return
    for n in range(n_samples):
        for c in range(channels):
            if is_on(mask, n, c):
                for p in range(rows):
                    for q in range(cols):
                        share = dy[n, c, p, q] / area
                        top, left = p * stride[0] - pad[0], q * stride[1] - pad[1]
                        first, last = _inside(size[0], top, dx.shape[2])
                        begin, end = _inside(size[1], left, dx.shape[3])
                        for i in range(first, last):
                            for j in range(begin, end):
                                dx[n, c, top + i, left + j] += share
