"""The weight gradient of a convolution on the vector tile: the same results as `plain`, bit for bit.

Rows of the tile are the open output channels, terms are pixels, and lanes are entries of the window that a
pixel of dy sees. There are two layouts of the windows:

* In the padded image with channels last, (column of the kernel, input channel) is contiguous for each row
  of the kernel, or only the input channels where the columns are dilated. Nothing is copied but the image;
  the sums, kept as (K, kh, kw, C), are transposed to
  (K, C, kh, kw) once at the end. Closed input channels are zero in the image: they save nothing.
* Unfolded, the kh * kw entries of all open input channels lie side by side, in the order of the weight.
  This copies more, but it leaves out closed channels (their sums are taken out of dweight and put back);
  it wastes no lanes where there are few channels (the three of an image); and it needs no transposition at
  the end, which counts where the whole batch has few pixels.

Source: mathematics.md §2.1, §2.3b. The use of the tile (`tile.py`) is derived.
"""

from __future__ import annotations

import numpy as np

from refimpl.kernels import depthwise, few_slopes
from refimpl.kernels.arrays import check_offsets
from refimpl.kernels.jit import inlined, kernel, large_kernel, optimise_for_size, shared
from refimpl.kernels.panels import (
    clear,
    clear_rows,
    closed_channels,
    copy_planes,
    copy_runs,
    finite,
    grid,
    multiples,
    open_channels,
    row_table,
    shift_table,
    term_table,
    transpose,
    whole_vectors,
)
from refimpl.kernels.sums import total
from refimpl.kernels.target import VECTOR_BYTES
from refimpl.kernels.tile import sweep
from refimpl.kernels.tiled_conv import alike, apart, equal_parts, forward_taps, phases_of
from refimpl.kernels.views import cut

TERMS_TOGETHER = 256  # pixels, of as many samples as have so many
FIRST_LEVEL = 32768  # bytes that a common first-level cache holds beside other things


@shared
def together(pixels):
    """How many samples' pixels are terms of one sum, so that the sums are in memory less often."""
    return max(1, TERMS_TOGETHER // max(1, pixels))


@shared
def unfolds(samples, open_in, channels, filters, taps, run, pixels, more, itemsize):
    """Whether unfolding pays; `open_in` is the mean number of open input channels, `run` how many of the
    taps are contiguous with channels last.

    Measured in multiply-adds of one vector: unfolding an entry costs 11 of them, taking a sum out and
    putting it back 21 (per entry of the kernel), going on with it 16, transposing it at
    the end (and at the beginning, to continue a sum) about 14.
    """
    lanes, window = VECTOR_BYTES // itemsize, run * channels
    single = taps // run * whole_vectors(window, itemsize)
    if window < 2 * lanes and whole_vectors(taps * channels, itemsize) < single:
        return True
    exchange = 21 / pixels if open_in < channels else 0.0
    transposing, alone = (28 if more else 14) / (samples * pixels), 16 / pixels
    windows = transposing + alone / min(samples, together(pixels))
    return open_in * (1 + 11 / filters + exchange + alone) < channels * (1 + windows)


@shared
def unfolded_part(entries, pixels, itemsize):
    """(pixels unfolded at a time, entries of each): what the first-level cache holds, but at least 64."""
    depth = whole_vectors(entries, itemsize)
    return min(pixels, max(64, FIRST_LEVEL // max(1, depth * itemsize))), depth


def weight_grad_scratch(
    channels, filters, kernel_size, stride, pad, size, result_size, itemsize, dilation=(1, 1), groups=1
):
    """(floats, ints) that `weight_grad` needs; `size` is that of x, `result_size` that of dy.

    Raises InputError where places in one sample do not fit into the tables.
    """
    kh, kw = kernel_size
    own = (0, 0)
    if 1 < groups == channels == filters:
        extent = [(k - 1) * gap + 1 for k, gap in zip(kernel_size, dilation, strict=True)]
        sizes = zip(size, pad, result_size, stride, extent, strict=True)
        reach = [max(n + 2 * p, m * step + k) for n, p, m, step, k in sizes]
        padded, areas = reach[0] * reach[1], (size[0] * size[1], result_size[0] * result_size[1])
        own = depthwise.scratch(channels, *areas, kh * kw, padded, itemsize)
    channels //= groups
    taps, pixels = kh * kw, result_size[0] * result_size[1]
    planes, lanes = kw * min(stride[0], kh), VECTOR_BYTES // itemsize
    image = (size[0] + 2 * pad[0]) * (size[1] + 2 * pad[1]) * channels + 2 * lanes
    copies = channels * planes * ((result_size[0] + (kh - 1) * dilation[0] + 1) * result_size[1] + lanes)
    unfolded = max(FIRST_LEVEL // itemsize, 64 * (taps * channels + lanes))
    sums = filters * kh * whole_vectors(kw * channels, itemsize)
    samples = together(pixels)
    ints = 4 * (filters + 1) + 2 * samples * pixels + channels * (5 + taps) + 5 * taps + 7 * planes
    ints += few_slopes.lists_size(pixels)
    floats = max(samples * image, copies + unfolded) + sums
    check_offsets("conv", plane=size[0] * size[1], copies=floats, dy=filters * pixels)
    return max(floats, own[0]), max(ints + size[0] * size[1] + 1, own[1])


@kernel
def _load_image(sample, channels, count, plane_at, place, image):
    """image = the sample with channels last; channels that are not listed become zero."""
    optimise_for_size()
    everything = plane_at.size
    transpose(sample, plane_at, everything, place.size, image, place)
    i = 0
    for c in range(everything):
        if i < count and channels[i] == c:
            i += 1
        else:
            for p in range(place.size):
                image[place[p] + c] = 0


@kernel
def _add_bias_gradient(gradient, channels, count, pixels, dbias):
    """dbias += the sum over the pixels of each listed channel of one sample; nothing if it has no entries."""
    for i in range(count if dbias.size > 0 else 0):
        dbias[channels[i]] += total(gradient, channels[i] * pixels, pixels)


@kernel
def _mean_open(mask, channels):
    """Mean number of open channels of a sample."""
    optimise_for_size()
    if mask.shape[0] == 0:
        return np.float64(channels)
    count = 0
    for n in range(mask.shape[0]):
        for c in range(channels):
            count += mask[n, c]
    return count / mask.shape[0]


@large_kernel
def weight_grad(x, dy, stride, pad, dilation, x_mask, dy_mask, more, floats, ints, dweight, dbias):
    """dweight and dbias, summed over the batch; see `plain.conv_weight_grad`.

    Masks are (N, C) or empty; more: add to the sums that dweight and dbias hold, for further samples of
    the same batch; floats, ints: scratch of the size `weight_grad_scratch` says.
    """
    optimise_for_size()
    n_samples, (filters, channels, kh, kw) = x.shape[0], dweight.shape
    groups = x.shape[1] // channels
    steps, run = (stride, pad, dilation), kw if dilation[1] == 1 else 1
    if not more:
        clear(dbias)
    if 1 < groups == x.shape[1] == filters:
        depthwise.weight_grad(x, dy, steps, x_mask, dy_mask, more, floats, ints, dweight, dbias)
        return
    if n_samples == 0:
        if not more:
            clear(dweight.reshape(-1))
        return
    x, dy = apart(x, groups), apart(dy, groups)
    x_mask, dy_mask = apart(x_mask, groups), apart(dy_mask, groups)
    pixels, open_in = dy.shape[2] * dy.shape[3], _mean_open(x_mask, channels)
    few = groups == 1 and run == kw and 3 * open_in > channels
    few = few and few_slopes.windows_pay(dy, dy_mask, run * channels) and finite(x.reshape(-1))
    sizes = open_in, channels, filters // groups, kh * kw, run, pixels
    if few or not unfolds(n_samples, *sizes, more, x.itemsize):
        _by_windows(x, dy, steps, run, few, x_mask, dy_mask, more, groups, floats, ints, dweight, dbias)
    else:
        _by_unfolding(x, dy, steps, x_mask, dy_mask, more, groups, floats, ints, dweight, dbias)


@inlined
def _by_unfolding(x, dy, steps, x_mask, dy_mask, more, groups, floats, ints, dweight, dbias):
    """`weight_grad` with unfolded windows."""
    (n_samples, channels), (stride, pad, dilation) = x.shape[:2], steps
    size, (kh, kw), filters = (x.shape[2], x.shape[3]), dweight.shape[2:], dy.shape[1]
    taps, phases, cols = kh * kw, phases_of(kh, stride[0], dilation[0]), dy.shape[3]
    pixels, planes, row = dy.shape[2] * cols, kw * phases, channels * taps
    shape = ((kh - 1) * dilation[0] // stride[0] + dy.shape[2], cols)
    plane = whole_vectors(shape[0] * cols, x.itemsize)

    down, ints = cut(ints, planes)
    right, ints = cut(ints, planes)
    shifts, ints = cut(ints, 5 * planes)
    tap_s, ints = cut(ints, taps)
    tap_plane, ints = cut(ints, taps)
    tap_row, ints = cut(ints, taps)
    slots, ints = cut(ints, channels)
    in_list, ints = cut(ints, channels)
    weight_at, ints = cut(ints, channels + 1)
    compact_at, ints = cut(ints, channels)
    window_at, ints = cut(ints, row)
    out_list, ints = cut(ints, filters)
    s_row, ints = cut(ints, filters + 1)
    c_row, ints = cut(ints, filters + 1)
    closed, ints = cut(ints, filters + 1)
    s_at, v_at = cut(ints, pixels)
    panel, floats = cut(floats, channels * planes * plane)
    kept, unfolded = cut(floats, filters * row)

    forward_taps(kh, kw, stride[0], pad, dilation, phases, tap_s, tap_plane, tap_row, down, right)
    shift_table(size, down, right, stride, shape, shifts)
    clear_rows(shape, shifts, panel, plane, channels * planes)
    for t in range(taps):
        tap_s[t] = tap_plane[t] * plane + tap_row[t] * cols
    multiples(channels, np.int64(1), slots)
    multiples(channels, taps, compact_at)
    term_table(slots, channels, planes * plane, tap_s, window_at)
    multiples(pixels, np.int64(1), s_at)
    everything, n_in, n_out = dweight.reshape(-1), 0, 0
    gated, n_closed = x_mask.shape[0] + dy_mask.shape[0] > 0, 0
    if gated and not more:
        if n_samples > 1 or x_mask.shape[0] > 0:
            clear(everything)
        else:
            n_closed = closed_channels(dy_mask, 0, filters, closed)
            row_table(closed, n_closed, row, closed)
    for n in range(n_samples):
        if n == 0 or gated:
            n_in = open_channels(x_mask, n, channels, in_list)
            n_out = open_channels(dy_mask, n, filters, out_list)
            row_table(out_list, n_out, pixels, s_row)
            row_table(out_list, n_out, row, c_row)
            row_table(in_list, n_in, taps, weight_at)
        image, gradient, group = x[n].reshape(-1), dy[n].reshape(-1), n % groups
        weights = everything[group * filters * row :]
        copy_planes(image, in_list, n_in, size, stride, (np.int64(0), cols, cols), shifts, panel, plane)
        entries, add, c = n_in * taps, more or n >= groups, weights
        if n_in < channels:
            c = kept
            for i in range(n_out):
                if add:
                    copy_runs(
                        n_in, taps, weights, out_list[i] * row, weight_at, kept, i * entries, compact_at
                    )
                c_row[i] = i * entries
            c_row[n_out] = max(0, n_out - 1) * entries
        part, depth = unfolded_part(entries, pixels, x.itemsize)
        multiples(part, depth, v_at)
        for first in range(0, pixels, part):
            count, scalars = min(part, pixels - first), (gradient, s_row, s_at[first:])
            transpose(panel[first:], window_at, entries, count, unfolded, v_at)
            begun, zeros = add or first > 0, (closed, n_closed if first == 0 else 0)
            off = np.bool_(False)
            sweep(n_out, count, entries, scalars, unfolded, v_at, c, c_row, zeros, begun, off, gradient)
        if n_in < channels:
            for i in range(n_out):
                copy_runs(n_in, taps, kept, i * entries, compact_at, weights, out_list[i] * row, weight_at)
        _add_bias_gradient(gradient, out_list, n_out, pixels, dbias[group * filters :])


@inlined
def _by_windows(x, dy, steps, run, few, x_mask, dy_mask, more, groups, floats, ints, dweight, dbias):
    """`weight_grad` with the windows of a channels-last image."""
    (n_samples, channels, height, width), (stride, pad, dilation) = x.shape, steps
    (kh, kw), filters = dweight.shape[2:], dy.shape[1]
    shape = (dy.shape[2], dy.shape[3])
    taps, pixels, area = kh * kw, shape[0] * shape[1], height * width
    line, window = (width + 2 * pad[1]) * channels, run * channels
    padded = whole_vectors(window, x.itemsize) if few else window  # lanes of a run's sums
    row = taps // run * padded

    in_list, ints = cut(ints, channels)
    out_list, ints = cut(ints, groups * filters)
    s_row, ints = cut(ints, filters + 1)
    c_row, ints = cut(ints, filters + 1)
    most = equal_parts(n_samples, together(pixels) if groups == 1 and not few else 1)
    lists, ints = cut(ints, few_slopes.lists_size(pixels) if few else 0)
    s_at, ints = cut(ints, most * pixels)
    v_at, ints = cut(ints, most * pixels)
    plane_at, ints = cut(ints, channels)
    tap_at, ints = cut(ints, taps)
    channel_at, ints = cut(ints, channels)
    place, size = ints[:area], whole_vectors((height + 2 * pad[0]) * line, x.itemsize)
    size += padded - window
    image, floats = cut(floats, most * size)
    sums = floats[: groups * filters * row]

    multiples(channels, area, plane_at)
    grid((height, width), (line, channels), pad[0] * line + pad[1] * channels, place)
    steps, one = (stride[0] * line, stride[1] * channels), np.int64(1)
    for i in range(most):  # where each pixel's window starts in the image, and where the pixel lies in dy
        grid(shape, steps, i * size, v_at[i * pixels :])
        grid(shape, (shape[1], one), i * filters * pixels, s_at[i * pixels :])
    clear(image)
    gated = dy_mask.shape[0] > 0 and (n_samples > 1 or more)
    if more:
        _from_kernel_order(dweight, run, row, tap_at, channel_at, sums)
    elif gated or few:
        clear(sums)
    n_in, n_out, n = 0, 0, 0
    while n < n_samples:
        count = alike(dy_mask, n, min(most, n_samples - n))
        if n == 0 or gated:
            n_out = open_channels(dy_mask, n, filters, out_list)
            row_table(out_list, n_out, pixels, s_row)
            row_table(out_list, n_out, row, c_row)
        gradient, first = dy[n:].reshape(-1), n % groups * filters
        scalars, nothing, add = (gradient, s_row, s_at), (c_row, np.int64(0)), gated or more or n >= groups
        for i in range(count):
            if n + i == 0 or x_mask.shape[0] > 0:
                n_in = open_channels(x_mask, n + i, channels, in_list)
            _load_image(x[n + i].reshape(-1), in_list, n_in, plane_at, place, image[i * size :])
            _add_bias_gradient(dy[n + i].reshape(-1), out_list, n_out, pixels, dbias[first:])
        if few:
            panel, result = (image, v_at, dilation[0] * line), (sums, c_row, padded)
            vectors = padded * x.itemsize // VECTOR_BYTES
            few_slopes.add_windows(gradient, pixels, n_out, s_row, panel, result, kh, vectors, lists)
        for tap in range(0, 0 if few else taps, run):
            v = image[tap // kw * dilation[0] * line + tap % kw * dilation[1] * channels :]
            c, depth = sums[(first * taps + tap) * channels :], count * pixels
            sweep(n_out, depth, window, scalars, v, v_at, c, c_row, nothing, add, np.bool_(False), gradient)
        n += count
    if gated or groups > 1:  # all rows have been in use
        n_out = groups * filters
        multiples(n_out, np.int64(1), out_list)
    _to_kernel_order(sums, out_list, n_out, run, row, tap_at, channel_at, dweight)


@kernel
def _orders(run, row, tap_at, channel_at):
    """Where a tap begins in a row of the sums, and a channel in a row of the weight."""
    optimise_for_size()
    runs = tap_at.size // run
    for tap in range(tap_at.size):
        tap_at[tap] = tap // run * (row // runs) + tap % run * channel_at.size
    multiples(channel_at.size, tap_at.size, channel_at)


@kernel
def _from_kernel_order(dweight, run, row, tap_at, channel_at, sums):
    """sums (K, kh, kw, C) = dweight (K, C, kh, kw); rows of the sums may be longer."""
    optimise_for_size()
    taps, size, weights = tap_at.size, channel_at.size * tap_at.size, dweight.reshape(-1)
    _orders(run, row, tap_at, channel_at)
    for k in range(dweight.shape[0]):
        source, target = weights[k * size : (k + 1) * size], sums[k * row : (k + 1) * row]
        transpose(source, channel_at, channel_at.size, taps, target, tap_at)


@kernel
def _to_kernel_order(sums, rows, n_rows, run, row, tap_at, channel_at, dweight):
    """dweight (K, C, kh, kw) = sums (K, kh, kw, C) in the listed rows, zero in the others."""
    optimise_for_size()
    filters, channels = dweight.shape[:2]
    taps, i = tap_at.size, 0
    _orders(run, row, tap_at, channel_at)
    for k in range(filters):
        target = dweight[k].reshape(-1)
        if i < n_rows and rows[i] == k:
            source = sums[k * row : (k + 1) * row]
            transpose(source, tap_at, taps, channels, target, channel_at)
            i += 1
        else:
            clear(target)
