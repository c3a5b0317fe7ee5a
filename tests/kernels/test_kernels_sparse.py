"""Kernels that multiply only kept weights, against the dense ones and their readable twin."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, pairs, seeds

from refimpl.errors import InputError
from refimpl.kernels import conv, plain, sparse
from refimpl.kernels.arrays import output_size
from refimpl.kernels.workspace import scratch

DTYPES = ("float32", "float64")


class Case(NamedTuple):
    """A convolution with a mask on its weights and everything all three passes need."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    dy: np.ndarray
    kept: np.ndarray
    stride: tuple[int, int]
    pad: tuple[int, int]


def make(seed, dtype, n, channels, filters, size, kernel, stride, pad, share):
    """Random arrays; about `share` of the weights are kept, and the others are zero."""
    rng = np.random.default_rng(seed)
    kept = rng.random((filters, channels, *kernel)) < share
    result = output_size(size, kernel, stride, pad)
    shapes = (n, channels, *size), kept.shape, (filters,), (n, filters, *result)
    x, weight, bias, dy = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    return Case(x, weight * kept, bias, dy, kept, stride, pad)


@st.composite
def cases(draw):
    """Odd shapes; stride, padding and kernel size differ by direction; masks all off, mixed and all on."""
    kernel, pad = draw(pairs), draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    size = tuple(max(1, k - 2 * p) + draw(st.integers(0, 9)) for k, p in zip(kernel, pad, strict=True))
    share, counts = draw(st.sampled_from((0.0, 0.2, 0.6, 1.0))), [draw(st.integers(1, 4)) for _ in range(2)]
    samples = draw(st.integers(0, 10))
    return make(
        draw(seeds), draw(st.sampled_from(DTYPES)), samples, *counts, size, kernel, draw(pairs), pad, share
    )


def passes(case):
    """y, dx, dweight and dbias by the sparse kernels, in memory that held NaN."""
    x, weight, bias, dy, kept, stride, pad = case
    tables = sparse.tables_of(kept, sparse.Geometry(x.shape[2:], stride, pad))
    filters, channels = kept.shape[:2]
    flat = weight.reshape(-1)
    y, dx, dweight, dbias = (np.full_like(array, np.nan) for array in (dy, x, flat, bias))

    def memory(table, *sides):
        arrays = scratch(x.dtype, *sparse.sparse_scratch(table, *sides, x.itemsize))
        arrays[0][:] = np.nan
        return arrays

    sparse.convolve(x, flat, bias, tables.forward, *memory(tables.forward, channels, filters), y)
    sparse.convolve(dy, flat, bias[:0], tables.backward, *memory(tables.backward, filters, channels), dx)
    forward = memory(tables.forward, channels, filters)
    sparse.weight_grad(x, dy, False, tables.forward, *forward, dweight, dbias)
    return y, dx, dweight.reshape(kept.shape), dbias


@examples(60)
@given(cases())
def test_sums_have_the_bits_of_the_dense_kernels_and_of_the_readable_twin(case):
    x, weight, bias, dy, kept, stride, pad = case
    y, dx, dweight, dbias = passes(case)
    np.testing.assert_array_equal(y, conv.forward(x, weight, bias, stride, pad))
    np.testing.assert_array_equal(dx, conv.input_grad(dy, weight, stride, pad, x.shape[2:]))
    wanted = np.empty_like(dweight), np.empty_like(dbias)
    plain.kept_weight_grad(x, dy, stride, pad, kept, *wanted)
    np.testing.assert_array_equal(dweight, wanted[0])
    np.testing.assert_array_equal(dbias, wanted[1])
    dense = np.empty_like(dweight), np.empty_like(dbias)
    conv.weight_grad(x, dy, stride, pad, *dense)
    np.testing.assert_array_equal(dbias, dense[1])
    assert not dweight[~kept].any()
    close = {"rtol": 0, "atol": (1e-4 if x.dtype == np.float32 else 1e-12) * max(1, len(x))}
    np.testing.assert_allclose(dweight[kept], dense[0][kept], **close)


def test_the_weight_gradient_is_sixteen_chains_over_pixels_added_pairwise():
    case = make(0, "float32", 2, 1, 1, (6, 7), (1, 1), (1, 1), (0, 0), 1.0)
    _, _, dweight, _ = passes(case)
    total = np.float32(0)
    for n in range(2):
        x, dy = case.x[n].ravel().astype(float), case.dy[n].ravel().astype(float)
        chains = np.zeros(16, np.float32)
        for p in range(42):  # the products of two float32 are exact in float64, so one rounding is left
            chains[p % 16] = np.float32(np.longdouble(x[p] * dy[p]) + np.longdouble(chains[p % 16]))
        for half in (8, 4, 2, 1):
            chains = chains[:half] + chains[half : 2 * half]
        total = total + chains[0]
    assert dweight.ravel()[0] == total


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_parts_of_a_batch_add_up_to_the_same_bits(cut):
    case = make(1, "float32", 5, 3, 4, (9, 8), (3, 3), (1, 1), (1, 1), 0.4)
    tables = sparse.tables_of(case.kept, sparse.Geometry((9, 8), (1, 1), (1, 1))).forward
    memory = scratch(case.x.dtype, *sparse.sparse_scratch(tables, 3, 4, 4))
    dweight, dbias = np.empty_like(case.weight).ravel(), np.empty_like(case.bias)
    for part, more in ((slice(cut), False), (slice(cut, None), True)):
        sparse.weight_grad(case.x[part], case.dy[part], more, tables, *memory, dweight, dbias)
    _, _, wanted, bias = passes(case)
    np.testing.assert_array_equal(dweight, wanted.ravel())
    np.testing.assert_array_equal(dbias, bias)


def test_arrays_that_do_not_fit_are_refused():
    x, dy, *_ = (np.zeros((1, 2, 4, 4), "float32") for _ in range(2))
    kept, dbias = np.ones((3, 2, 3, 3), bool), np.zeros(3, "float32")
    with pytest.raises(InputError, match="dy"):
        sparse.kept_weight_grad(x, dy, (1, 1), (1, 1), kept, np.zeros(kept.shape, "float32"), dbias)
