"""Readable twins of the conv and linear kernels: the formula, one loop per index, masks honoured.

Every output element is one chain of fused multiply-adds in a fixed order (noted at each function),
starting from zero, or 16 such chains added pairwise; the bias is added last. A closed channel's output is
exactly zero and nothing of it is computed; leaving a closed input channel out of the chain changes no bit,
because its terms are `fma(w, 0, acc) = acc`. That holds for finite numbers: the fast kernels do multiply some
of these zeros, and zeros of the padding, and get NaN where w is infinite or NaN. NaN in what an open channel
reads comes out as NaN in both.

Masks are boolean (N, C), or (0, 0) for "all on". Shapes: x (N, C, H, W), weight (K, C, kh, kw),
y (N, K, P, Q); linear x (N, I), weight (O, I), y (N, O). A mask of G columns over I > G features stands
for G groups of I/G consecutive features: the channels of a flattened image.

Source: mathematics.md §2.1 (what is skipped). The order of the sums is derived.
"""

from __future__ import annotations

import numpy as np

from refimpl.kernels.elementary import fma
from refimpl.kernels.jit import kernel


@kernel
def is_on(mask, n, c):
    """Whether channel c of sample n takes part; an empty mask means that all do."""
    return mask.shape[0] == 0 or mask[n, c]


@kernel
def _taps(size, kernel_size, stride, pad, offset):
    """First and one-past-last output position whose tap at `offset` lies inside an input of `size`."""
    first = max(0, (pad - offset + stride - 1) // stride)
    last = (size - 1 + pad - offset) // stride + 1
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

    A fixed number of them, not the machine's vector width, so that the order is the same everywhere.
    """
    half = 8
    while half > 0:
        for i in range(half):
            partial[i] += partial[i + half]
        half //= 2
    return partial[0]


@kernel
def conv_forward(x, weight, bias, stride, pad, reads, writes, y):
    """y = conv(x, weight) + bias on the channels of `writes`. Chain: (c, ky, kx)."""
    n_samples, channels, height, width = x.shape
    filters, _, kh, kw = weight.shape
    rows, cols = y.shape[2], y.shape[3]
    y[:] = 0
    for n in range(n_samples):
        for k in range(filters):
            if not is_on(writes, n, k):
                continue
            for c in range(channels):
                if not is_on(reads, n, c):
                    continue
                for ky in range(kh):
                    top, bottom = _taps(height, kh, stride[0], pad[0], ky)
                    for kx in range(kw):
                        left, right = _taps(width, kw, stride[1], pad[1], kx)
                        w = weight[k, c, ky, kx]
                        for p in range(top, min(bottom, rows)):
                            line = x[n, c, p * stride[0] + ky - pad[0]]
                            first = kx - pad[1]
                            for q in range(left, min(right, cols)):
                                y[n, k, p, q] = fma(w, line[q * stride[1] + first], y[n, k, p, q])
            for p in range(rows):
                for q in range(cols):
                    y[n, k, p, q] += bias[k]


@kernel
def conv_input_grad(dy, weight, stride, pad, dy_mask, dx_mask, dx):
    """dx = transposed convolution of dy, on the channels of `dx_mask`. Chain: (k, ky, kx)."""
    n_samples, channels, height, width = dx.shape
    filters, _, kh, kw = weight.shape
    rows, cols = dy.shape[2], dy.shape[3]
    dx[:] = 0
    for n in range(n_samples):
        for c in range(channels):
            if not is_on(dx_mask, n, c):
                continue
            for k in range(filters):
                if not is_on(dy_mask, n, k):
                    continue
                for ky in range(kh):
                    top, bottom = _taps(height, kh, stride[0], pad[0], ky)
                    for kx in range(kw):
                        left, right = _taps(width, kw, stride[1], pad[1], kx)
                        w = weight[k, c, ky, kx]
                        for p in range(top, min(bottom, rows)):
                            line = dx[n, c, p * stride[0] + ky - pad[0]]
                            first = kx - pad[1]
                            for q in range(left, min(right, cols)):
                                at = q * stride[1] + first
                                line[at] = fma(w, dy[n, k, p, q], line[at])


@kernel
def conv_weight_grad(x, dy, stride, pad, x_mask, dy_mask, dweight, dbias):
    """dweight, dbias summed over the batch. Chain of a weight: (n, p, q).

    The bias takes each sample's `interleaved_sum` in sample order: a single chain over its pixels would be
    bound by the latency of an addition and cost a fifth of the whole pass.
    """
    n_samples, channels, height, width = x.shape
    filters, _, kh, kw = dweight.shape
    rows, cols = dy.shape[2], dy.shape[3]
    dweight[:] = 0
    dbias[:] = 0
    for n in range(n_samples):
        for k in range(filters):
            if not is_on(dy_mask, n, k):
                continue
            dbias[k] += interleaved_sum(dy[n, k].ravel())
            for c in range(channels):
                if not is_on(x_mask, n, c):
                    continue
                for ky in range(kh):
                    top, bottom = _taps(height, kh, stride[0], pad[0], ky)
                    for kx in range(kw):
                        left, right = _taps(width, kw, stride[1], pad[1], kx)
                        total = dweight[k, c, ky, kx]
                        for p in range(top, min(bottom, rows)):
                            line = x[n, c, p * stride[0] + ky - pad[0]]
                            first = kx - pad[1]
                            for q in range(left, min(right, cols)):
                                total = fma(dy[n, k, p, q], line[q * stride[1] + first], total)
                        dweight[k, c, ky, kx] = total


@kernel
def linear_forward(x, weight, bias, reads, writes, y):
    """y = x weight^T + bias on the outputs of `writes`. 16 chains: i = j, j + 16, ..., added pairwise.

    With a single chain per output, vectors would have to run along samples or outputs, and one of the
    operands would have to be transposed first; this way both are read as they lie (`dot`).
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
def linear_input_grad(dy, weight, dy_mask, dx_mask, dx):
    """dx = dy weight on the features of `dx_mask`. Chain: o."""
    n_samples, outputs = dy.shape
    features = weight.shape[1]
    size = features // max(1, dx_mask.shape[1])
    dx[:] = 0
    for n in range(n_samples):
        for o in range(outputs):
            if not is_on(dy_mask, n, o):
                continue
            for start in range(0, features, size):
                if is_on(dx_mask, n, start // size):
                    for i in range(start, start + size):
                        dx[n, i] = fma(dy[n, o], weight[o, i], dx[n, i])


@kernel
def linear_weight_grad(x, dy, x_mask, dy_mask, dweight, dbias):
    """dweight = dy^T x and dbias = column sums of dy. Chains: n."""
    n_samples, features = x.shape
    outputs = dy.shape[1]
    size = features // max(1, x_mask.shape[1])
    dweight[:] = 0
    dbias[:] = 0
    for n in range(n_samples):
        for o in range(outputs):
            if not is_on(dy_mask, n, o):
                continue
            dbias[o] += dy[n, o]
            for start in range(0, features, size):
                if is_on(x_mask, n, start // size):
                    for i in range(start, start + size):
                        dweight[o, i] = fma(dy[n, o], x[n, i], dweight[o, i])
