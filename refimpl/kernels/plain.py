"""Readable twins of the conv and linear kernels: the formula, with one loop for each index.

Every output element is one chain of fused multiply-adds in a fixed order (noted at each function),
starting from zero, or 16 such chains added pairwise; the bias is added last. A closed channel's output is
exactly zero and nothing of it is computed; leaving a closed input channel out of the chain changes no bit,
because its terms are `fma(w, 0, acc) = acc`. That holds for finite numbers: the fast kernels do multiply some
of these zeros, and zeros of the padding, and get NaN where w is infinite or NaN. If an open
channel reads NaN, both kernels give NaN.

Masks are boolean (N, C), or (0, 0) for "all on". Shapes: x (N, C, H, W), weight (K, C/G, kh, kw),
y (N, K, P, Q), where each of G groups of output channels reads C/G input channels of its own; linear
x (N, I), weight (O, I), y (N, O). A mask of J columns over I > J features stands for J groups of I/J
consecutive features: the channels of a flattened image.

Source: mathematics.md §2.1 (what is skipped). The order of the sums is derived.
"""

from __future__ import annotations

import numpy as np

from refimpl.kernels.elementary import fma
from refimpl.kernels.jit import kernel

OUTPUT, INPUT, WEIGHT = range(3)  # which factor of the terms of a layer is the result


@kernel
def is_on(mask, n, c):
    """Whether channel c of sample n takes part; an empty mask means that all do."""
    return mask.shape[0] == 0 or mask[n, c]


@kernel
def _taps(size, stride, offset):
    """First and one-past-last output position whose tap at `offset` lies inside an input of `size`."""
    first = max(0, (stride - 1 - offset) // stride)
    last = (size - 1 - offset) // stride + 1
    return first, max(first, last)


@kernel
def interleaved_sum(values):
    """Sum in 16 interleaved partial sums, which are then added pairwise."""
    partial = np.zeros(16, dtype=values.dtype)
    for i in range(values.size):
        partial[i % 16] += values[i]
    return add_pairwise(partial)


@kernel
def add_pairwise(partial):
    """The sum of 16 partial sums, as ((0 + 8) + (4 + 12)) + ...: i with i + 8, + 4, + 2, + 1. In place.

    Their number does not depend on the machine's vector width, so that the order is the same everywhere.
    """
    half = 8
    while half > 0:
        for i in range(half):
            partial[i] += partial[i + half]
        half //= 2
    return partial[0]


@kernel
def _conv_terms(result, x, weight, y, stride, pad, dilation, x_mask, y_mask):
    """Add all terms of a convolution to one of its three arrays, each a product of the other two.

    The three passes run over the same terms y[n, k, p, q] ~ weight[k, c, ky, kx] * x[n, first + c, i, j] and
    differ in the factor that is the result: OUTPUT (y), INPUT (x) or WEIGHT. Each of its elements takes its
    terms in the order of these loops.
    """
    height, width = x.shape[2:]
    n_samples, filters, rows, cols = y.shape
    channels, kh, kw = weight.shape[1:]
    groups = x.shape[1] // channels
    for n in range(n_samples):
        for k in range(filters):
            if not is_on(y_mask, n, k):
                continue
            first = k * groups // filters * channels  # of the input channels that output channel k reads
            for c in range(channels):
                if not is_on(x_mask, n, first + c):
                    continue
                for ky in range(kh):
                    down = ky * dilation[0] - pad[0]
                    top, bottom = _taps(height, stride[0], down)
                    for kx in range(kw):
                        along = kx * dilation[1] - pad[1]
                        left, right = _taps(width, stride[1], along)
                        for p in range(top, min(bottom, rows)):
                            i = p * stride[0] + down
                            for q in range(left, min(right, cols)):
                                j = q * stride[1] + along
                                x_at, y_at, tap = (n, first + c, i, j), (n, k, p, q), (k, c, ky, kx)
                                if result == OUTPUT:
                                    y[y_at] = fma(weight[tap], x[x_at], y[y_at])
                                elif result == INPUT:
                                    x[x_at] = fma(weight[tap], y[y_at], x[x_at])
                                else:
                                    weight[tap] = fma(y[y_at], x[x_at], weight[tap])


@kernel
def conv_forward(x, weight, bias, stride, pad, dilation, reads, writes, y):
    """y = conv(x, weight) + bias on the channels of `writes`. Chain: (c, ky, kx)."""
    y[:] = 0
    _conv_terms(OUTPUT, x, weight, y, stride, pad, dilation, reads, writes)
    for n in range(y.shape[0]):
        for k in range(y.shape[1]):
            if is_on(writes, n, k):
                y[n, k] += bias[k]


@kernel
def conv_input_grad(dy, weight, stride, pad, dilation, dy_mask, dx_mask, dx):
    """dx = transposed convolution of dy, on the channels of `dx_mask`. Chain: (k, ky, kx)."""
    dx[:] = 0
    _conv_terms(INPUT, dx, weight, dy, stride, pad, dilation, dx_mask, dy_mask)


@kernel
def conv_weight_grad(x, dy, stride, pad, dilation, x_mask, dy_mask, dweight, dbias):
    """dweight, dbias summed over the batch. Chain of a weight: (n, p, q).

    The bias takes each sample's `interleaved_sum` in sample order: a single chain over its pixels would be
    bound by the latency of an addition and cost a fifth of the whole pass.
    """
    dweight[:] = 0
    dbias[:] = 0
    _conv_terms(WEIGHT, x, dweight, dy, stride, pad, dilation, x_mask, dy_mask)
    for n in range(dy.shape[0]):
        for k in range(dy.shape[1]):
            if is_on(dy_mask, n, k):
                dbias[k] += interleaved_sum(dy[n, k].ravel())


@kernel
def kept_weight_grad(x, dy, stride, pad, kept, dweight, dbias):
    """dweight at the weights that are `kept` (K, C, kh, kw), zero at the others, and dbias.

    Each sample's share is 16 chains over the pixels, i = p * Q + q, i + 16, ..., added pairwise; then the
    samples in order.
    """
    dweight[:] = 0
    dbias[:] = 0
    rows, cols = dy.shape[2:]
    partial = np.zeros(16, dtype=x.dtype)
    for n in range(x.shape[0]):
        for k, c, ky, kx in np.argwhere(kept):
            partial[:] = 0
            for p in range(rows):
                for q in range(cols):
                    i, j = p * stride[0] + ky - pad[0], q * stride[1] + kx - pad[1]
                    if 0 <= i < x.shape[2] and 0 <= j < x.shape[3]:
                        at = (p * cols + q) % 16
                        partial[at] = fma(dy[n, k, p, q], x[n, c, i, j], partial[at])
            dweight[k, c, ky, kx] += add_pairwise(partial)
        for k in range(dy.shape[1]):
            dbias[k] += interleaved_sum(dy[n, k].ravel())


@kernel
def linear_forward(x, weight, bias, reads, writes, y):
    """y = x weight^T + bias on the outputs of `writes`. 16 chains: i = j, j + 16, ..., added pairwise.

    With a single chain per output, vectors would have to run along samples or outputs, and one of the
    operands would have to be transposed first; with 16 chains both are read in place (`dot`).
    """
    n_samples, features = x.shape
    size = features // max(1, reads.shape[1])
    partial = np.zeros(16, dtype=x.dtype)
    y[:] = 0
    for n in range(n_samples):
        for o in range(weight.shape[0]):
            if not is_on(writes, n, o):
                continue
            partial[:] = 0
            for i in range(features):
                if is_on(reads, n, i // size):
                    partial[i % 16] = fma(x[n, i], weight[o, i], partial[i % 16])
            y[n, o] = add_pairwise(partial) + bias[o]


@kernel
def _linear_terms(result, x, weight, y, x_mask, y_mask):
    """`_conv_terms` for a linear layer and two of its passes: INPUT and WEIGHT."""
    n_samples, features = x.shape
    size = features // max(1, x_mask.shape[1])
    for n in range(n_samples):
        for o in range(y.shape[1]):
            if not is_on(y_mask, n, o):
                continue
            for i in range(features):
                if not is_on(x_mask, n, i // size):
                    continue
                if result == INPUT:
                    x[n, i] = fma(y[n, o], weight[o, i], x[n, i])
                else:
                    weight[o, i] = fma(y[n, o], x[n, i], weight[o, i])


@kernel
def linear_input_grad(dy, weight, dy_mask, dx_mask, dx):
    """dx = dy weight on the features of `dx_mask`. Chain: o."""
    dx[:] = 0
    _linear_terms(INPUT, dx, weight, dy, dx_mask, dy_mask)


@kernel
def linear_weight_grad(x, dy, x_mask, dy_mask, dweight, dbias):
    """dweight = dy^T x and dbias = column sums of dy. Chains: n."""
    dweight[:] = 0
    dbias[:] = 0
    _linear_terms(WEIGHT, x, dweight, dy, x_mask, dy_mask)
    for n in range(dy.shape[0]):
        for o in range(dy.shape[1]):
            if is_on(dy_mask, n, o):
                dbias[o] += dy[n, o]
