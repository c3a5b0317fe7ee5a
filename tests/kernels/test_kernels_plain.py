"""The readable conv and linear kernels against NumPy formulas, and the order of their chains exactly."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.kernels import plain
from refimpl.kernels.conv import ALL_ON, output_size

DTYPES = (np.float32, np.float64)
# A chain of n terms of unit size errs by at most about n units of rounding; the longest here has 700.
TOLERANCE = {np.dtype(np.float32): 1e-4, np.dtype(np.float64): 1e-13}


class ConvCase(NamedTuple):
    """A convolution with everything all three passes need."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    dy: np.ndarray
    stride: tuple[int, int]
    pad: tuple[int, int]
    in_mask: np.ndarray
    out_mask: np.ndarray
    dilation: tuple[int, int] = (1, 1)

    @property
    def steps(self):
        """Stride, padding and dilation, as kernels take them."""
        return self.stride, self.pad, self.dilation

    @property
    def groups(self):
        """Groups of output channels that read input channels of their own."""
        return self.x.shape[1] // self.weight.shape[1]


class LinearCase(NamedTuple):
    """A fully connected layer with everything all three passes need."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    dy: np.ndarray
    in_mask: np.ndarray
    out_mask: np.ndarray


def draw_mask(rng, kind, n, channels):
    """A (n, channels) mask: "none" (the empty mask), "on", "off" or "mixed"."""
    if kind == "none":
        return ALL_ON
    if kind == "mixed":
        return rng.random((n, channels)) < 0.5
    return np.full((n, channels), kind == "on")


def silence(array, mask):
    """`array` with zeros in the channels (or groups of features) that `mask` closes."""
    if mask.shape[0] == 0:
        return array
    wide = np.repeat(mask, array.shape[1] // mask.shape[1], axis=1)
    return array * wide.reshape(wide.shape + (1,) * (array.ndim - 2))


def make_conv(
    seed,
    dtype,
    n,
    channels,
    filters,
    size,
    kernel,
    stride,
    pad,
    in_kind="none",
    out_kind="none",
    dilation=(1, 1),
    groups=1,
):
    """Random arrays for a convolution of the given shape."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape).astype(dtype)

    rows, cols = output_size(size, kernel, stride, pad, dilation)
    return ConvCase(
        normal(n, channels, *size),
        normal(filters, channels // groups, *kernel),
        normal(filters),
        normal(n, filters, rows, cols),
        stride,
        pad,
        draw_mask(rng, in_kind, n, channels),
        draw_mask(rng, out_kind, n, filters),
        dilation,
    )


def make_linear(seed, dtype, n, features, outputs, group=1, in_kind="none", out_kind="none"):
    """Random arrays for a fully connected layer; the input mask has one column per `group` features."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape).astype(dtype)

    return LinearCase(
        normal(n, features),
        normal(outputs, features),
        normal(outputs),
        normal(n, outputs),
        draw_mask(rng, in_kind, n, features // group),
        draw_mask(rng, out_kind, n, outputs),
    )


MASK_KINDS = st.sampled_from(("none", "on", "off", "mixed"))


@st.composite
def conv_cases(draw, dtypes=DTYPES, largest=9, most_channels=7):
    """Convolutions of odd shapes, strides, paddings (beyond the kernel), dilations, groups and masks."""
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    pad = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    dilation = draw(st.sampled_from(((1, 1), (1, 1), (2, 1), (1, 3), (3, 2))))
    least = [max(1, (k - 1) * d + 1 - 2 * p) for k, d, p in zip(kernel, dilation, pad, strict=True)]
    size = tuple(draw(st.integers(low, max(low, largest))) for low in least)
    groups = draw(st.sampled_from((1, 1, 1, 2, 3)))
    most = max(1, most_channels // groups)
    return make_conv(
        seed=draw(st.integers(0, 2**32)),
        dtype=draw(st.sampled_from(dtypes)),
        n=draw(st.integers(1, 3)),
        channels=groups * draw(st.integers(1, most)),
        filters=groups * draw(st.integers(1, most)),
        size=size,
        kernel=kernel,
        stride=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        pad=pad,
        in_kind=draw(MASK_KINDS),
        out_kind=draw(MASK_KINDS),
        dilation=dilation,
        groups=groups,
    )


@st.composite
def linear_cases(draw, dtypes=DTYPES, most=40):
    """Fully connected layers of odd shapes, with masks over single features or over groups."""
    group = draw(st.integers(1, 4))
    return make_linear(
        seed=draw(st.integers(0, 2**32)),
        dtype=draw(st.sampled_from(dtypes)),
        n=draw(st.integers(1, 9)),
        features=group * draw(st.integers(1, most)),
        outputs=draw(st.integers(1, most)),
        group=group,
        in_kind=draw(MASK_KINDS),
        out_kind=draw(MASK_KINDS),
    )


def windows(case):
    """(ky, kx, view): the padded input as each tap of the kernel sees it, in float64, (N,C,P,Q)."""
    py, px = case.pad
    padded = np.pad(silence(case.x.astype(float), case.in_mask), ((0, 0), (0, 0), (py, py), (px, px)))
    for ky, kx, at in tap_pixels(case):
        yield ky, kx, padded[(slice(None), slice(None), *at)]


def tap_pixels(case):
    """(ky, kx, rows and columns of the padded input that this tap reads)."""
    sizes = zip(case.dy.shape[2:], case.stride, strict=True)
    spans = [np.arange(count) * step for count, step in sizes]
    for ky, kx in np.ndindex(*case.weight.shape[2:]):
        moved = zip(spans, (ky, kx), case.dilation, strict=True)
        yield ky, kx, np.ix_(*(span + k * gap for span, k, gap in moved))


def dense_weight(case):
    """The weights (K, C, kh, kw) of the same convolution without groups: zero between groups. In float64."""
    filters, channels = case.weight.shape[:2]
    dense = np.zeros((filters, case.x.shape[1], *case.weight.shape[2:]))
    for k in range(filters):
        first = k // (filters // case.groups) * channels
        dense[k, first : first + channels] = case.weight[k]
    return dense


def numpy_forward(case):
    y = np.zeros(case.dy.shape) + case.bias[:, None, None].astype(float)
    for ky, kx, seen in windows(case):
        y += np.einsum("ncpq,kc->nkpq", seen, dense_weight(case)[:, :, ky, kx])
    return silence(y, case.out_mask)


def numpy_weight_grad(case):
    dy = silence(case.dy.astype(float), case.out_mask)
    filters, channels = case.weight.shape[:2]
    dweight = np.zeros((filters, case.x.shape[1], *case.weight.shape[2:]))
    for ky, kx, seen in windows(case):
        dweight[:, :, ky, kx] = np.einsum("ncpq,nkpq->kc", seen, dy)
    by_group = dweight.reshape(filters, case.groups, channels, *case.weight.shape[2:])
    own = np.arange(filters) // (filters // case.groups)
    return by_group[np.arange(filters), own], dy.sum(axis=(0, 2, 3))


def numpy_input_grad(case):
    (py, px), (height, width) = case.pad, case.x.shape[2:]
    dy = silence(case.dy.astype(float), case.out_mask)
    n, channels = case.x.shape[:2]
    padded = np.zeros((n, channels, height + 2 * py, width + 2 * px))
    for ky, kx, at in tap_pixels(case):
        share = np.einsum("nkpq,kc->ncpq", dy, dense_weight(case)[:, :, ky, kx])
        padded[(slice(None), slice(None), *at)] += share
    return silence(padded[:, :, py : py + height, px : px + width], case.in_mask)


def plain_forward(case):
    y = np.full_like(case.dy, np.nan)
    plain.conv_forward(case.x, case.weight, case.bias, *case.steps, case.in_mask, case.out_mask, y)
    return y


def plain_input_grad(case):
    dx = np.full_like(case.x, np.nan)
    plain.conv_input_grad(case.dy, case.weight, *case.steps, case.out_mask, case.in_mask, dx)
    return dx


def plain_weight_grad(case):
    dweight, dbias = np.full_like(case.weight, np.nan), np.full_like(case.bias, np.nan)
    plain.conv_weight_grad(case.x, case.dy, *case.steps, case.in_mask, case.out_mask, dweight, dbias)
    return dweight, dbias


def plain_linear_forward(case):
    y = np.full_like(case.dy, np.nan)
    plain.linear_forward(case.x, case.weight, case.bias, case.in_mask, case.out_mask, y)
    return y


def plain_linear_input_grad(case):
    dx = np.full_like(case.x, np.nan)
    plain.linear_input_grad(case.dy, case.weight, case.out_mask, case.in_mask, dx)
    return dx


def plain_linear_weight_grad(case):
    dweight, dbias = np.full_like(case.weight, np.nan), np.full_like(case.bias, np.nan)
    plain.linear_weight_grad(case.x, case.dy, case.in_mask, case.out_mask, dweight, dbias)
    return dweight, dbias


def assert_close(got, expected):
    """Agreement relative to the largest entry, finite everywhere."""
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(got, expected, rtol=0, atol=scale * TOLERANCE[got.dtype])


def spoil(array, mask):
    """`array` with NaN in the channels that `mask` closes: whoever reads them is found out."""
    spoilt = array.copy()
    if mask.shape[0]:
        spoilt[np.repeat(~mask, array.shape[1] // mask.shape[1], axis=1)] = np.nan
    return spoilt


@settings(max_examples=60, deadline=None)
@given(conv_cases())
def test_convolution_is_the_formula(case):
    assert_close(plain_forward(case), numpy_forward(case))
    assert_close(plain_input_grad(case), numpy_input_grad(case))
    for got, expected in zip(plain_weight_grad(case), numpy_weight_grad(case), strict=True):
        assert_close(got, expected)


@settings(max_examples=60, deadline=None)
@given(linear_cases())
def test_linear_is_the_formula(case):
    x, dy = silence(case.x.astype(float), case.in_mask), silence(case.dy.astype(float), case.out_mask)
    weight = case.weight.astype(float)
    assert_close(plain_linear_forward(case), silence(x @ weight.T + case.bias.astype(float), case.out_mask))
    assert_close(plain_linear_input_grad(case), silence(dy @ weight, case.in_mask))
    dweight, dbias = plain_linear_weight_grad(case)
    assert_close(dweight, dy.T @ x)
    assert_close(dbias, dy.sum(axis=0))


@settings(max_examples=40, deadline=None)
@given(conv_cases())
def test_closed_channels_are_not_read_and_come_out_as_zero(case):
    spoilt = case._replace(x=spoil(case.x, case.in_mask), dy=spoil(case.dy, case.out_mask))
    for run in (plain_forward, plain_input_grad, plain_weight_grad):
        for got, expected in zip(_tuple(run(spoilt)), _tuple(run(case)), strict=True):
            np.testing.assert_array_equal(got, expected)
    if case.out_mask.size:
        assert not plain_forward(case)[~case.out_mask].any()
    if case.in_mask.size:
        assert not plain_input_grad(case)[~case.in_mask].any()


@settings(max_examples=40, deadline=None)
@given(linear_cases())
def test_closed_features_are_not_read_and_come_out_as_zero(case):
    spoilt = case._replace(x=spoil(case.x, case.in_mask), dy=spoil(case.dy, case.out_mask))
    for run in (plain_linear_forward, plain_linear_input_grad, plain_linear_weight_grad):
        for got, expected in zip(_tuple(run(spoilt)), _tuple(run(case)), strict=True):
            np.testing.assert_array_equal(got, expected)
    if case.out_mask.size:
        assert not plain_linear_forward(case)[~case.out_mask].any()


def test_gating_changes_no_bit_of_the_channels_both_compute():
    case = make_conv(3, np.float32, 4, 6, 8, (7, 9), (3, 3), (1, 1), (1, 1), out_kind="mixed")
    dense, gated = plain_forward(case._replace(out_mask=ALL_ON)), plain_forward(case)
    assert case.out_mask.any()
    assert not case.out_mask.all()
    np.testing.assert_array_equal(gated[case.out_mask], dense[case.out_mask])
    np.testing.assert_array_equal(gated[~case.out_mask], 0)


def _tuple(result):
    return result if isinstance(result, tuple) else (result,)


def exact_chain(terms, start=0.0):
    """start + sum of a * b over `terms`, one correctly rounded fused multiply-add after the other."""
    total = float(start)
    for a, b in terms:
        total = float(Fraction(float(a)) * Fraction(float(b)) + Fraction(total))
    return total


def interleaved(values):
    """Sixteen partial sums over every sixteenth value, added pairwise."""
    return pairwise([exact_chain((v, 1.0) for v in values.ravel()[i::16]) for i in range(16)])


def pairwise(sums):
    """The first half added to the second, until one is left."""
    while len(sums) > 1:
        half = len(sums) // 2
        sums = [a + b for a, b in zip(sums[:half], sums[half:], strict=True)]
    return sums[0]


def test_forward_chain_runs_over_channel_then_row_then_column_and_adds_the_bias_last():
    case = make_conv(11, np.float64, 1, 3, 2, (4, 5), (3, 2), (1, 1), (1, 0))
    y = plain_forward(case)
    padded = np.pad(case.x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    for (_, k, p, q), got in np.ndenumerate(y):
        terms = [(w, padded[0, c, p + ky, q + kx]) for (c, ky, kx), w in np.ndenumerate(case.weight[k])]
        assert got == exact_chain(terms) + case.bias[k]


def test_input_gradient_chain_runs_over_filter_then_row_then_column():
    case = make_conv(12, np.float64, 1, 2, 3, (4, 5), (3, 3), (1, 1), (1, 1))
    dx = plain_input_grad(case)
    for (_, c, i, j), got in np.ndenumerate(dx):
        terms = []
        for (k, ky, kx), w in np.ndenumerate(case.weight[:, c]):
            p, q = i + 1 - ky, j + 1 - kx
            if 0 <= p < case.dy.shape[2] and 0 <= q < case.dy.shape[3]:
                terms.append((w, case.dy[0, k, p, q]))
        assert got == exact_chain(terms)


def test_weight_gradient_chain_runs_over_sample_then_row_then_column():
    case = make_conv(13, np.float64, 3, 2, 2, (4, 5), (3, 3), (2, 1), (1, 1))
    dweight, dbias = plain_weight_grad(case)
    padded = np.pad(case.x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    for (k, c, ky, kx), got in np.ndenumerate(dweight):
        terms = [(g, padded[n, c, 2 * p + ky, q + kx]) for (n, p, q), g in np.ndenumerate(case.dy[:, k])]
        assert got == exact_chain(terms)
    for k in range(2):
        assert dbias[k] == exact_chain((interleaved(sample), 1.0) for sample in case.dy[:, k])


def test_linear_chains_are_in_the_documented_order():
    case = make_linear(14, np.float64, 3, 37, 4)
    y, dx, (dweight, dbias) = (
        plain_linear_forward(case),
        plain_linear_input_grad(case),
        plain_linear_weight_grad(case),
    )
    for (n, o), got in np.ndenumerate(y):
        terms = list(zip(case.x[n], case.weight[o], strict=True))
        assert got == pairwise([exact_chain(terms[j::16]) for j in range(16)]) + case.bias[o]
    for (n, i), got in np.ndenumerate(dx):
        assert got == exact_chain(zip(case.dy[n], case.weight[:, i], strict=True))
    for (o, i), got in np.ndenumerate(dweight):
        assert got == exact_chain(zip(case.dy[:, o], case.x[:, i], strict=True))
    for o, got in enumerate(dbias):
        assert got == exact_chain((g, 1.0) for g in case.dy[:, o])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_window_wholly_in_the_padding_gives_the_bias(dtype):
    case = make_conv(15, dtype, 1, 2, 3, (1, 1), (1, 1), (2, 2), (3, 3))
    y = plain_forward(case)
    assert y.shape == (1, 3, 4, 4)
    expected = np.broadcast_to(case.bias[:, None, None], (3, 4, 4)).copy()
    np.testing.assert_array_equal(y[0], expected)  # stride 2 from -3 never lands on pixel 0
