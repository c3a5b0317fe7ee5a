"""Batch normalisation against NumPy's statistics, its gradient against central differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.kernels import norm

EPS = 1e-5


def run_forward(x, gamma, beta, below=1.0):
    y, (mean, inverse_std) = np.full_like(x, np.nan), np.full((2, x.shape[1]), np.nan)
    norm.batch_norm_forward(x, gamma, beta, EPS, below, mean, inverse_std, y)
    return y, mean, inverse_std


def make(seed, dtype, n, channels, pixels):
    rng = np.random.default_rng(seed)
    x = 3 + 2 * rng.standard_normal((n, channels, pixels))
    gamma, beta = rng.standard_normal(channels), rng.standard_normal(channels)
    return x.astype(dtype), gamma.astype(dtype), beta.astype(dtype), rng


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([np.float32, np.float64]),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(2, 37),
)
def test_forward_is_the_formula(seed, dtype, n, channels, pixels):
    x, gamma, beta, _ = make(seed, dtype, n, channels, pixels)
    y, mean, inverse_std = run_forward(x, gamma, beta)
    wide = x.astype(float)
    std = np.sqrt(wide.var(axis=(0, 2)) + EPS)
    expected = (wide - wide.mean(axis=(0, 2))[:, None]) / std[:, None]
    tolerance = 2e-5 if dtype == np.float32 else 1e-11
    np.testing.assert_allclose(inverse_std, 1 / std, rtol=tolerance)
    np.testing.assert_allclose(mean, wide.mean(axis=(0, 2)), rtol=tolerance)
    np.testing.assert_allclose(y, gamma[:, None] * expected + beta[:, None], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("below", [1.0, 0.1, 0.0])
@pytest.mark.parametrize("shape", [(1, 2, 5), (4, 3, 1), (3, 2, 8)])
def test_backward_against_central_differences(shape, below):
    x, gamma, beta, rng = make(5, np.float64, *shape)
    dy = rng.standard_normal(shape)
    _, mean, inverse_std = run_forward(x, gamma, beta, below)
    dgamma, dbeta, dx = np.full_like(gamma, np.nan), np.full_like(beta, np.nan), np.full_like(x, np.nan)
    norm.batch_norm_backward(dy, x, mean, inverse_std, gamma, beta, below, dgamma, dbeta, dx)

    def value(t, ux, ug, ub):
        return float((run_forward(x + t * ux, gamma + t * ug, beta + t * ub, below)[0] * dy).sum())

    for _ in range(5):
        ux, ug, ub = (rng.standard_normal(a.shape) for a in (x, gamma, beta))
        h = 1e-5
        numeric = (value(h, ux, ug, ub) - value(-h, ux, ug, ub)) / (2 * h)
        exact = float((dx * ux).sum() + dgamma @ ug + dbeta @ ub)
        assert abs(numeric - exact) <= 1e-8 * max(1.0, abs(exact))


def test_single_precision_backward_agrees_with_double():
    x, gamma, beta, rng = make(6, np.float64, 6, 4, 33)
    dy = rng.standard_normal(x.shape)
    results = []
    for dtype in (np.float64, np.float32):
        given = [array.astype(dtype) for array in (dy, x, gamma, beta)]
        _, mean, inverse_std = run_forward(*given[1:])
        dgamma, dbeta = np.empty(4, dtype=dtype), np.empty(4, dtype=dtype)
        dx = np.empty(x.shape, dtype=dtype)
        norm.batch_norm_backward(*given[:2], mean, inverse_std, *given[2:], 1.0, dgamma, dbeta, dx)
        results.append((dgamma, dbeta, dx))
    for wide, narrow in zip(*results, strict=True):
        np.testing.assert_allclose(narrow, wide, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_activation_behind_it_gives_the_same_bits_as_apart(dtype):
    x, gamma, beta, rng = make(7, dtype, 3, 4, 21)
    dy = rng.standard_normal(x.shape).astype(dtype)
    plain, mean, inverse_std = run_forward(x, gamma, beta)
    for below in (0.0, 0.25):
        y, *_ = run_forward(x, gamma, beta, below)
        bent = np.where(plain <= 0, dtype(0) if below == 0 else dtype(below) * plain, plain)
        assert y.tobytes() == bent.tobytes()
        slope = np.where(plain <= 0, dtype(0) if below == 0 else dtype(below) * dy, dy)
        found = []
        for gradient, own in ((dy, below), (slope, 1.0)):
            sums, dx = np.empty((2, 4), dtype), np.empty_like(x)
            norm.batch_norm_backward(gradient, x, mean, inverse_std, gamma, beta, own, *sums, dx)
            found.append(sums.tobytes() + dx.tobytes())
        assert found[0] == found[1]


def test_a_large_mean_costs_few_digits():
    x, gamma, beta, _ = make(8, np.float64, 6, 2, 9)
    _, mean, inverse_std = run_forward(x + 1e6, gamma, beta)
    _, near, wanted = run_forward(x, gamma, beta)
    np.testing.assert_allclose(inverse_std, wanted, rtol=1e-8)
    np.testing.assert_allclose(mean, near + 1e6, rtol=1e-14)
