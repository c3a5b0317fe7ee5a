"""Sums of arrays, and the gradient of a mean over pixels.

Source: mathematics.md §2.3b. Derived.
"""

from __future__ import annotations

from refimpl.kernels.jit import kernel, large_kernel
from refimpl.kernels.panels import clear
from refimpl.kernels.plain import is_on


@kernel
def add(a, b, y):
    """y = a + b, on vectors; y may be one of the two."""
    for p in range(y.size):
        y[p] = a[p] + b[p]


@large_kernel
def share_out(dy, mask, dx):
    """dx[n, c, :] = dy[n, c] over the number of pixels: the gradient of a mean; zero where closed."""
    pixels, zero = dx.dtype.type(dx.shape[2]), dx.dtype.type(0)
    for n in range(dx.shape[0]):
        for c in range(dx.shape[1]):
            if is_on(mask, n, c):
                share = zero + dy[n, c] / pixels  # a sum that begins at zero: it has no negative zero
                for p in range(dx.shape[2]):
                    dx[n, c, p] = share
            else:
                clear(dx[n, c])
