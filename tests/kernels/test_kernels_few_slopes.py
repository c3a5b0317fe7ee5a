"""Gradients where most of dy is zero: the bits of the readable kernels, and nothing outside the arrays."""

from __future__ import annotations

import numpy as np
import pytest
from convolutions import operands
from guards import guarded

from refimpl.kernels import conv, few_slopes, plain, tiled_conv, tiled_weight_grad
from refimpl.kernels.arrays import ALL_ON
from refimpl.kernels.jit import kernel, settings

compiled = pytest.mark.skipif(settings.DISABLE_JIT, reason="only compiled kernels skip zeros")

# channels, filters, size, kernel, stride, pad, dilation
SHAPES = {
    "two vectors of channels": (32, 7, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1)),
    "one vector and empty lanes": (12, 5, (6, 9), (3, 3), (1, 1), (1, 1), (1, 1)),
    "three vectors": (48, 4, (5, 6), (3, 3), (1, 1), (1, 1), (1, 1)),
    "few channels": (3, 9, (8, 10), (3, 3), (1, 1), (1, 1), (1, 1)),
    "no padding": (16, 5, (7, 6), (3, 3), (1, 1), (0, 0), (1, 1)),
    "more padding than the kernel reaches": (16, 3, (4, 5), (3, 3), (1, 1), (3, 4), (1, 1)),
    "stride": (20, 6, (9, 8), (3, 3), (2, 3), (1, 2), (1, 1)),
    "vertical dilation": (16, 4, (9, 7), (3, 3), (1, 1), (2, 1), (2, 1)),
    "5x5": (9, 6, (9, 9), (5, 5), (1, 1), (2, 2), (1, 1)),
    "7x2": (30, 3, (9, 5), (7, 2), (1, 1), (3, 0), (1, 1)),
    "1x1": (17, 10, (6, 6), (1, 1), (1, 1), (0, 0), (1, 1)),
    "many channels": (130, 3, (4, 4), (3, 3), (1, 1), (1, 1), (1, 1)),
}


class Case:
    """A convolution of three samples in whose dy about three of four entries are zero."""

    def __init__(self, name: str, dtype: str, gated: bool = False) -> None:
        self.channels, self.filters, self.size, _, *self.moves = SHAPES[name]
        rng, samples = np.random.default_rng(0), 3
        self.x_mask = self.dy_mask = ALL_ON
        if gated:
            self.x_mask = rng.random((samples, self.channels)) < 0.8
            self.dy_mask = rng.random((samples, self.filters)) < 0.6
        masks = self.x_mask, self.dy_mask
        self.x, self.weight, self.dy = operands(rng, SHAPES[name], samples, dtype, *masks)
        self.dy[rng.random(self.dy.shape) < 0.77] = 0

    def gradients(self) -> list[np.ndarray]:
        """dweight, dbias and dx of the compiled kernels."""
        (stride, pad, dilation), masks = self.moves, self.masks()
        dw, db = np.full_like(self.weight, 7), np.full(self.filters, 7, self.x.dtype)
        conv.weight_grad(self.x, self.dy, stride, pad, dw, db, *masks, dilation=dilation)
        rest = (stride, pad, self.size, *masks[::-1])
        return [dw, db, conv.input_grad(self.dy, self.weight, *rest, dilation=dilation)]

    def readable(self) -> list[np.ndarray]:
        """The same of the readable kernels."""
        dw, db, dx = np.empty_like(self.weight), np.empty(self.filters, self.x.dtype), np.empty_like(self.x)
        plain.conv_weight_grad(self.x, self.dy, *self.moves, self.x_mask, self.dy_mask, dw, db)
        plain.conv_input_grad(self.dy, self.weight, *self.moves, self.dy_mask, self.x_mask, dx)
        return [dw, db, dx]

    def masks(self) -> list[np.ndarray | None]:
        """Those of x and dy as the checked functions take them."""
        return [mask if mask.size else None for mask in (self.x_mask, self.dy_mask)]


@pytest.mark.parametrize("gated", [False, True], ids=["dense", "closed channels"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_bits_of_the_readable_kernels(name, dtype, gated):
    case = Case(name, dtype, gated)
    for ours, readable in zip(case.gradients(), case.readable(), strict=True):
        assert ours.tobytes() == readable.tobytes()


@compiled
def test_zeros_are_skipped_where_most_of_dy_is_zero_and_only_there():
    case = Case("two vectors of channels", "float32")
    operands, dense = (case.weight, case.x, tuple(case.moves), ALL_ON), np.ones_like(case.dy)
    assert few_slopes.spreads(case.dy, *operands)
    assert not few_slopes.spreads(dense, *operands)
    window = 3 * case.channels
    assert few_slopes.windows_pay(case.dy, ALL_ON, window)
    assert not few_slopes.windows_pay(dense, ALL_ON, window)


@compiled
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_go_on_from_part_to_part_of_a_batch(dtype):
    case = Case("two vectors of channels", dtype)
    needs = tiled_weight_grad.weight_grad_scratch(
        *case.weight.shape[1::-1], case.weight.shape[2:], *case.moves[:2], case.size, case.dy.shape[2:],
        case.x.itemsize,
    )  # fmt: skip
    memory = np.empty(needs[0], dtype), np.empty(needs[1], np.int32)
    dw, db = np.full_like(case.weight, 7), np.full(case.filters, 7, dtype)
    for part, more in ((slice(0, 2), False), (slice(2, 3), True)):
        operands = np.ascontiguousarray(case.x[part]), np.ascontiguousarray(case.dy[part])
        tiled_weight_grad.weight_grad(*operands, *case.moves, ALL_ON, ALL_ON, more, *memory, dw, db)
    wanted = case.readable()
    assert (dw.tobytes(), db.tobytes()) == (wanted[0].tobytes(), wanted[1].tobytes())


@compiled
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_zeros_times_what_is_not_finite_are_nan(value):
    case = Case("no padding", "float32")  # zeros of the padding are multiplied by the compiled kernels alone
    case.x[1, 3, 2, 2] = case.weight[2, 3, 1, 1] = value
    (*ours, dx), (*readable, wanted) = case.gradients(), case.readable()
    for mine, theirs in zip(ours, readable, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert np.isnan(wanted).any()
    assert np.isnan(dx[np.isnan(wanted)]).all()  # and where it reads zeros around dy


@compiled
@pytest.mark.parametrize("at_end", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SHAPES)
def test_nothing_outside_the_arrays_is_touched(name, dtype, at_end):
    case = Case(name, dtype)

    def g(array):
        return guarded(array, at_end)

    x, dy, weight = g(case.x), g(case.dy), g(case.weight)
    ends, window = (case.dy.shape[1:], case.x.shape[1:]), case.weight.shape[2:]
    needs = tiled_conv.convolve_scratch(*ends, window, tuple(case.moves), True, x.itemsize)
    memory = g(np.full(needs[0], np.nan, dtype)), g(np.full(needs[1], 2**30, np.int32))
    dx, masks = g(np.full_like(case.x, np.nan)), (ALL_ON, ALL_ON)
    tiled_conv.convolve(dy, weight, weight.reshape(-1)[:0], *case.moves, True, *masks, True, *memory, dx)
    stride, pad, dilation = case.moves
    needs = tiled_weight_grad.weight_grad_scratch(
        case.channels, case.filters, window, stride, pad, case.size, dy.shape[2:], x.itemsize, dilation
    )
    memory = g(np.full(needs[0], np.nan, dtype)), g(np.full(needs[1], 2**30, np.int32))
    dw, db = g(np.full_like(case.weight, np.nan)), g(np.full(case.filters, np.nan, dtype))
    tiled_weight_grad.weight_grad(x, dy, *case.moves, *masks, False, *memory, dw, db)
    for ours, readable in zip((dw, db, dx), case.readable(), strict=True):
        assert ours.tobytes() == readable.tobytes()


@kernel
def listed(values, start, count, out):
    """`list_entries`, called from Python."""
    return few_slopes.list_entries(values, start, count, out, 0)


@compiled
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 40, 61])
def test_entries_that_are_not_zero_are_listed_in_order(dtype, count):
    rng = np.random.default_rng(count)
    values = rng.choice([0.0, -0.0, 1.5, -1e-40, np.nan, np.inf], 5 + count).astype(dtype)
    out = np.full(count + few_slopes.LISTED, -1, np.int32)
    found = listed(guarded(values, True), 5, count, guarded(out, True)), values[5:]
    assert found[0] == np.count_nonzero(found[1])
    listed(values, 5, count, out)
    assert out[: found[0]].tolist() == np.flatnonzero(values[5:]).tolist()
