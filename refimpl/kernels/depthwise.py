"""Depthwise convolution on vectors of channels: the same results as `plain`, bit for bit.

Where every channel has a filter of its own, the rows of the tile in `tile.py` share nothing. So lanes are
channels here: the image of a sample is laid out with channels last and with its padding, and a tile has
pixels as rows and taps as terms, or, for the weight gradient, taps as rows and pixels as terms. Only open
channels are laid out, a block of them at a time.

A pixel i of the target and a tap k meet at i * step + base + k * gap in the source. Forward that is (stride,
-padding, dilation); the input gradient of an unstrided convolution has (1, padding, -dilation).

Source: mathematics.md §2.1, §2.3b. Derived.
"""

from __future__ import annotations

import numpy as np

from refimpl.kernels.arrays import check_offsets
from refimpl.kernels.jit import kernel, large_kernel, optimise_for_size, shared
from refimpl.kernels.panels import clear, grid, multiples, transpose, whole_vectors
from refimpl.kernels.plain import is_on
from refimpl.kernels.sums import total
from refimpl.kernels.target import TILE_VECTORS, VECTOR_BYTES
from refimpl.kernels.tile import sweep_lanes
from refimpl.kernels.views import cut


@shared
def pitch_of(channels, itemsize):
    """How far pixels are apart in a channels-last image: at most as many channels as a tile is wide."""
    return whole_vectors(min(channels, TILE_VECTORS * (VECTOR_BYTES // itemsize)), itemsize)


def scratch(channels, area, pixels, taps, padded, itemsize):
    """(floats, ints) for a source of `area` pixels (`padded` with padding) and a target of `pixels`."""
    floats = (padded + pixels + taps) * pitch_of(channels, itemsize)
    check_offsets("conv", copies=floats, plane=area * channels, result=pixels * channels)
    return floats, 4 * channels + area + 2 * (pixels + 1) + 2 * (taps + 1)


@kernel
def _margin(size, taps, step, base, gap, count):
    """Zeros needed before a row (or column) of the source, and its length with those before and after."""
    last = base + (taps - 1) * gap
    before = max(0, -min(base, last))
    return before, before + max(size, (count - 1) * step + max(base, last) + 1)


@kernel
def _tables(size, window, result, step, base, gap, channels, pitch, ints):
    """Offsets with channels last: of source pixels, of what pixels and taps read, of pixels and of taps.

    Also the entries of the image, and four tables to fill for the channels at work: their numbers, and where
    they begin in the source, in the target and in the weight.
    """
    optimise_for_size()
    opened, ints = cut(ints, channels)
    plane_at, ints = cut(ints, channels)
    result_at, ints = cut(ints, channels)
    weight_at, ints = cut(ints, channels)
    area, pixels, taps = size[0] * size[1], result[0] * result[1], window[0] * window[1]
    top, height = _margin(size[0], window[0], step[0], base[0], gap[0], result[0])
    left, width = _margin(size[1], window[1], step[1], base[1], gap[1], result[1])
    place, ints = cut(ints, area)
    pixel_reads, ints = cut(ints, pixels + 1)
    pixel_at, ints = cut(ints, pixels + 1)
    tap_reads, ints = cut(ints, taps + 1)
    tap_at, _ = cut(ints, taps + 1)
    line = width * pitch
    grid(size, (line, pitch), top * line + left * pitch, place)
    first = (base[0] + top) * line + (base[1] + left) * pitch
    grid(result, (step[0] * line, step[1] * pitch), first, pixel_reads)
    grid(window, (gap[0] * line, gap[1] * pitch), np.int64(0), tap_reads)
    multiples(pixels, pitch, pixel_at)
    multiples(taps, pitch, tap_at)
    for table in (pixel_reads, pixel_at, tap_reads, tap_at):  # the last entry twice, as `sweep_lanes` wants
        table[table.size - 1] = table[max(0, table.size - 2)]
    lists = (opened, plane_at, result_at, weight_at)
    return height * line, lists, place, pixel_reads, pixel_at, tap_reads, tap_at


@kernel
def _open_in_both(one, other, n, channels, out):
    """List the channels that both masks open for sample n; returns how many."""
    count = 0
    for c in range(channels):
        if is_on(one, n, c) and is_on(other, n, c):
            out[count] = c
            count += 1
    return count


@kernel
def _shift(run, value):
    """run += value."""
    for i in range(run.size):
        run[i] += value


@large_kernel
def convolve(source, weight, bias, step, base, gap, biased, reads, writes, clears, floats, ints, target):
    """The depthwise case of `tiled_conv.convolve`; weight (C, 1, kh, kw)."""
    optimise_for_size()
    n_samples, channels, rows, cols = target.shape
    size, window = (source.shape[2], source.shape[3]), (weight.shape[2], weight.shape[3])
    area, pixels, taps = size[0] * size[1], rows * cols, window[0] * window[1]
    pitch = pitch_of(channels, source.itemsize)
    whole, lists, place, pixel_reads, pixel_at, tap_reads, tap_at = _tables(
        size, window, (rows, cols), step, base, gap, channels, pitch, ints
    )
    opened, plane_at, result_at, weight_at = lists
    image, floats = cut(floats, whole)
    results, packed = cut(floats, pixels * pitch)
    clear(image)
    clear(packed[: taps * pitch])
    for n in range(n_samples):
        sample, out = source[n].reshape(-1), target[n].reshape(-1)
        count = _open_in_both(writes, writes, n, channels, opened)
        for first in range(0, count, pitch):
            part, here = opened[first:], min(pitch, count - first)
            for i in range(here):
                plane_at[i], result_at[i], weight_at[i] = part[i] * area, part[i] * pixels, part[i] * taps
            transpose(sample, plane_at, here, area, image, place)
            transpose(weight.reshape(-1), weight_at, here, taps, packed, tap_at)
            for i in range(here):
                if not is_on(reads, n, part[i]):
                    for p in range(area):
                        image[place[p] + i] = 0
            lanes, no = whole_vectors(here, source.itemsize), np.bool_(False)
            seen = (image, pixel_reads, tap_reads)
            sweep_lanes(pixels, taps, lanes, seen, packed, tap_at, results, pixel_at, no)
            transpose(results, pixel_at, pixels, here, out, result_at)
            for i in range(here if biased else 0):
                _shift(out[result_at[i] : result_at[i] + pixels], bias[part[i]])
        if clears:
            for c in range(channels):
                if not is_on(writes, n, c):
                    clear(out[c * pixels : (c + 1) * pixels])


@large_kernel
def weight_grad(x, dy, steps, x_mask, dy_mask, more, floats, ints, dweight, dbias):
    """The depthwise case of `tiled_weight_grad.weight_grad`; dweight (C, 1, kh, kw)."""
    optimise_for_size()
    (n_samples, channels, rows, cols), (stride, pad, dilation) = dy.shape, steps
    size, window = (x.shape[2], x.shape[3]), (dweight.shape[2], dweight.shape[3])
    area, pixels, taps = size[0] * size[1], rows * cols, window[0] * window[1]
    pitch, base = pitch_of(channels, x.itemsize), (-pad[0], -pad[1])
    whole, lists, place, pixel_reads, pixel_at, tap_reads, tap_at = _tables(
        size, window, (rows, cols), stride, base, dilation, channels, pitch, ints
    )
    opened, plane_at, result_at, weight_at = lists
    image, floats = cut(floats, whole)
    slopes, sums = cut(floats, pixels * pitch)
    weights = dweight.reshape(-1)
    clear(image)
    clear(slopes)
    clear(sums[: taps * pitch])
    if not more:
        clear(weights)
    for n in range(n_samples):
        sample, gradient = x[n].reshape(-1), dy[n].reshape(-1)
        count = _open_in_both(x_mask, dy_mask, n, channels, opened)
        for first in range(0, count, pitch):
            part, here = opened[first:], min(pitch, count - first)
            for i in range(here):
                plane_at[i], result_at[i], weight_at[i] = part[i] * area, part[i] * pixels, part[i] * taps
            transpose(sample, plane_at, here, area, image, place)
            transpose(gradient, result_at, here, pixels, slopes, pixel_at)
            transpose(weights, weight_at, here, taps, sums, tap_at)
            lanes, yes = whole_vectors(here, x.itemsize), np.bool_(True)
            seen = (image, tap_reads, pixel_reads)
            sweep_lanes(taps, pixels, lanes, seen, slopes, pixel_at, sums, tap_at, yes)
            transpose(sums, tap_at, taps, here, weights, weight_at)
        for c in range(channels):
            if dbias.size > 0 and is_on(dy_mask, n, c):
                dbias[c] += total(gradient, c * pixels, pixels)
