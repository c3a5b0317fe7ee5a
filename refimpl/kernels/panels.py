"""Panels: the vector operand of the tile, laid out so that every term is one contiguous run of lanes.

Everything here writes into scratch arrays that the caller passes in, and nothing outside them.
"""

from __future__ import annotations

import numpy as np

from refimpl.kernels.jit import kernel, optimise_for_size, shared
from refimpl.kernels.simd import copy_rows, copy_run, split_pairs, transpose_block
from refimpl.kernels.target import VECTOR_BYTES


@shared
def whole_vectors(size, itemsize):
    """`size` rounded up to whole vectors, so that what follows it starts at a vector."""
    lanes = VECTOR_BYTES // itemsize
    return (size + lanes - 1) // lanes * lanes


@kernel
def clear(run):
    """Zero a contiguous run. (A loop over a slice is vectorised; one from `start` on in a longer array is
    not, because indices might be negative.)"""
    zero = run.dtype.type(0)
    for i in range(run.size):
        run[i] = zero


@kernel
def copy(source, target):
    """target = the start of source, both contiguous runs.

    Numba's own assignment of arrays compiles checks and messages for shapes that differ, which takes seconds.
    """
    for i in range(target.size):
        target[i] = source[i]


@kernel
def finite(run):
    """Whether no entry of a contiguous run is infinite or NaN."""
    count = 0
    for i in range(run.size):
        count += run[i] * 0 != 0
    return count == 0


@kernel
def multiples(count, step, table):
    """table[i] = i * step."""
    optimise_for_size()
    for i in range(count):
        table[i] = i * step


@kernel
def grid(size, steps, start, table):
    """table[row, column] = start + row * steps[0] + column * steps[1]."""
    optimise_for_size()
    for p in range(size[0]):
        for q in range(size[1]):
            table[p * size[1] + q] = start + p * steps[0] + q * steps[1]


@kernel
def open_channels(mask, n, channels, out):
    """List the open channels of sample n in `out`; returns how many."""
    optimise_for_size()
    if mask.shape[0] == 0:
        multiples(channels, np.int64(1), out)
        return channels
    row, count = mask[n], 0
    for c in range(channels):  # without branches: whether a channel is open cannot be predicted
        out[count] = c
        count += row[c]
    return count


@kernel
def closed_channels(mask, n, channels, out):
    """List the closed channels of sample n in `out`; returns how many."""
    optimise_for_size()
    if mask.shape[0] == 0:
        return 0
    row, count = mask[n], 0
    for c in range(channels):
        out[count] = c
        count += not row[c]
    return count


@kernel
def row_table(channels, count, step, table):
    """table[i] = channels[i] * step, the last entry twice: `sweep` may compute the last row twice."""
    optimise_for_size()
    for i in range(count):
        table[i] = channels[i] * step
    table[count] = table[max(0, count - 1)]


@kernel
def pick(values, channels, count, out):
    """out[i] = values[channels[i]], the last entry twice (see `row_table`)."""
    optimise_for_size()
    for i in range(count):
        out[i] = values[channels[i]]
    out[count] = out[max(0, count - 1)]


@kernel
def term_table(channels, count, step, taps, table):
    """table = channels[i] * step + taps[t], for each channel and then for each tap."""
    optimise_for_size()
    k = 0
    for i in range(count):
        base = channels[i] * step
        for t in range(taps.size):
            table[k] = base + taps[t]
            k += 1


@kernel
def _inside(size, shift, stride, positions):
    """First and one-past-last of the positions p whose p * stride - shift lies in 0 .. size - 1."""
    optimise_for_size()
    first = min(positions, max(0, (shift + stride - 1) // stride))
    return first, max(first, min(positions, (size - 1 + shift) // stride + 1))


@kernel
def shift_table(size, down, right, stride, shape, table):
    """Prepare `copy_planes`: for each shift five entries, which depend on the shapes only.

    A shifted plane of `shape` = (rows, cols) holds at (r, q) the entry
    (r * stride - down, q * stride - right) of an image plane of `size` = (height, width), or zero outside
    it. The entries: number of rows that meet the image, the first of them in the shifted plane and where they
    start in the image plane (taken apart, where there is a horizontal stride), first and one-past-last column
    inside.
    """
    optimise_for_size()
    for j in range(down.size):
        top, bottom = _inside(size[0], down[j], stride[0], shape[0])
        first, last = _inside(size[1], right[j], stride[1], shape[1])
        table[5 * j] = bottom - top
        table[5 * j + 1] = top
        row, column = top * stride[0] - down[j], np.int64(-right[j])
        apart = column % stride[1] * size[0] + row  # the row in a plane that is taken apart
        table[5 * j + 2] = apart * _share(size, stride) + column // stride[1]
        table[5 * j + 3] = first
        table[5 * j + 4] = last


@kernel
def copy_planes(source, channels, count, size, stride, columns, table, panel, plane):
    """Fill the panel: for each listed channel all its shifted planes, one after the other.

    columns = (first, number, width): which columns of the planes are filled, and how wide these are: several
    samples may lie side by side. Rows outside the image are left to `clear_rows`: they are the same for every
    sample. The loop over shifts is outside that over channels, so that the masks of partial vectors are
    computed once per shift; but with a horizontal stride each channel is first taken apart.
    """
    lanes, (begin, cols, width), apart_width = VECTOR_BYTES // panel.itemsize, columns, _share(size, stride)
    shifts, area, whole = table.size // 5, size[0] * size[1], stride[1] == 1
    apart = np.empty(0 if whole else stride[1] * size[0] * apart_width, dtype=panel.dtype)
    for first in range(0, count, max(1, count) if whole else 1):
        last, planes = count if whole else first + 1, source
        if not whole:
            at = channels[first] * area
            _take_apart(source[at : at + area], size, stride, apart)
            planes = apart
        for j in range(shifts):
            rows, to = table[5 * j], j * plane + table[5 * j + 1] * width + begin
            for q in range(0, cols, lanes):
                part = (table[5 * j + 3] - q, table[5 * j + 4] - q, cols - q)
                for i in range(first, last):
                    start = table[5 * j + 2] + q + (channels[i] * area if whole else 0)
                    place = (i * shifts * plane + to + q, width)
                    copy_rows(rows, part, planes, (start, stride[0] * apart_width), panel, place)


@kernel
def _share(size, stride):
    """How many columns each of the parts has into which an image is taken apart."""
    return (size[1] + stride[1] - 1) // stride[1]


@kernel
def _take_apart(image, size, stride, apart):
    """Put every stride-th column beside the other: apart[column % stride, row, column // stride]."""
    if stride[1] == 2 and size[1] % 2 == 0:
        split_pairs(image.size // 2, image, apart)
        return
    at = 0
    for residue in range(stride[1]):
        for r in range(size[0]):
            for q in range(_share(size, stride)):
                column = q * stride[1] + residue
                if column < size[1]:
                    apart[at] = image[r * size[1] + column]
                at += 1


@kernel
def clear_rows(shape, table, panel, plane, planes):
    """Zero the rows of the panel's planes of `shape` that `copy_planes` leaves out."""
    optimise_for_size()
    lanes = VECTOR_BYTES // panel.itemsize
    shifts = table.size // 5
    for j in range(shifts):
        top = np.int64(table[5 * j + 1]) * shape[1]
        bottom = top + table[5 * j] * shape[1]
        for start, stop in ((0, top), (bottom, shape[0] * shape[1])):
            for q in range(start, stop, lanes):
                to = (j * plane + q, shifts * plane)
                copy_rows(planes // shifts, (0, 0, stop - q), panel, (0, 0), panel, to)


@kernel
def transpose(source, row, rows, cols, target, column):
    """target[column[j] + i] = source[row[i] + j] for i < rows, j < cols."""
    lanes = VECTOR_BYTES // target.itemsize
    for i in range(0, rows, lanes):
        for j in range(0, cols, lanes):
            counts = (min(lanes, rows - i), min(lanes, cols - j))
            transpose_block(counts, source, (j, row, i), target, (i, column, j))


@kernel
def copy_runs(count, length, source, start, here, target, to, there):
    """target[to + there[i] + q] = source[start + here[i] + q] for i < count, q < length."""
    lanes = VECTOR_BYTES // target.itemsize
    for q in range(0, length, lanes):
        copy_run(count, length - q, source, (start + q, here), target, (to + q, there))
