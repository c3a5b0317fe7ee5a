"""The weight gradient of a convolution on the vector tile: the same results as `plain`, bit for bit.

Rows of the tile are the open output channels, terms are pixels, and lanes are entries of the window that a
pixel of dy sees. There are two layouts of the windows:

* In the padded image with channels last, (column of the kernel, input channel) is contiguous for each row
  of the kernel. Nothing is copied but the image; the sums, kept as (K, kh, kw, C), are transposed to
  (K, C, kh, kw) once at the end. If so many input channels of a sample are closed that it pays, its image
  holds the open ones only, and their sums are taken out before and put back after.
* Unfolded, all C * kh * kw entries of a window lie side by side, in the order of the weight. This copies
  more, but wastes no lanes where there are few channels (an image's three), and needs no transposition at
  the end, which counts where there are few pixels in the whole batch.

Source: kernels.md, "The tile"; mathematics.md §2.1, §2.3b. Derived.
"""

from __future__ import annotations

import numpy as np

from refimpl.kernels.jit import kernel, shared
from refimpl.kernels.panels import (
    clear_rows,
    copy_planes,
    cut,
    multiples,
    open_channels,
    row_table,
    shift_table,
    term_table,
    transpose,
    whole_vectors,
)
from refimpl.kernels.simd import interleaved_sum
from refimpl.kernels.target import VECTOR_BYTES
from refimpl.kernels.tile import sweep
from refimpl.kernels.tiled_conv import forward_taps

UNFOLD_COST = 0.8  # of unfolding an entry, relative to transposing a sum at the end (measured)
FIRST_LEVEL = 32768  # bytes that a common first-level cache holds beside other things
EXCHANGE_COST = 80  # pixels: taking a sum out and putting it back costs as much as so many terms of it


@shared
def unfolds(samples, channels, filters, kh, kw, pixels, itemsize):
    """Whether windows are unfolded: few pixels in the batch, or few channels and vectors saved by it."""
    lanes, window = VECTOR_BYTES // itemsize, kw * channels
    if samples * pixels * UNFOLD_COST < filters:
        return True
    together, apart = whole_vectors(kh * window, itemsize), kh * whole_vectors(window, itemsize)
    return window < 2 * lanes and together < apart


@shared
def unfolded_part(width, pixels, itemsize):
    """(pixels unfolded at a time, entries of each): what the first-level cache holds, but at least 64."""
    depth = whole_vectors(width, itemsize)
    return min(pixels, max(64, FIRST_LEVEL // (depth * itemsize))), depth


def weight_grad_scratch(samples, channels, filters, kernel_size, stride, pad, size, result_size, itemsize):
    """(floats, ints) that `weight_grad` needs; `size` is that of x, `result_size` that of dy."""
    kh, kw = kernel_size
    taps, pixels = kh * kw, result_size[0] * result_size[1]
    planes, lanes = kw * min(stride[0], kh), VECTOR_BYTES // itemsize
    image = (size[0] + 2 * pad[0]) * (size[1] + 2 * pad[1]) * channels + lanes
    floats = image + 2 * filters * taps * channels
    if unfolds(samples, channels, filters, kh, kw, pixels, itemsize):
        copies = channels * planes * ((result_size[0] + kh) * result_size[1] + lanes)
        part, depth = unfolded_part(taps * channels, pixels, itemsize)
        floats = max(floats, copies + part * depth)
    ints = 3 * (filters + 1) + 2 * pixels + channels * (4 + taps) + 1
    return floats, ints + size[0] * size[1] + 5 * taps + 7 * planes


@kernel
def _image_table(size, pad, inner, place):
    """place[pixel] = where its channels start in the padded image with `inner` channels last."""
    line = (size[1] + 2 * pad[1]) * inner
    for i in range(size[0]):
        for j in range(size[1]):
            place[i * size[1] + j] = (i + pad[0]) * line + (j + pad[1]) * inner


@kernel
def _window_table(shape, row, col, v_at):
    """v_at[(p, q)] = p * row + q * col: where the window of an output pixel starts."""
    for p in range(shape[0]):
        for q in range(shape[1]):
            v_at[p * shape[1] + q] = p * row + q * col


@kernel
def _load_image(sample, channels, count, compact, plane_at, place, image):
    """Channels last: the listed channels side by side if `compact`, else all, the others as zero."""
    if compact:
        row_table(channels, count, place.size, plane_at)
        transpose(sample, plane_at, count, place.size, image, place)
        return
    everything = plane_at.size - 1
    multiples(everything, place.size, plane_at)
    transpose(sample, plane_at, everything, place.size, image, place)
    i = 0
    for c in range(everything):
        if i < count and channels[i] == c:
            i += 1
        else:
            for p in range(place.size):
                image[place[p] + c] = 0


@kernel
def _take_out(sums, rows, n_rows, taps, channels, inner, n_inner, part):
    """part[i, t, j] = sums[rows[i], t, inner[j]]."""
    for i in range(n_rows):
        for t in range(taps):
            line, at = (rows[i] * taps + t) * channels, (i * taps + t) * n_inner
            for j in range(n_inner):
                part[at + j] = sums[line + inner[j]]


@kernel
def _put_back(sums, rows, n_rows, taps, channels, inner, n_inner, part):
    """sums[rows[i], t, inner[j]] = part[i, t, j]."""
    for i in range(n_rows):
        for t in range(taps):
            line, at = (rows[i] * taps + t) * channels, (i * taps + t) * n_inner
            for j in range(n_inner):
                sums[line + inner[j]] = part[at + j]


@kernel
def weight_grad(x, dy, stride, pad, x_mask, dy_mask, floats, ints, dweight, dbias):
    """dweight and dbias, summed over the batch; see `plain.conv_weight_grad`.

    Masks are (N, C) or empty; floats, ints: scratch of the size `weight_grad_scratch` says.
    """
    n_samples, channels, _, _ = x.shape
    filters, _, kh, kw = dweight.shape
    pixels = dy.shape[2] * dy.shape[3]
    gated = x_mask.shape[0] + dy_mask.shape[0] > 0
    dbias[:] = 0
    if gated:
        dweight[:] = 0
    if x_mask.shape[0] == 0 and unfolds(n_samples, channels, filters, kh, kw, pixels, x.itemsize):
        _by_unfolding(x, dy, stride, pad, dy_mask, floats, ints, dweight, dbias)
    else:
        _by_windows(x, dy, stride, pad, x_mask, dy_mask, floats, ints, dweight, dbias)


@kernel
def _add_bias_gradient(gradient, channels, count, pixels, dbias):
    """dbias += the sum over the pixels of each listed channel of one sample."""
    for i in range(count):
        dbias[channels[i]] += interleaved_sum(gradient, channels[i] * pixels, pixels)


@kernel
def _by_unfolding(x, dy, stride, pad, dy_mask, floats, ints, dweight, dbias):
    """`weight_grad` with unfolded windows; dweight is zero where dy is gated."""
    n_samples, channels = x.shape[:2]
    size, (filters, _, kh, kw) = (x.shape[2], x.shape[3]), dweight.shape
    taps, phases, cols = kh * kw, min(stride[0], kh), dy.shape[3]
    pixels, planes = dy.shape[2] * cols, kw * phases
    shape = ((kh - 1) // stride[0] + dy.shape[2], cols)
    plane, entries = whole_vectors(shape[0] * cols, x.itemsize), taps * channels
    part, depth = unfolded_part(entries, pixels, x.itemsize)

    down, ints = cut(ints, planes)
    right, ints = cut(ints, planes)
    shifts, ints = cut(ints, 5 * planes)
    tap_s, ints = cut(ints, taps)
    tap_plane, ints = cut(ints, taps)
    tap_row, ints = cut(ints, taps)
    everything, ints = cut(ints, channels)
    window_at, ints = cut(ints, channels * taps)
    out_list, ints = cut(ints, filters)
    s_row, ints = cut(ints, filters + 1)
    c_row, ints = cut(ints, filters + 1)
    s_at, v_at = cut(ints, pixels)
    panel, unfolded = cut(floats, channels * planes * plane)

    forward_taps(kh, kw, stride[0], pad, phases, tap_s, tap_plane, tap_row, down, right)
    shift_table(size, down, right, stride, shape, shifts)
    clear_rows(shape, shifts, panel, plane, channels * planes)
    for t in range(taps):
        tap_s[t] = tap_plane[t] * plane + tap_row[t] * cols
    multiples(channels, np.int64(1), everything)
    term_table(everything, channels, planes * plane, tap_s, window_at)
    multiples(pixels, np.int64(1), s_at)
    multiples(part, depth, v_at)
    c, n_out = dweight.reshape(-1), 0
    for n in range(n_samples):
        gradient = dy[n].reshape(-1)
        if n == 0 or dy_mask.shape[0] > 0:
            n_out = open_channels(dy_mask, n, filters, out_list)
            row_table(out_list, n_out, pixels, s_row)
            row_table(out_list, n_out, taps * channels, c_row)
        image = x[n].reshape(-1)
        copy_planes(image, everything, channels, size, stride, cols, shifts, panel, plane)
        for first in range(0, pixels, part):
            count = min(part, pixels - first)
            transpose(panel[first:], window_at, entries, count, unfolded, v_at)
            add = n > 0 or first > 0 or dy_mask.shape[0] > 0
            scalars = (gradient, s_row, s_at[first:])
            sweep(n_out, count, entries, scalars, unfolded, v_at, c, c_row, add, np.bool_(False), gradient)
        _add_bias_gradient(gradient, out_list, n_out, pixels, dbias)


@kernel
def _by_windows(x, dy, stride, pad, x_mask, dy_mask, floats, ints, dweight, dbias):
    """`weight_grad` with the windows of a channels-last image."""
    n_samples, channels, height, width = x.shape
    filters, _, kh, kw = dweight.shape
    shape = (dy.shape[2], dy.shape[3])
    taps, pixels = kh * kw, shape[0] * shape[1]
    high, wide = height + 2 * pad[0], width + 2 * pad[1]

    in_list, ints = cut(ints, channels)
    out_list, ints = cut(ints, filters)
    s_row, ints = cut(ints, filters + 1)
    c_row, ints = cut(ints, filters + 1)
    s_at, ints = cut(ints, pixels)
    v_at, ints = cut(ints, pixels)
    plane_at, ints = cut(ints, channels + 1)
    tap_at, ints = cut(ints, taps)
    channel_at, ints = cut(ints, channels)
    place = ints[: height * width]
    image, floats = cut(floats, whole_vectors(high * wide * channels, x.itemsize))
    sums, floats = cut(floats, filters * taps * channels)
    part = floats[: filters * taps * channels]

    multiples(pixels, np.int64(1), s_at)
    gated = dy_mask.shape[0] + x_mask.shape[0] > 0
    if gated:
        sums[:] = 0
    n_in, n_out, inner, laid_out = 0, 0, 0, -1
    compact = False
    for n in range(n_samples):
        gradient = dy[n].reshape(-1)
        if n == 0 or gated:
            n_in = open_channels(x_mask, n, channels, in_list)
            n_out = open_channels(dy_mask, n, filters, out_list)
            compact = n_in * (pixels + EXCHANGE_COST) < channels * pixels
            inner = n_in if compact else channels
            row_table(out_list, n_out, pixels, s_row)
            row_table(out_list, n_out, taps * channels, c_row)
            if compact:
                multiples(filters + 1, taps * inner, c_row)
                c_row[n_out] = c_row[max(0, n_out - 1)]
        line, window = wide * inner, kw * inner
        if inner != laid_out:
            laid_out = inner
            _image_table((height, width), pad, inner, place)
            _window_table(shape, stride[0] * line, stride[1] * inner, v_at)
            image[:] = 0
        _load_image(x[n].reshape(-1), in_list, n_in, compact, plane_at, place, image)
        if compact:
            _take_out(sums, out_list, n_out, taps, channels, in_list, n_in, part)
        target = part if compact else sums
        scalars, add = (gradient, s_row, s_at), gated or n > 0
        for ky in range(kh):
            v, c = image[ky * line :], target[ky * window :]
            sweep(n_out, pixels, window, scalars, v, v_at, c, c_row, add, np.bool_(False), gradient)
        if compact:
            _put_back(sums, out_list, n_out, taps, channels, in_list, n_in, part)
        _add_bias_gradient(gradient, out_list, n_out, pixels, dbias)
    _to_kernel_order(sums, tap_at, channel_at, dweight)


@kernel
def _to_kernel_order(sums, tap_at, channel_at, dweight):
    """dweight (K, C, kh, kw) = sums (K, kh, kw, C)."""
    filters, channels = dweight.shape[0], dweight.shape[1]
    taps = tap_at.size
    multiples(taps, channels, tap_at)
    multiples(channels, taps, channel_at)
    for k in range(filters):
        source = sums[k * taps * channels : (k + 1) * taps * channels]
        transpose(source, tap_at, taps, channels, dweight[k].reshape(-1), channel_at)
