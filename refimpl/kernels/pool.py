"""Pooling over (N, C, H, W), forward and backward, skipping closed channels (their outputs are zero).

Masks are boolean (N, C), empty for "all on". The first maximum in scan order wins a tie, as in common
frameworks. Source: mathematics.md §2.1.
"""

from __future__ import annotations

from refimpl.kernels.jit import kernel
from refimpl.kernels.plain import is_on


@kernel
def max_forward(x, size, stride, mask, y, where):
    """y = largest value of each window; `where` (int32) its flat position in the window."""
    n_samples, channels, rows, cols = y.shape
    y[:] = 0
    where[:] = 0
    for n in range(n_samples):
        for c in range(channels):
            if not is_on(mask, n, c):
                continue
            for p in range(rows):
                for q in range(cols):
                    best = x[n, c, p * stride[0], q * stride[1]]
                    at = 0
                    for i in range(size[0]):
                        for j in range(size[1]):
                            value = x[n, c, p * stride[0] + i, q * stride[1] + j]
                            if value > best or value != value:
                                best = value
                                at = i * size[1] + j
                    y[n, c, p, q] = best
                    where[n, c, p, q] = at


@kernel
def max_backward(dy, where, size, stride, mask, dx):
    """dx = dy sent to the position that was largest; windows may overlap."""
    n_samples, channels, rows, cols = dy.shape
    dx[:] = 0
    for n in range(n_samples):
        for c in range(channels):
            if not is_on(mask, n, c):
                continue
            for p in range(rows):
                for q in range(cols):
                    at = where[n, c, p, q]
                    i, j = p * stride[0] + at // size[1], q * stride[1] + at % size[1]
                    dx[n, c, i, j] += dy[n, c, p, q]


@kernel
def average_forward(x, size, stride, mask, y):
    """y = mean of each window."""
    n_samples, channels, rows, cols = y.shape
    area = x.dtype.type(size[0] * size[1])
    y[:] = 0
    for n in range(n_samples):
        for c in range(channels):
            if not is_on(mask, n, c):
                continue
            for p in range(rows):
                for q in range(cols):
                    total = x[n, c, p * stride[0], q * stride[1]]
                    for at in range(1, size[0] * size[1]):
                        total += x[n, c, p * stride[0] + at // size[1], q * stride[1] + at % size[1]]
                    y[n, c, p, q] = total / area


@kernel
def average_backward(dy, size, stride, mask, dx):
    """dx = dy shared equally by its window; windows may overlap."""
    n_samples, channels, rows, cols = dy.shape
    area = dy.dtype.type(size[0] * size[1])
    dx[:] = 0
    for n in range(n_samples):
        for c in range(channels):
            if not is_on(mask, n, c):
                continue
            for p in range(rows):
                for q in range(cols):
                    share = dy[n, c, p, q] / area
                    for i in range(size[0]):
                        for j in range(size[1]):
                            dx[n, c, p * stride[0] + i, q * stride[1] + j] += share
