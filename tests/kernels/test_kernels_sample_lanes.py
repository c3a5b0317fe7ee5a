"""Convolutions whose lanes are samples: the bits of the readable kernels, and nothing outside the arrays."""

from __future__ import annotations

import numpy as np
import pytest
from convolutions import operands
from guards import guarded

from refimpl.kernels import conv, plain, sample_lanes, tiled_conv
from refimpl.kernels.arrays import ALL_ON
from refimpl.kernels.target import VECTOR_BYTES

# channels, filters, size, kernel, stride, pad, dilation
SHAPES = {
    "8x8": (5, 7, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1)),
    "4x4": (6, 5, (4, 4), (3, 3), (1, 1), (1, 1), (1, 1)),
    "stride 2": (5, 7, (8, 8), (3, 3), (2, 2), (1, 1), (1, 1)),
    "stride 2, odd size": (3, 4, (9, 7), (3, 3), (2, 2), (1, 1), (1, 1)),
    "kernel smaller than stride": (3, 4, (9, 9), (1, 2), (3, 3), (0, 1), (1, 1)),
    "5x5": (3, 4, (9, 9), (5, 5), (1, 1), (2, 2), (1, 1)),
    "padding wider than the kernel reaches": (2, 3, (4, 5), (2, 2), (1, 1), (3, 2), (1, 1)),
    "dilation": (3, 4, (6, 6), (3, 3), (2, 2), (2, 2), (2, 2)),
    "dilation that no stride divides": (3, 4, (7, 7), (3, 3), (3, 3), (1, 1), (2, 2)),
    "not square": (4, 6, (6, 9), (3, 5), (2, 1), (1, 2), (1, 1)),
    "many rows": (2, 3, (40, 5), (3, 7), (1, 1), (1, 3), (1, 1)),
}


class Case:
    """A convolution of more samples than two vectors and one have lanes; masks are the same for all."""

    def __init__(self, name: str, dtype: str, gated: bool) -> None:
        channels, filters, self.size, _, *self.moves = SHAPES[name]
        rng, lanes = np.random.default_rng(0), VECTOR_BYTES // np.dtype(dtype).itemsize
        samples = 3 * lanes + 3
        self.reads = self.writes = ALL_ON
        if gated:
            self.reads = np.tile(np.arange(channels) % 3 != 1, (samples, 1))
            self.writes = np.tile(np.arange(filters) % 3 != 0, (samples, 1))
        masks = self.reads, self.writes
        self.x, self.weight, self.dy = operands(rng, SHAPES[name], samples, dtype, *masks)
        self.bias = rng.standard_normal(filters).astype(dtype)

    def shapes(self, transposed: bool) -> tuple:
        """What `together` and the scratch ask for."""
        inner, outer = self.x.shape[1:], self.dy.shape[1:]
        ends = (outer, inner) if transposed else (inner, outer)
        return *ends, self.weight.shape[2:], tuple(self.moves), transposed, self.x.itemsize


def both(case: Case, weight: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(compiled, readable) results of both passes."""
    masks = [mask if mask.size else None for mask in (case.reads, case.writes)]
    (stride, pad, dilation), readable = case.moves, (np.full_like(case.dy, 7), np.full_like(case.x, 7))
    plain.conv_forward(case.x, weight, case.bias, *case.moves, case.reads, case.writes, readable[0])
    plain.conv_input_grad(case.dy, weight, *case.moves, case.writes, case.reads, readable[1])
    y = conv.forward(case.x, weight, case.bias, stride, pad, *masks, dilation=dilation)
    dx = conv.input_grad(case.dy, weight, stride, pad, case.size, *masks[::-1], dilation=dilation)
    return list(zip((y, dx), readable, strict=True))


@pytest.mark.parametrize("gated", [False, True], ids=["dense", "closed channels"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_bits_of_the_readable_kernels(name, dtype, gated):
    case = Case(name, dtype, gated)
    taken = [sample_lanes.together(len(case.x), *case.shapes(transposed)) for transposed in (False, True)]
    assert max(taken) > 0
    for ours, readable in both(case, case.weight):
        assert ours.tobytes() == readable.tobytes()


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_weights_that_are_not_finite_leave_the_same_nan_whatever_the_number_of_samples(value):
    case = Case("8x8", "float32", False)
    weight = case.weight.copy()
    weight[0, 0, 0, 0] = value
    together = conv.forward(case.x, weight, case.bias, (1, 1), (1, 1))
    single = [conv.forward(x[None], weight, case.bias, (1, 1), (1, 1)) for x in case.x]
    np.testing.assert_array_equal(together, np.concatenate(single))
    assert np.isnan(together[:, 0]).any()


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SHAPES)
def test_nothing_outside_the_arrays_is_touched(name, dtype, at_end):
    case = Case(name, dtype, True)

    def g(array):
        return guarded(array, at_end)

    moves, masks = case.moves, (g(case.reads), g(case.writes))
    weight, bias = g(case.weight), g(case.bias)
    runs = (
        (False, g(case.x), masks, g(np.full_like(case.dy, np.nan))),
        (True, g(case.dy), masks[::-1], g(np.full_like(case.x, np.nan))),
    )
    for transposed, source, (reads, writes), target in runs:
        needs = tiled_conv.convolve_scratch(*case.shapes(transposed))
        memory = g(np.full(needs[0], np.nan, dtype=dtype)), g(np.full(needs[1], 2**30, dtype=np.int32))
        tiled_conv.convolve(source, weight, bias, *moves, transposed, reads, writes, True, *memory, target)
        assert not np.isnan(target).any()
