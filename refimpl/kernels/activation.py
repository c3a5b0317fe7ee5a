"""Element-wise functions on (N, C, P) arrays and their derivatives, and products of a mask with a map.

P is the number of pixels of a channel (1 for vectors). Masks are boolean (N, C), empty for "all on";
closed channels are neither read nor computed and come out as zero. The transcendental functions are
evaluated in float64 (`elementary`) and rounded once.

Source: mathematics.md §2.1 (ReLU, with derivative 0 at 0), §2.3b (mask products).
"""

from __future__ import annotations

import numpy as np

from refimpl.kernels import elementary
from refimpl.kernels.arrays import FLOATS
from refimpl.kernels.checked import checked, given, mask, written
from refimpl.kernels.jit import inlined, kernel, large_kernel
from refimpl.kernels.panels import clear
from refimpl.kernels.plain import is_on
from refimpl.kernels.sums import wide_product, wide_total


@kernel
def rectify(x, sign, y):
    """y = x where sign > 0 or is not a number, else 0."""
    zero = y.dtype.type(0)  # a plain 0 would make the selection, and the loop, one of float64
    for p in range(x.size):
        y[p] = zero if sign[p] <= zero else x[p]


@checked(x=given("NCP"), mask=mask("NC"), y=written("NCP"))
@large_kernel
def relu_forward(x, mask, y):
    """y = max(x, 0); NaN passes through."""
    relu_backward(x, x, mask, y)


@checked(dy=given("NCP"), y=given("NCP"), mask=mask("NC"), dx=written("NCP"))
@large_kernel
def relu_backward(dy, y, mask, dx):
    """dx = dy where the output y (or the input, which has its sign) is positive or NaN, else 0."""
    if mask.shape[0] == 0:  # one long loop: channels may be single numbers
        rectify(dy.reshape(-1), y.reshape(-1), dx.reshape(-1))
        return
    for n in range(y.shape[0]):
        for c in range(y.shape[1]):
            if mask[n, c]:
                rectify(dy[n, c], y[n, c], dx[n, c])
            else:
                clear(dx[n, c])


@checked(x=given("NCP"), mask=mask("NC"), y=written("NCP"))
@large_kernel
def leaky_forward(x, slope, mask, y):
    """y = x where positive, else slope * x; NaN passes through."""
    leaky_backward(x, x, slope, mask, y)


@checked(dy=given("NCP"), x=given("NCP"), mask=mask("NC"), dx=written("NCP"))
@large_kernel
def leaky_backward(dy, x, slope, mask, dx):
    """dx = dy where x is positive or NaN, else slope * dy."""
    zero, factor = dx.dtype.type(0), dx.dtype.type(slope)
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            if is_on(mask, n, c):
                for p in range(x.shape[2]):
                    dx[n, c, p] = factor * dy[n, c, p] if x[n, c, p] <= zero else dy[n, c, p]
            else:
                clear(dx[n, c])


@inlined
def _apply(function, x, mask, y):
    """y = function(x), evaluated in float64."""
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            on = is_on(mask, n, c)
            for p in range(x.shape[2]):
                y[n, c, p] = function(np.float64(x[n, c, p])) if on else 0.0


@inlined
def _apply_slope(function, dy, x, mask, dx):
    """dx = dy * function(x), evaluated in float64."""
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            on = is_on(mask, n, c)
            for p in range(x.shape[2]):
                dx[n, c, p] = dy[n, c, p] * function(np.float64(x[n, c, p])) if on else 0.0


@checked(x=given("NCP"), mask=mask("NC"), y=written("NCP"))
@large_kernel
def softplus_forward(x, mask, y):
    """y = log(1 + e**x)."""
    _apply(elementary.softplus, x, mask, y)


@checked(dy=given("NCP"), x=given("NCP"), mask=mask("NC"), dx=written("NCP"))
@large_kernel
def softplus_backward(dy, x, mask, dx):
    """dx = dy * sigmoid(x)."""
    _apply_slope(elementary.sigmoid, dy, x, mask, dx)


@checked(x=given("NCP"), mask=mask("NC"), y=written("NCP"))
@large_kernel
def tanh_forward(x, mask, y):
    """y = tanh(x)."""
    _apply(elementary.tanh, x, mask, y)


@inlined
def _tanh_slope(y):
    """The derivative of tanh from its value."""
    return 1.0 - y * y


@checked(dy=given("NCP"), y=given("NCP"), mask=mask("NC"), dx=written("NCP"))
@large_kernel
def tanh_backward(dy, y, mask, dx):
    """dx = dy * (1 - y**2), from the output y."""
    _apply_slope(_tanh_slope, dy, y, mask, dx)


@checked(u=given("NC"), value=written("NC"), slope=written("NC"))
@large_kernel
def sigmoid_scaled(u, tau, value, slope):
    """value = sigmoid(u/tau) and slope = its derivative w.r.t. u, on (N, C) arrays."""
    for n in range(u.shape[0]):
        for c in range(u.shape[1]):
            scaled = np.float64(u[n, c]) / tau
            s = elementary.sigmoid(scaled)
            value[n, c] = s
            slope[n, c] = s * elementary.sigmoid(-scaled) / tau  # 1 - s would cancel for large u


@checked(x=given("NCP"), factor=given("NC"), y=written("NCP"))
@large_kernel
def scale_channels(x, factor, y):
    """y[n, c, :] = factor[n, c] * x[n, c, :]; a zero factor gives zeros without reading x."""
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            f = factor[n, c]
            if f == 0:
                clear(y[n, c])
            else:
                for p in range(x.shape[2]):
                    y[n, c, p] = f * x[n, c, p]


@kernel
def _has_nan(x):
    """Whether an entry is NaN."""
    found = False
    for i in range(x.size):
        found |= x[i] != x[i]
    return found


@checked(decision=given("NC"), y=written("NCP"))
@large_kernel
def spread_nan(decision, y):
    """y[n, c, :] = NaN where decision[n, c] is NaN: an undecided channel must not pass for open."""
    if not _has_nan(decision.reshape(-1)):
        return
    for n in range(y.shape[0]):
        for c in range(y.shape[1]):
            if decision[n, c] != decision[n, c]:
                for p in range(y.shape[2]):
                    y[n, c, p] = np.nan


@checked(a=given("NCP"), b=given("NCP"), out=written("NC", *FLOATS))
@large_kernel
def channel_products(a, b, out):
    """out[n, c] = sum over pixels of a * b, in float64 in the order of `sums`."""
    samples, channels, pixels = a.shape
    a, b = a.reshape(-1), b.reshape(-1)
    for n in range(samples):
        for c in range(channels):
            start = (n * channels + c) * pixels
            out[n, c] = wide_product(a, start, b, start, pixels)


@checked(x=given("NCP"), mask=mask("NC"), out=written("NC"))
@large_kernel
def channel_means(x, mask, out):
    """out[n, c] = mean over pixels, in float64 in the order of `sums`; zero where closed."""
    samples, channels, pixels = x.shape
    x = x.reshape(-1)
    for n in range(samples):
        for c in range(channels):
            on = is_on(mask, n, c)
            out[n, c] = wide_total(x, (n * channels + c) * pixels, pixels) / pixels if on else 0.0


@checked(dy=given("NC"), mask=mask("NC"), dx=written("NCP"))
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
