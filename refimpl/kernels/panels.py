"""Panels: the vector operand of the tile, laid out so that every term is one contiguous run of lanes.

Everything here writes into scratch arrays that the caller passes in, and nothing outside them.
"""

from __future__ import annotations

from refimpl.kernels.jit import kernel
from refimpl.kernels.plain import is_on
from refimpl.kernels.simd import copy_rows, transpose_block
from refimpl.kernels.target import VECTOR_BYTES


@kernel
def whole_vectors(size, itemsize):
    """`size` rounded up to whole vectors, so that what follows starts where a vector does."""
    lanes = VECTOR_BYTES // itemsize
    return (size + lanes - 1) // lanes * lanes


@kernel
def open_channels(mask, n, channels, out):
    """List the open channels of sample n in `out`; returns how many."""
    count = 0
    for c in range(channels):
        if is_on(mask, n, c):
            out[count] = c
            count += 1
    return count


@kernel
def row_table(channels, count, step, table):
    """table[i] = channels[i] * step, the last entry twice: `sweep` may compute the last row twice."""
    for i in range(count):
        table[i] = channels[i] * step
    table[count] = table[max(0, count - 1)]


@kernel
def term_table(channels, count, step, taps, table):
    """table = channels[i] * step + taps[t], for each channel and then for each tap."""
    k = 0
    for i in range(count):
        base = channels[i] * step
        for t in range(taps.size):
            table[k] = base + taps[t]
            k += 1


@kernel
def _inside(size, shift, stride, positions):
    """First and one-past-last of the positions p whose p * stride - shift lies in 0 .. size - 1."""
    first = min(positions, max(0, (shift + stride - 1) // stride))
    return first, max(first, min(positions, (size - 1 + shift) // stride + 1))


@kernel
def copy_planes(source, channels, count, size, shift, stride, shape, panel, at, step):
    """Copy the planes of the listed channels of an image, shifted, into planes `step` apart of the panel.

    panel[at + i * step + r * cols + q] = source[channels[i], r * stride - down, q * stride - right] with
    size = (height, width), shift = (down, right), shape = (rows, cols). Columns outside the image come
    as zero; rows outside it are left to `clear_rows`, because they are the same for every sample.
    """
    lanes = VECTOR_BYTES // panel.itemsize
    cols = shape[1]
    top, bottom = _inside(size[0], shift[0], stride[0], shape[0])
    first, last = _inside(size[1], shift[1], stride[1], cols)
    begin, row = (top * stride[0] - shift[0]) * size[1] - shift[1], stride[0] * size[1]
    at += top * cols
    for i in range(count):
        line = channels[i] * size[0] * size[1] + begin
        if stride[1] == 1:
            for q in range(0, cols, lanes):
                part = (first - q, last - q, cols - q)
                copy_rows(bottom - top, part, source, (line + q, row), panel, (at + q, cols))
        else:
            for r in range(bottom - top):
                for q in range(cols):
                    inside = first <= q < last
                    panel[at + r * cols + q] = source[line + r * row + q * stride[1]] if inside else 0
        at += step


@kernel
def clear_rows(size, shift, stride, shape, panel, at, planes, step):
    """Zero, in each of `planes` planes `step` apart, the rows that `copy_plane` leaves out."""
    lanes = VECTOR_BYTES // panel.itemsize
    cols = shape[1]
    top, bottom = _inside(size, shift, stride, shape[0])
    for start, stop in ((0, top * cols), (bottom * cols, shape[0] * cols)):
        for q in range(start, stop, lanes):
            copy_rows(planes, (0, 0, stop - q), panel, (0, 0), panel, (at + q, step))


@kernel
def transpose(source, start, step, rows, cols, target, to, table):
    """target[to + table[j] + i] = source[start + i * step + j] for i < rows, j < cols."""
    lanes = VECTOR_BYTES // target.itemsize
    for i in range(0, rows, lanes):
        for j in range(0, cols, lanes):
            counts = (min(lanes, rows - i), min(lanes, cols - j))
            transpose_block(counts, source, (start + i * step + j, step), target, to + i, table, j)
