"""Normalisation over (N, C, P), forward and backward: by batch, by groups of channels, and frozen.

Statistics are float64: the sums of the samples (in the order of `sums`) added in sample order. The
variance is the biased one, as batch normalisation uses it.

Where parameters get a gradient for each sample, it is added in sample order, in the dtype of the gradient: so
the sum may go on from part to part of a batch (`more`).

Source: Ioffe & Szegedy 2015, Algorithm 1; Wu & He 2018, eq. 1-7. Derived: the backward passes.
"""

from __future__ import annotations

import math

import numpy as np

from refimpl.kernels.arrays import DOUBLE, FLOATS
from refimpl.kernels.checked import checked, given, mask, written
from refimpl.kernels.jit import kernel, large_kernel
from refimpl.kernels.panels import clear
from refimpl.kernels.plain import is_on
from refimpl.kernels.sums import wide_product, wide_spread, wide_total


@kernel
def _normalise(x, mean, scale, gamma, beta, normalised, y):
    """Normalise one channel of one sample."""
    for p in range(x.size):
        normalised[p] = (np.float64(x[p]) - mean) * scale
        y[p] = gamma * normalised[p] + beta


@checked(
    x=given("NCP"),
    gamma=given("C"),
    beta=given("C"),
    normalised=written("NCP"),
    inverse_std=written("C", *FLOATS),
    y=written("NCP"),
)
@large_kernel
def batch_norm_forward(x, gamma, beta, eps, normalised, inverse_std, y):
    """y = gamma * normalised + beta; keeps `normalised` (N,C,P) and `inverse_std` (C,)."""
    n_samples, channels, pixels = x.shape
    count, flat = n_samples * pixels, x.reshape(-1)
    for c in range(channels):
        mean, variance = 0.0, 0.0
        for n in range(n_samples):
            mean += wide_total(flat, (n * channels + c) * pixels, pixels) / count
        for n in range(n_samples):
            variance += wide_spread(flat, (n * channels + c) * pixels, pixels, mean) / count
        scale = 1.0 / math.sqrt(variance + eps)
        inverse_std[c] = scale
        for n in range(n_samples):
            _normalise(x[n, c], mean, scale, gamma[c], beta[c], normalised[n, c], y[n, c])


@kernel
def _denormalise(dy, normalised, mean, slope, scale, dx):
    """The input gradient of one channel of one sample."""
    for p in range(dy.size):
        dx[p] = scale * (dy[p] - mean - normalised[p] * slope)


@checked(
    dy=given("NCP"),
    normalised=given("NCP"),
    inverse_std=given("C", DOUBLE),
    gamma=given("C"),
    dgamma=written("C"),
    dbeta=written("C"),
    dx=written("NCP"),
)
@large_kernel
def batch_norm_backward(dy, normalised, inverse_std, gamma, dgamma, dbeta, dx):
    """dx = gamma/std * (dy - mean(dy) - normalised * mean(dy * normalised)); dgamma, dbeta written."""
    n_samples, channels, pixels = dy.shape
    count, flat, flat_normalised = n_samples * pixels, dy.reshape(-1), normalised.reshape(-1)
    for c in range(channels):
        plain_sum, weighted_sum = 0.0, 0.0
        for n in range(n_samples):
            start = (n * channels + c) * pixels
            plain_sum += wide_total(flat, start, pixels)
            weighted_sum += wide_product(flat, start, flat_normalised, start, pixels)
        dbeta[c] = plain_sum
        dgamma[c] = weighted_sum
        mean, slope = plain_sum / count, weighted_sum / count
        scale = np.float64(gamma[c]) * np.float64(inverse_std[c])
        for n in range(n_samples):
            _denormalise(dy[n, c], normalised[n, c], mean, slope, scale, dx[n, c])


@checked(
    x=given("NCP"),
    gamma=given("C"),
    beta=given("C"),
    normalised=written("NCP"),
    inverse_std=written("NG", DOUBLE),
    y=written("NCP"),
)
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


@checked(
    dy=given("NCP"),
    normalised=given("NCP"),
    inverse_std=given("NG", DOUBLE),
    gamma=given("C"),
    dgamma=written("C"),
    dbeta=written("C"),
    dx=written("NCP"),
)
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


@checked(
    x=given("NCP"),
    gamma=given("C"),
    beta=given("C"),
    mean=given("C"),
    variance=given("C"),
    mask=mask("NC"),
    y=written("NCP"),
)
@large_kernel
def frozen_norm_forward(x, gamma, beta, mean, variance, eps, mask, y):
    """y = gamma * (x - mean)/sqrt(variance + eps) + beta with given statistics; zero where closed."""
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            if is_on(mask, n, c):
                slope = gamma[c] / math.sqrt(np.float64(variance[c]) + eps)
                shift = beta[c] - mean[c] * slope
                for p in range(x.shape[2]):
                    y[n, c, p] = slope * x[n, c, p] + shift
            else:
                clear(y[n, c])


@checked(
    dy=given("NCP"),
    x=given("NCP"),
    gamma=given("C"),
    mean=given("C"),
    variance=given("C"),
    mask=mask("NC"),
    dgamma=written("C"),
    dbeta=written("C"),
    dx=written("NCP"),
)
@large_kernel
def frozen_norm_backward(dy, x, gamma, mean, variance, eps, mask, more, dgamma, dbeta, dx):
    """dx = gamma/sqrt(variance + eps) * dy; zero where closed."""
    n_samples, channels, pixels = dy.shape
    flat, flat_x = dy.reshape(-1), x.reshape(-1)
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
                for p in range(pixels):
                    dx[n, c, p] = gamma[c] * scale * dy[n, c, p]
            else:
                clear(dx[n, c])
