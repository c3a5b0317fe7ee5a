"""Convolution with samples as lanes: the same results as `plain`, bit for bit.

In `tiled_conv` the lanes of a vector are neighbouring pixels, so pixels at the border multiply the zeros of
the padding like all others: of 8x8 images and 3x3 kernels that is a sixth of the work, of 4x4 images a third.
Here the lanes are one pixel of several samples. All of them lack the same taps, and a lacking tap is left out
of the table of terms. Images come into this order, (channel, pixel, sample), by one transposition and results
leave it by another; there are no shifted copies, since a tap is only an offset. Neighbouring pixels that use
the same taps are computed together.

It needs samples that have the same channels open, as many as a vector has lanes, and finite weights: others
leave NaN at the border in the other order, which multiplies them by zero.

Source: mathematics.md §2.1. The use of the tile (`tile.py`) is derived.
"""

from __future__ import annotations

import numpy as np

from refimpl.kernels.arrays import LARGEST_OFFSET
from refimpl.kernels.jit import kernel, large_kernel, optimise_for_size, shared
from refimpl.kernels.panels import multiples, open_channels, pick, row_table, term_table, transpose
from refimpl.kernels.target import VECTOR_BYTES
from refimpl.kernels.tile import sweep
from refimpl.kernels.views import cut

MOST_VECTORS = 2  # of samples at a time
PART_BYTES = 1 << 20  # of results that exist in this order at a time: what a second-level cache holds
SKIPPED, SKIPPED_BY_ONE = 0.1, 0.2  # least share of terms in the padding, with two vectors of samples and one


@shared
def _source_of(position, tap, move, transposed, size):
    """The row (or column) of the source that a tap of a position reads, or -1.

    move = (stride, pad, dilation) of this axis.
    """
    stride, pad, dilation = move
    at = position * stride + tap * dilation - pad
    if transposed:
        at = position + pad - tap * dilation
        at = at // stride if at % stride == 0 else -1
    return at if 0 <= at < size else -1


@shared
def _share_met(taps, size, move, transposed, positions):
    """The share of the pairs of a target position and a tap that read a row (or column) of the source."""
    count = 0
    for p in range(positions):
        for k in range(taps):
            count += _source_of(p, k, move, transposed, size) >= 0
    return count / (taps * positions)


@shared
def together(samples, source, target, kernel_size, moves, transposed, itemsize):
    """How many samples to take as lanes: whole vectors, or 0 where the other order is better.

    source, target = (channels, height, width); moves = (stride, pad, dilation). Measured on an AMD EPYC with
    vectors of 32 and 64 bytes: two vectors of samples gain 3 to 38 % where a tenth of the terms or more falls
    on padding, and one vector gains where a fifth does. Strides gain 0 to 45 %: the other order takes the
    columns of images apart, or puts those of results together.
    """
    single, (stride, pad, dilation), taps = VECTOR_BYTES // itemsize, moves, kernel_size
    vectors = min(MOST_VECTORS, samples // single)
    largest = max(source[0] * source[1] * source[2], target[0] * target[1] * target[2])
    if vectors == 0 or taps[0] * taps[1] == 1 or largest * MOST_VECTORS * single > LARGEST_OFFSET:
        return 0
    if max(stride) > 1:
        return vectors * single
    share = 1.0
    for axis in range(2):
        move = stride[axis], pad[axis], dilation[axis]
        share *= _share_met(taps[axis], source[1 + axis], move, transposed, target[1 + axis])
    return vectors * single if 1 - share >= (SKIPPED if vectors > 1 else SKIPPED_BY_ONE) else 0


@shared
def _rows_at_once(target, lanes, itemsize):
    """How many rows of all results exist in this order at a time."""
    return min(target[1], max(1, PART_BYTES // (itemsize * lanes * target[2] * max(1, target[0]))))


def scratch(source, target, kernel_size, moves, transposed, itemsize):
    """(floats, ints) that `convolve` needs (see `together`)."""
    lanes = together(MOST_VECTORS * VECTOR_BYTES, source, target, kernel_size, moves, transposed, itemsize)
    if lanes == 0:
        return 0, 0
    taps, weights = kernel_size[0] * kernel_size[1], source[0] * target[0] * kernel_size[0] * kernel_size[1]
    inner, pixels = source[0] * source[1] * source[2], target[0] * target[1] * target[2]
    widths = VECTOR_BYTES // itemsize, lanes
    part = target[0] * target[2] * max(each * _rows_at_once(target, each, itemsize) for each in widths)
    floats = inner * lanes + part + target[0] + 1 + (weights if transposed else 0)
    edges = target[1] * kernel_size[0] + target[2] * kernel_size[1]
    places = 2 * source[2] + 2 * target[2] + target[2] * kernel_size[1] + source[1]
    tables = 2 * (taps + lanes + source[0] * taps + target[0] + 1) + source[0] + target[0]
    return floats, edges + places + tables + inner + pixels


@kernel
def _reached(taps, size, move, transposed, table):
    """table[p * taps + k] = the row (or column) of the source that tap k of position p reads, or -1."""
    optimise_for_size()
    for i in range(table.size):
        table[i] = _source_of(i // taps, i % taps, move, transposed, size)


@kernel
def _taken_apart(size, step, place, at):
    """The places of columns if every step-th one lies beside the other: place[column], at[place]."""
    optimise_for_size()
    count = 0
    for residue in range(step):
        for column in range(residue, size, step):
            place[column], at[count] = count, column
            count += 1


@kernel
def _pixel_table(rows, place, lanes, table):
    """table[row, column] = where the samples of a pixel lie."""
    optimise_for_size()
    for r in range(rows):
        for q in range(place.size):
            table[r * place.size + q] = (r * place.size + place[q]) * lanes


@kernel
def _first_met(taps, table, p):
    """The first row (or column) of the source that position p reads; 0 if it reads none."""
    for k in range(taps):
        if table[p * taps + k] >= 0:
            return table[p * taps + k]
    return 0


@kernel
def _continues(taps, table, place, a, b, step):
    """Whether position b uses the taps of a and reads `step` places further with each; step -1: any."""
    for k in range(taps):
        first, second = table[a * taps + k], table[b * taps + k]
        if (first < 0) != (second < 0):
            return False
        if first >= 0:
            distance = place[second] - place[first]
            step = distance if step < 0 else step
            if distance != step:
                return False
    return True


@kernel
def _alike_until(taps, table, place, at, start):
    """One past the last of the places from `start` on whose columns continue each other."""
    optimise_for_size()
    stop = start + 1
    while stop < at.size and _continues(taps, table, place, at[stop - 1], at[stop], 1):
        stop += 1
    return stop


@kernel
def _met_taps(met, corner, width, lanes, tap_s, tap_v):
    """List the taps that rows met[0] and columns met[1] of the source allow; returns how many.

    met[1] are places of columns; tap_s: where a tap lies in the weights; tap_v: in the panel after `corner`.
    """
    optimise_for_size()
    count, (rows, cols) = 0, met
    for ky in range(rows.size):
        for kx in range(cols.size):
            if rows[ky] >= 0 and cols[kx] >= 0:
                tap_s[count] = ky * cols.size + kx
                tap_v[count] = ((rows[ky] - corner[0]) * width + cols[kx] - corner[1]) * lanes
                count += 1
    return count


@kernel
def _swap(weights, channels, taps, out):
    """Exchange the first two axes of weights (channels[0], channels[1], taps), 16 of the first at a time."""
    for start in range(0, channels[0], 16):
        for b in range(channels[1]):
            for a in range(start, min(start + 16, channels[0])):
                for t in range(taps):
                    out[(b * channels[0] + a) * taps + t] = weights[(a * channels[1] + b) * taps + t]


@kernel
def _load(images, read_list, count, channels, lanes, sample_at, pixel_at, panel):
    """panel = the listed channels of `lanes` images in the order (channel, pixel, sample)."""
    area = pixel_at.size // channels
    if count == channels:
        transpose(images, sample_at, lanes, pixel_at.size, panel, pixel_at)
        return
    for i in range(count):
        first = read_list[i] * area
        transpose(images[first:], sample_at, lanes, area, panel, pixel_at[first:])


@kernel
def _bring_home(part, write_list, count, shape, run, sample_at, pixel_at, results):
    """Write the listed channels of a part of the results as images; run = (first pixel, number of pixels)."""
    channels, lanes, width = shape[0], shape[1], VECTOR_BYTES // part.itemsize
    pixels = pixel_at.size // channels
    for i in range(0, lanes, width):  # vectors outside channels: each sample is then written from end to end
        if count == channels and run[1] == shape[2]:
            transpose(part[i:], pixel_at, channels * pixels, width, results, sample_at[i:])
            continue
        for k in range(count):
            out, here = results[write_list[k] * shape[2] + run[0] :], pixel_at[write_list[k] * pixels :]
            transpose(part[i:], here, run[1], width, out, sample_at[i:])


@large_kernel
def convolve(source, weights, taps, moves, transposed, masks, bias, lanes, scratch, target):
    """target = the sums over source channels and taps, for samples that are a multiple of `lanes`.

    weights: flat; taps = (kh, kw); moves = (stride, pad, dilation); masks = (reads, writes), the same for all
    samples; bias = (whether, values); scratch = (floats, ints). Closed channels of the target are left alone.
    """
    optimise_for_size()
    (n_samples, channels, height, width), (kh, kw) = source.shape, taps
    (targets, rows, cols), (stride, pad, dilation), (floats, ints) = target.shape[1:], moves, scratch
    area, pixels, itemsize = height * width, rows * cols, source.itemsize
    at_once = _rows_at_once((targets, rows, cols), lanes, itemsize)

    row_at, ints = cut(ints, rows * kh)
    col_at, ints = cut(ints, cols * kw)
    read_list, ints = cut(ints, channels)
    write_list, ints = cut(ints, targets)
    source_place, ints = cut(ints, width)
    source_at, ints = cut(ints, width)
    target_place, ints = cut(ints, cols)
    target_at, ints = cut(ints, cols)
    met_places, ints = cut(ints, cols * kw)
    row_place, ints = cut(ints, height)
    tap_s, ints = cut(ints, kh * kw)
    tap_v, ints = cut(ints, kh * kw)
    s_row, ints = cut(ints, targets + 1)
    c_row, ints = cut(ints, targets + 1)
    sample_in, ints = cut(ints, lanes)
    sample_out, ints = cut(ints, lanes)
    pixel_in, ints = cut(ints, channels * area)
    pixel_out, ints = cut(ints, targets * at_once * cols)
    s_at, v_at = cut(ints, channels * kh * kw)
    panel, floats = cut(floats, channels * area * lanes)
    part, floats = cut(floats, targets * at_once * cols * lanes)
    bias_row, swapped = cut(floats, targets + 1)

    n_read = open_channels(masks[0], 0, channels, read_list)
    n_write = open_channels(masks[1], 0, targets, write_list)
    _reached(kh, height, (stride[0], pad[0], dilation[0]), transposed, row_at)
    _reached(kw, width, (stride[1], pad[1], dilation[1]), transposed, col_at)
    _taken_apart(width, 1 if transposed else stride[1], source_place, source_at)
    _taken_apart(cols, stride[1] if transposed else 1, target_place, target_at)
    for i in range(cols * kw):
        met_places[i] = source_place[col_at[i]] if col_at[i] >= 0 else -1
    multiples(height, np.int64(1), row_place)
    multiples(lanes, np.int64(channels * area), sample_in)
    multiples(lanes, np.int64(targets * pixels), sample_out)
    _pixel_table(channels * height, source_place, lanes, pixel_in)
    _pixel_table(targets * at_once, target_place, lanes, pixel_out)
    line = cols * lanes
    row_table(write_list, n_write, channels * kh * kw, s_row)
    row_table(write_list, n_write, at_once * line, c_row)
    if bias[0]:
        pick(bias[1], write_list, n_write, bias_row)
    if transposed:
        _swap(weights, (channels, targets), kh * kw, swapped)
        weights = swapped

    scalars, nothing, off = (weights, s_row, s_at), (c_row, np.int64(0)), np.bool_(False)
    for n in range(0, n_samples, lanes):
        _load(source[n:].reshape(-1), read_list, n_read, channels, lanes, sample_in, pixel_in, panel)
        for top in range(0, rows, at_once):
            count, j, depth = min(at_once, rows - top), 0, 0
            while j < cols:
                q, stop = target_at[j], _alike_until(kw, col_at, source_place, target_at, j)
                left = _first_met(kw, met_places, q)
                for p in range(top, top + count):
                    upper = _first_met(kh, row_at, p)
                    if p == top or not _continues(kh, row_at, row_place, p - 1, p, -1):
                        met = (row_at[p * kh : (p + 1) * kh], met_places[q * kw : (q + 1) * kw])
                        used = _met_taps(met, (upper, left), width, lanes, tap_s, tap_v)
                        term_table(read_list, n_read, kh * kw, tap_s[:used], s_at)
                        term_table(read_list, n_read, area * lanes, tap_v[:used], v_at)
                        depth = n_read * used
                    v, c = panel[(upper * width + left) * lanes :], part[(p - top) * line + j * lanes :]
                    wide = (stop - j) * lanes
                    sweep(n_write, depth, wide, scalars, v, v_at, c, c_row, nothing, off, bias[0], bias_row)
                j = stop
            shape, run = (targets, lanes, pixels), (top * cols, count * cols)
            _bring_home(part, write_list, n_write, shape, run, sample_out, pixel_out, target[n:].reshape(-1))
