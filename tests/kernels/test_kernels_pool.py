"""Pooling against NumPy windows, forward and backward, with masks, ties and overlaps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.kernels import pool
from refimpl.kernels.conv import ALL_ON, output_size

DTYPES = (np.float32, np.float64)


@st.composite
def pool_cases(draw):
    """(x, dy, size, (stride, padding), mask): overlapping and gapped windows, ties included."""
    size = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    n, channels = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    height, width = draw(st.integers(3, 11)), draw(st.integers(3, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from(DTYPES))
    x = rng.standard_normal((n, channels, height, width))
    if draw(st.booleans()):
        x = np.maximum(np.round(x), 0)  # many ties, as after ReLU
    pad = tuple(draw(st.integers(0, k // 2)) for k in size)
    dy = rng.standard_normal((n, channels, *output_size((height, width), size, stride, pad)))
    mask = rng.random((n, channels)) < 0.5 if draw(st.booleans()) else ALL_ON
    return x.astype(dtype), dy.astype(dtype), size, (stride, pad), mask


def open_channels(mask, x):
    """`mask` as a full (N, C) array."""
    return mask if mask.size else np.ones(x.shape[:2], dtype=bool)


def each_window(x, size, step, shape):
    """(n, c, p, q, rows, cols) of every window, in images that begin with their padding."""
    for n, c, p, q in np.ndindex(*shape):
        top, left = p * step[0][0], q * step[0][1]
        yield n, c, p, q, slice(top, top + size[0]), slice(left, left + size[1])


def padded(x, pad, fill):
    """The images in float64 with their padding."""
    return np.pad(x.astype(float), ((0, 0), (0, 0), *((p, p) for p in pad)), constant_values=fill)


def inner(x, pad):
    """The images without their padding."""
    return x[:, :, pad[0] : x.shape[2] - pad[0], pad[1] : x.shape[3] - pad[1]]


@settings(max_examples=60, deadline=None)
@given(pool_cases())
def test_max_pooling(case):
    x, dy, size, step, mask = case
    y, where = np.full_like(dy, np.nan), np.full(dy.shape, -7, dtype=np.int32)
    pool.max_forward(x, size, *step, mask, y, where)
    dx = np.full_like(x, np.nan)
    pool.max_backward(dy, where, size, *step, mask, dx)

    is_open = open_channels(mask, x)
    seen = padded(x, step[1], -np.inf)
    expected_y, expected_dx = np.zeros_like(dy), np.zeros(seen.shape, x.dtype)
    for n, c, p, q, rows, cols in each_window(x, size, step, dy.shape):
        if is_open[n, c]:
            window = seen[n, c, rows, cols]
            expected_y[n, c, p, q] = window.max()
            i, j = np.unravel_index(window.argmax(), window.shape)  # the first of several maxima
            assert where[n, c, p, q] == i * size[1] + j
            expected_dx[n, c, rows.start + i, cols.start + j] += dy[n, c, p, q]
    np.testing.assert_array_equal(y, expected_y)
    np.testing.assert_array_equal(dx, inner(expected_dx, step[1]))


@settings(max_examples=60, deadline=None)
@given(pool_cases())
def test_average_pooling(case):
    x, dy, size, step, mask = case
    y, dx = np.full_like(dy, np.nan), np.full_like(x, np.nan)
    pool.average_forward(x, size, *step, mask, y)
    pool.average_backward(dy, size, *step, mask, dx)

    is_open = open_channels(mask, x)
    seen = padded(x, step[1], 0)
    expected_y, expected_dx = np.zeros(dy.shape), np.zeros(seen.shape)
    for n, c, p, q, rows, cols in each_window(x, size, step, dy.shape):
        if is_open[n, c]:
            expected_y[n, c, p, q] = seen[n, c, rows, cols].mean()
            expected_dx[n, c, rows, cols] += float(dy[n, c, p, q]) / (size[0] * size[1])
    tolerance = 1e-5 if x.dtype == np.float32 else 1e-13
    np.testing.assert_allclose(y, expected_y, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(dx, inner(expected_dx, step[1]), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("position", range(4))
def test_max_pooling_lets_nan_through(dtype, position):
    x = np.arange(4, dtype=dtype)
    x[position] = np.nan
    y, where = np.zeros((1, 1, 1, 1), dtype=dtype), np.zeros((1, 1, 1, 1), dtype=np.int32)
    pool.max_forward(x.reshape(1, 1, 2, 2), (2, 2), (2, 2), (0, 0), ALL_ON, y, where)
    assert np.isnan(y[0, 0, 0, 0])
    assert where[0, 0, 0, 0] == position


def test_closed_channels_are_not_read():
    x = np.full((1, 2, 4, 4), np.nan)
    x[0, 1] = 1.0
    mask = np.array([[False, True]])
    y, where = np.empty((1, 2, 2, 2)), np.empty((1, 2, 2, 2), dtype=np.int32)
    expected = np.stack([np.zeros((2, 2)), np.ones((2, 2))])[None]
    pool.max_forward(x, (2, 2), (2, 2), (0, 0), mask, y, where)
    np.testing.assert_array_equal(y, expected)
    pool.average_forward(x, (2, 2), (2, 2), (0, 0), mask, y)
    np.testing.assert_array_equal(y, expected)
    dx = np.full_like(x, np.nan)
    pool.average_backward(x[:, :, :2, :2].copy(), (2, 2), (2, 2), (0, 0), mask, dx)
    np.testing.assert_array_equal(dx[0, 0], 0)
    np.testing.assert_array_equal(dx[0, 1], 0.25)
