"""Batch normalisation over (N, C, P) with the statistics of the batch, forward and backward.

Sums run in float64 in (n, p) order. The variance is the biased one, as batch normalisation uses it.
Source: Ioffe & Szegedy 2015, Algorithm 1. Derived: the backward pass.
"""

from __future__ import annotations

import math

import numpy as np

from refimpl.kernels.jit import kernel


@kernel
def batch_norm_forward(x, gamma, beta, eps, normalised, inverse_std, y):
    """y = gamma * normalised + beta; keeps `normalised` (N,C,P) and `inverse_std` (C,)."""
    n_samples, channels, pixels = x.shape
    count = n_samples * pixels
    for c in range(channels):
        total = 0.0
        for n in range(n_samples):
            for p in range(pixels):
                total += np.float64(x[n, c, p])
        mean = total / count
        squares = 0.0
        for n in range(n_samples):
            for p in range(pixels):
                squares += (np.float64(x[n, c, p]) - mean) ** 2
        scale = 1.0 / math.sqrt(squares / count + eps)
        inverse_std[c] = scale
        for n in range(n_samples):
            for p in range(pixels):
                normalised[n, c, p] = (np.float64(x[n, c, p]) - mean) * scale
                y[n, c, p] = gamma[c] * normalised[n, c, p] + beta[c]


@kernel
def batch_norm_backward(dy, normalised, inverse_std, gamma, dgamma, dbeta, dx):
    """dx = gamma/std * (dy - mean(dy) - normalised * mean(dy * normalised)); dgamma, dbeta written."""
    n_samples, channels, pixels = dy.shape
    count = n_samples * pixels
    for c in range(channels):
        plain_sum, weighted_sum = 0.0, 0.0
        for n in range(n_samples):
            for p in range(pixels):
                plain_sum += np.float64(dy[n, c, p])
                weighted_sum += np.float64(dy[n, c, p]) * np.float64(normalised[n, c, p])
        dbeta[c] = plain_sum
        dgamma[c] = weighted_sum
        scale = np.float64(gamma[c]) * np.float64(inverse_std[c])
        for n in range(n_samples):
            for p in range(pixels):
                centred = dy[n, c, p] - plain_sum / count - normalised[n, c, p] * (weighted_sum / count)
                dx[n, c, p] = scale * centred
