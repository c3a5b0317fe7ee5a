"""A batch without samples: every kernel gives empty maps, and zeros for what is summed over the batch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from test_kernels_plain import make_conv, make_linear, plain_linear_weight_grad, plain_weight_grad
from test_kernels_tile import tile_conv, tile_linear

from refimpl.errors import InputError
from refimpl.kernels import (
    activation,
    groups,
    loss,
    norm,
    pool,
    shaping,
    tiled_linear,
    tiled_weight_grad,
    vector,
)
from refimpl.kernels.conv import ALL_ON

MASKS = (ALL_ON, np.ones((0, 3), bool))


def empty(*shape, dtype=np.float32):
    return np.empty((0, *shape), dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weight_gradients_of_no_samples_are_zero(dtype):
    for channels, window, stride in itertools.product((3, 40), ((1, 1), (3, 3)), ((1, 1), (2, 2))):
        case = make_conv(0, dtype, 0, channels, 4, (9, 9), window, stride, (1, 1), "mixed", "mixed")
        y, dx, *gradients = tile_conv(case)
        assert (y.shape, dx.shape) == (case.dy.shape, case.x.shape)
        for gradient in (*gradients, *plain_weight_grad(case)):
            assert not gradient.any()
    case = make_linear(0, dtype, 0, 33, 7, in_kind="mixed", out_kind="mixed")
    y, dx, *gradients = tile_linear(case)
    assert (y.shape, dx.shape) == ((0, 7), (0, 33))
    for gradient in (*gradients, *plain_linear_weight_grad(case)):
        assert not gradient.any()


@pytest.mark.parametrize("channels", [3, 40])
def test_no_further_samples_leave_a_weight_gradient_as_it_is(channels):
    scratch = np.empty(100_000, np.float32), np.empty(100_000, np.int32)
    dweight, dbias = np.ones((4, channels, 3, 3), np.float32), np.ones(4, np.float32)
    step = (1, 1), (0, 0), (1, 1), ALL_ON, ALL_ON, True
    tiled_weight_grad.weight_grad(empty(channels, 8, 8), empty(4, 6, 6), *step, *scratch, dweight, dbias)
    assert (dweight == 1).all()
    assert (dbias == 1).all()
    matrix = dweight.reshape(4, -1)
    tiled_linear.weight_grad(empty(9 * channels), empty(4), ALL_ON, ALL_ON, True, *scratch, matrix, dbias)
    assert (matrix == 1).all()
    assert (dbias == 1).all()


@pytest.mark.parametrize("mask", MASKS, ids=["all on", "masked"])
def test_element_wise_kernels_and_pooling_do_nothing(mask):
    for name in ("relu", "softplus", "tanh"):
        getattr(activation, f"{name}_forward")(empty(3, 4), mask, empty(3, 4))
        getattr(activation, f"{name}_backward")(empty(3, 4), empty(3, 4), mask, empty(3, 4))
    activation.channel_means(empty(3, 4), mask, empty(3))
    activation.share_out(empty(3), mask, empty(3, 4))
    for size in ((2, 2), (3, 3)):
        y, where = empty(3, 6 // size[0], 6 // size[1]), empty(3, 6 // size[0], 6 // size[1], dtype=np.int32)
        pool.max_forward(empty(3, 6, 6), size, size, (0, 0), mask, y, where)
        pool.max_backward(y, where, size, size, (0, 0), mask, empty(3, 6, 6))
        pool.average_forward(empty(3, 6, 6), size, size, (0, 0), mask, y)
        pool.average_backward(y, size, size, (0, 0), mask, empty(3, 6, 6))


def test_products_of_masks_and_sums_over_nothing():
    activation.scale_channels(empty(3, 4), empty(3), empty(3, 4))
    activation.spread_nan(empty(3), empty(3, 4))
    activation.sigmoid_scaled(empty(3), 1.0, empty(3), empty(3))
    assert shaping.shape_gates(empty(3), 1.0, shaping.Shaping(1.0), empty(3)) == 0
    activation.channel_products(empty(3, 4), empty(3, 4), empty(3))
    with pytest.raises(InputError, match="at least one sample"):  # the mean of nothing is not a number
        loss.softmax_cross_entropy(empty(3), empty(dtype=np.int64), empty(3))
    ones, wide = np.ones(3, np.float32), np.empty(3)
    dgamma, dbeta = np.full(3, np.nan, np.float32), np.full(3, np.nan, np.float32)
    norm.batch_norm_forward(empty(3, 4), ones, ones, 1e-5, 1.0, wide, wide.copy(), empty(3, 4))
    norm.batch_norm_backward(
        empty(3, 4), empty(3, 4), ones, ones, ones, ones, 1.0, dgamma, dbeta, empty(3, 4)
    )
    assert not dgamma.any()
    assert not dbeta.any()
    assert groups.safe_norm(empty()) == groups.absolute_sum(empty()) == vector.norm(empty()) == 0
    total = np.full(3, np.nan, np.float32)
    vector.mean_of_rows(empty(3), np.empty(0), total)
    assert not total.any()
    nonzero, finite = vector.add_weighted(np.ones((2, 0), np.float32), np.ones(2), np.empty(0))
    assert not nonzero.any()
    assert finite.all()


def test_a_norm_shows_nan_whatever_is_beside_it():
    for x in ([np.nan], [np.nan, 0.0], [0.0, np.nan], [1.0, np.nan, 0.0]):
        assert np.isnan(groups.safe_norm(np.array(x)))
        out = np.zeros(1)
        groups.group_norms(np.array(x), np.array([0, 1]), np.array([0]), np.array([len(x)]), out)
        assert np.isnan(out[0])
    assert groups.safe_norm(np.zeros(3)) == 0
    assert groups.safe_norm(np.array([np.inf, 0.0])) == np.inf
