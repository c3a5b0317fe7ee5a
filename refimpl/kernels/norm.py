"""Normalisation over (N, C, P), forward and backward: by batch, by groups of channels, and frozen.

Statistics are float64. Those of a batch are 16 partial sums that go on from sample to sample (`runs`), others
are sums of a sample (in the order of `sums`). The variance is the biased one, as batch normalisation uses it.

Where parameters get a gradient for each sample, it is added in sample order, in the dtype of the gradient: so
the sum may go on from part to part of a batch (`more`).

Source: Ioffe & Szegedy 2015, Algorithm 1; Wu & He 2018, eq. 1-7. Derived: the backward passes.
"""

from __future__ import annotations

import math

import numpy as np

from refimpl.kernels import runs
from refimpl.kernels.arrays import DOUBLE
from refimpl.kernels.checked import checked, given, mask, written
from refimpl.kernels.jit import kernel, large_kernel
from refimpl.kernels.panels import clear
from refimpl.kernels.plain import add_pairwise, is_on
from refimpl.kernels.sums import PARTIAL_SUMS, wide_product, wide_spread, wide_total

MAPS, RESULT = given("NCP"), written("NCP")
SAVED = given("C", DOUBLE)  # a statistic of the batch that the forward pass has written
AFFINE = {"gamma": given("C"), "beta": given("C")}
FROZEN = {"gamma": given("C"), "mean": given("C"), "variance": given("C")}
GRADIENTS = {"dgamma": written("C"), "dbeta": written("C"), "dx": RESULT}


@kernel
def _normalise(x, mean, scale, gamma, beta, normalised, y):
    """Normalise one channel of one sample."""
    for p in range(x.size):
        normalised[p] = (np.float64(x[p]) - mean) * scale
        y[p] = gamma * normalised[p] + beta


@kernel
def _line(gamma, beta, mean, inverse_std, c):
    """Slope and shift of a channel's normalisation: y = slope * x + shift."""
    slope = np.float64(gamma[c]) * inverse_std[c]
    return slope, np.float64(beta[c]) - mean[c] * slope


@checked(x=MAPS, **AFFINE, mean=written("C", DOUBLE), inverse_std=written("C", DOUBLE), y=RESULT)
@large_kernel
def batch_norm_forward(x, gamma, beta, eps, below, mean, inverse_std, y):
    """y = gamma * (x - mean)/std + beta behind an activation; keeps the mean and 1/std of each channel.

    below: the slope of the activation where its input is not positive (see `runs`), 1 for none.
    Sums are of the distances to a channel's first entry, so that a large mean costs no digits.
    """
    n_samples, channels, pixels = x.shape
    count, flat, out, width = n_samples * pixels, x.reshape(-1), y.reshape(-1), 2 * PARTIAL_SUMS
    sums = np.zeros((channels, 2, PARTIAL_SUMS))
    partial = sums.reshape(-1)
    for i in range(n_samples * channels if pixels > 0 else 0):
        c = i % channels
        runs.add_moments(i * pixels, pixels, flat, np.float64(x[0, c, 0]), partial, c * width)
    for c in range(channels if count > 0 else 0):
        distance = add_pairwise(sums[c, 0]) / count
        variance = add_pairwise(sums[c, 1]) / count - distance * distance
        variance = 0.0 if variance < 0.0 else variance
        mean[c] = np.float64(x[0, c, 0]) + distance
        inverse_std[c] = 1.0 / math.sqrt(variance + eps)
    for i in range(n_samples * channels):
        slope, shift = _line(gamma, beta, mean, inverse_std, i % channels)
        runs.affine(i * pixels, pixels, flat, (slope, shift, np.float64(below)), out)


@checked(dy=MAPS, x=MAPS, mean=SAVED, inverse_std=SAVED, **AFFINE, **GRADIENTS)
@large_kernel
def batch_norm_backward(dy, x, mean, inverse_std, gamma, beta, below, dgamma, dbeta, dx):
    """dx = gamma/std * (g - mean(g) - n * mean(g * n)), n = (x - mean)/std; dgamma, dbeta written.

    g is dy before the activation.
    """
    n_samples, channels, pixels = dy.shape
    count, out, width = n_samples * pixels, dx.reshape(-1), 2 * PARTIAL_SUMS
    flat, flat_x, levels = dy.reshape(-1), x.reshape(-1), np.zeros((2, channels))
    sums = np.zeros((channels, 2, PARTIAL_SUMS))
    partial = sums.reshape(-1)
    for i in range(n_samples * channels):
        c = i % channels
        slope, shift = _line(gamma, beta, mean, inverse_std, c)
        line = (slope, shift, np.float64(below))
        runs.add_slopes(i * pixels, pixels, flat, flat_x, line, mean[c], partial, c * width)
    for c in range(channels):
        plain_sum, weighted_sum = add_pairwise(sums[c, 0]), add_pairwise(sums[c, 1]) * inverse_std[c]
        dbeta[c] = plain_sum
        dgamma[c] = weighted_sum
        scale = np.float64(gamma[c]) * inverse_std[c]
        levels[0, c] = -scale * (weighted_sum / count) * inverse_std[c]
        levels[1, c] = -scale * (plain_sum / count) - levels[0, c] * mean[c]
    for i in range(n_samples * channels):
        c = i % channels
        slope, shift = _line(gamma, beta, mean, inverse_std, c)
        line, factors = (slope, shift, np.float64(below)), (slope, levels[0, c], levels[1, c])
        runs.combine(i * pixels, pixels, flat, flat_x, line, factors, out)


@checked(x=MAPS, **AFFINE, normalised=RESULT, inverse_std=written("NG", DOUBLE), y=RESULT)
@large_kernel
def group_norm_forward(x, gamma, beta, eps, normalised, inverse_std, y):
    """y = gamma * normalised + beta, with the statistics of each sample's G groups of channels."""
    n_samples, channels, pixels = x.shape
    groups, flat = inverse_std.shape[1], x.reshape(-1)
    size = channels // groups * pixels
    for n in range(n_samples):
        for g in range(groups):
            start = (n * groups + g) * size
            mean = wide_total(flat, start, size) / size
            scale = 1.0 / math.sqrt(wide_spread(flat, start, size, mean) / size + eps)
            inverse_std[n, g] = scale
            for c in range(g * channels // groups, (g + 1) * channels // groups):
                _normalise(x[n, c], mean, scale, gamma[c], beta[c], normalised[n, c], y[n, c])


@checked(dy=MAPS, normalised=MAPS, inverse_std=given("NG", DOUBLE), gamma=given("C"), **GRADIENTS)
@large_kernel
def group_norm_backward(dy, normalised, inverse_std, gamma, more, dgamma, dbeta, dx):
    """dx = (gamma dy - mean(gamma dy) - normalised * mean(gamma dy * normalised))/std, means over groups."""
    n_samples, channels, pixels = dy.shape
    groups, flat, flat_normalised = inverse_std.shape[1], dy.reshape(-1), normalised.reshape(-1)
    size = channels // groups * pixels
    if not more:
        clear(dgamma)
        clear(dbeta)
    for n in range(n_samples):
        for g in range(groups):
            plain_sum, weighted_sum = 0.0, 0.0
            for c in range(g * channels // groups, (g + 1) * channels // groups):
                start = (n * channels + c) * pixels
                total = wide_total(flat, start, pixels)
                product = wide_product(flat, start, flat_normalised, start, pixels)
                dbeta[c] += dbeta.dtype.type(total)
                dgamma[c] += dgamma.dtype.type(product)
                plain_sum += np.float64(gamma[c]) * total
                weighted_sum += np.float64(gamma[c]) * product
            mean, slope, scale = plain_sum / size, weighted_sum / size, np.float64(inverse_std[n, g])
            for c in range(g * channels // groups, (g + 1) * channels // groups):
                for p in range(pixels):
                    own = np.float64(gamma[c]) * dy[n, c, p]
                    dx[n, c, p] = scale * (own - mean - normalised[n, c, p] * slope)


@checked(x=MAPS, **AFFINE, mean=given("C"), variance=given("C"), mask=mask("NC"), y=RESULT)
@large_kernel
def frozen_norm_forward(x, gamma, beta, mean, variance, eps, mask, y):
    """y = gamma * (x - mean)/sqrt(variance + eps) + beta with given statistics; zero where closed."""
    (n_samples, channels, pixels), flat, out = x.shape, x.reshape(-1), y.reshape(-1)
    for i in range(n_samples * channels):
        n, c = i // channels, i % channels
        if is_on(mask, n, c):
            slope = gamma[c] / math.sqrt(np.float64(variance[c]) + eps)
            shift = beta[c] - mean[c] * slope
            runs.affine(i * pixels, pixels, flat, (slope, shift, 1.0), out)
        else:
            clear(y[n, c])


@checked(dy=MAPS, x=MAPS, **FROZEN, mask=mask("NC"), **GRADIENTS)
@large_kernel
def frozen_norm_backward(dy, x, gamma, mean, variance, eps, mask, more, dgamma, dbeta, dx):
    """dx = gamma/sqrt(variance + eps) * dy; zero where closed."""
    n_samples, channels, pixels = dy.shape
    flat, flat_x, out = dy.reshape(-1), x.reshape(-1), dx.reshape(-1)
    if not more:
        clear(dgamma)
        clear(dbeta)
    for n in range(n_samples):
        for c in range(channels):
            if is_on(mask, n, c):
                start, scale = (n * channels + c) * pixels, 1.0 / math.sqrt(np.float64(variance[c]) + eps)
                total = wide_total(flat, start, pixels)
                product = wide_product(flat, start, flat_x, start, pixels) - np.float64(mean[c]) * total
                dbeta[c] += dbeta.dtype.type(total)
                dgamma[c] += dgamma.dtype.type(product * scale)
                runs.affine(start, pixels, flat, (np.float64(gamma[c]) * scale, 0.0, 1.0), out)
            else:
                clear(dx[n, c])
