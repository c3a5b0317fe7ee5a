"""Element-wise kernels and the loss against NumPy formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest

from refimpl.kernels import activation, loss
from refimpl.kernels.conv import ALL_ON

DTYPES = (np.float32, np.float64)
SHAPES = ((1, 1, 1), (3, 5, 1), (2, 4, 49), (2, 3, 64))
RTOL = {np.float32: 3e-7, np.float64: 1e-15}  # one rounding of float32; a few of float64


def make(shape, dtype, masked):
    rng = np.random.default_rng([*shape, masked])
    x = (4 * rng.standard_normal(shape)).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    x.flat[0] = 0.0
    mask = rng.random(shape[:2]) < 0.5 if masked else ALL_ON
    return x, dy, mask


def closed(mask, shape):
    return np.broadcast_to(~mask[:, :, None], shape) if mask.size else np.zeros(shape, dtype=bool)


def spoil(array, mask):
    spoilt = array.copy()
    spoilt[closed(mask, array.shape)] = np.nan
    return spoilt


FORWARD = {
    "relu": lambda x: np.maximum(x, 0),
    "softplus": lambda x: np.logaddexp(0, x),
    "tanh": np.tanh,
}
SLOPE = {
    "relu": lambda x: (x > 0).astype(float),
    "softplus": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": lambda x: 1 / np.cosh(x) ** 2,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", list(FORWARD))
def test_activations_forward_and_backward(name, shape, dtype, masked):
    x, dy, mask = make(shape, dtype, masked)
    y, dx = np.full_like(x, np.nan), np.full_like(x, np.nan)
    getattr(activation, f"{name}_forward")(spoil(x, mask), mask, y)
    kept = x if name == "softplus" else y  # softplus differentiates from its input, the others from y
    getattr(activation, f"{name}_backward")(spoil(dy, mask), spoil(kept, mask), mask, dx)

    off = closed(mask, shape)
    wide = x.astype(float)
    expected_y = np.where(off, 0, FORWARD[name](wide))
    expected_dx = np.where(off, 0, dy * SLOPE[name](wide))
    assert not y[off].any()
    assert not dx[off].any()
    np.testing.assert_allclose(y, expected_y, rtol=RTOL[dtype] * 2, atol=1e-15)
    # 1 - y**2 cancels where |y| is near 1: the error is one of y, absolutely
    np.testing.assert_allclose(dx, expected_dx, rtol=RTOL[dtype] * 4, atol=RTOL[dtype] * 8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_relu_lets_nan_through_and_has_slope_zero_at_zero(dtype):
    x = np.array([np.nan, 0.0, -0.0, np.inf, -np.inf], dtype=dtype).reshape(1, 1, 5)
    y, dx = np.empty_like(x), np.empty_like(x)
    activation.relu_forward(x, ALL_ON, y)
    np.testing.assert_array_equal(y.ravel(), np.array([np.nan, 0, 0, np.inf, 0], dtype=dtype))
    activation.relu_backward(np.ones_like(x), y, ALL_ON, dx)
    np.testing.assert_array_equal(dx.ravel()[1:], [0, 0, 1, 0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tau", [0.3, 1.0, 5.0])
def test_scaled_logistic_function_and_its_slope(dtype, tau):
    u = np.linspace(-6, 6, 35, dtype=dtype).reshape(5, 7)
    value, slope = np.empty_like(u), np.empty_like(u)
    activation.sigmoid_scaled(u, tau, value, slope)
    expected, rest = (1 / (1 + np.exp(sign * u.astype(float) / tau)) for sign in (-1, 1))
    np.testing.assert_allclose(value, expected, rtol=RTOL[dtype] * 8)
    np.testing.assert_allclose(slope, expected * rest / tau, rtol=RTOL[dtype] * 8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
def test_products_of_maps_and_masks(dtype, shape, masked):
    x, dy, mask = make(shape, dtype, masked)
    pixels = shape[2]
    off = closed(mask, shape)[:, :, 0]

    factor = np.where(off, 0, 1 + np.arange(off.size).reshape(off.shape)).astype(dtype)
    y = np.full_like(x, np.nan)
    activation.scale_channels(spoil(x, mask), factor, y)
    np.testing.assert_array_equal(y, np.where(off[:, :, None], 0, factor[:, :, None] * x))

    out = np.full(shape[:2], np.nan, dtype=dtype)
    activation.channel_products(x, dy, out)
    magnitude = np.einsum("ncp,ncp->nc", abs(x).astype(float), abs(dy).astype(float))
    error = abs(out - np.einsum("ncp,ncp->nc", x.astype(float), dy.astype(float)))
    assert (error <= RTOL[dtype] * magnitude).all()

    out[:] = np.nan
    activation.channel_means(spoil(x, mask), mask, out)
    error = abs(out - np.where(off, 0, x.astype(float).mean(axis=2)))
    assert (error <= RTOL[dtype] * (1e-300 + abs(x).astype(float).sum(axis=2) / pixels)).all()

    dx = np.full_like(x, np.nan)
    means = np.where(off, np.nan, pixels * factor).astype(dtype)
    activation.share_out(means, mask, dx)
    np.testing.assert_array_equal(dx, np.broadcast_to(np.where(off, 0, factor)[:, :, None], shape))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "classes"), [(1, 2), (20, 10), (7, 5), (3, 1)])
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_cross_entropy_is_the_mean_log_likelihood(dtype, n, classes, shift):
    rng = np.random.default_rng(n * classes)
    logits = (3 * rng.standard_normal((n, classes)) + shift).astype(dtype)
    labels = rng.integers(0, classes, n)
    dlogits = np.full_like(logits, np.nan)
    value = loss.softmax_cross_entropy(logits, labels, dlogits)

    shifted = logits.astype(float) - logits.astype(float).max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    onehot = np.eye(classes)[labels]
    assert abs(value + (log_p * onehot).sum() / n) <= 1e-13
    np.testing.assert_allclose(dlogits, (np.exp(log_p) - onehot) / n, rtol=0, atol=RTOL[dtype])


def test_cross_entropy_survives_hopeless_logits():
    logits = np.array([[0.0, 2000.0], [-np.inf, 0.0]])
    dlogits = np.empty_like(logits)
    value = loss.softmax_cross_entropy(logits, np.array([0, 1]), dlogits)
    assert value == 1000.0
    np.testing.assert_array_equal(dlogits, [[-0.5, 0.5], [0.0, 0.0]])
