"""Batch normalisation over (N, C, P) with the statistics of the batch, forward and backward.

Statistics are float64: the sums of the samples (in the order of `sums`) added in sample order. The
variance is the biased one, as batch normalisation uses it.

Source: Ioffe & Szegedy 2015, Algorithm 1. Derived: the backward pass.
"""

from __future__ import annotations

import math

import numpy as np

from refimpl.kernels.arrays import DOUBLE, FLOATS
from refimpl.kernels.checked import checked, given, written
from refimpl.kernels.jit import kernel
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
@kernel
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
@kernel
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
        scale = np.float64(gamma[c]) * np.float64(inverse_std[c])
        for n in range(n_samples):
            means = plain_sum / count, weighted_sum / count
            _denormalise(dy[n, c], normalised[n, c], means[0], means[1], scale, dx[n, c])
