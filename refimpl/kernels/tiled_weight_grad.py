"""The weight gradient of a convolution on the vector tile: the same results as `plain`, bit for bit.

Rows of the tile are the open output channels, terms are pixels, and lanes are (column of the kernel, input
channel): the window of a pixel in the padded image with channels last. The sums are kept as (K, kh, kw, C),
so that a row of the window is contiguous, and transposed to (K, C, kh, kw) at the end.

If so many input channels of a sample are closed that it pays, its image holds the open ones only, and
their sums are taken out before and put back after. Otherwise the closed ones are zero in the image.

Source: kernels.md, "The tile"; mathematics.md §2.1, §2.3b. Derived.
"""

from __future__ import annotations

from refimpl.kernels.jit import kernel
from refimpl.kernels.panels import cut, multiples, open_channels, row_table, transpose, whole_vectors
from refimpl.kernels.simd import copy_rows, interleaved_sum
from refimpl.kernels.target import VECTOR_BYTES
from refimpl.kernels.tile import sweep

UNFOLD_BELOW = 2  # vectors in a row of the window
EXCHANGE_COST = 80  # pixels: taking a sum out and putting it back costs as much as so many terms of it


def weight_grad_scratch(channels, filters, kernel_size, size, pad, result_size, itemsize):
    """(floats, ints) that `weight_grad` needs for inputs of height and width `size`."""
    taps, pixels = kernel_size[0] * kernel_size[1], result_size[0] * result_size[1]
    lanes = VECTOR_BYTES // itemsize
    floats = (size[0] + 2 * pad[0]) * (size[1] + 2 * pad[1]) * channels + lanes
    if kernel_size[1] * channels < UNFOLD_BELOW * lanes:
        floats += pixels * (taps * channels + lanes)
    floats += 2 * filters * taps * channels
    return floats, 3 * (channels + filters + 1) + 2 * pixels + taps + size[0] * size[1]


@kernel
def _unfolded_depth(inner, kh, kw, itemsize):
    """Entries of a pixel's unfolded window, or 0 where taking its rows separately needs no more vectors."""
    lanes, window = VECTOR_BYTES // itemsize, kw * inner
    together, apart = whole_vectors(kh * window, itemsize), kh * whole_vectors(window, itemsize)
    return together if window < UNFOLD_BELOW * lanes and together < apart else 0


@kernel
def _image_tables(size, pad, inner, place):
    """place[pixel] = where its channels start in the padded image with `inner` channels last."""
    line = (size[1] + 2 * pad[1]) * inner
    for i in range(size[0]):
        for j in range(size[1]):
            place[i * size[1] + j] = (i + pad[0]) * line + (j + pad[1]) * inner


@kernel
def _window_table(shape, steps, v_at):
    """v_at[(p, q)] = p * steps[0] + q * steps[1]: where the window of an output pixel starts."""
    for p in range(shape[0]):
        for q in range(shape[1]):
            v_at[p * shape[1] + q] = p * steps[0] + q * steps[1]


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
def _unfold(image, shape, steps, line, kh, window, depth, unfolded):
    """unfolded[(p, q) * depth + ky * window + j] = image[p * steps[0] + q * steps[1] + ky * line + j]."""
    lanes = VECTOR_BYTES // image.itemsize
    for p in range(shape[0]):
        for ky in range(kh):
            for j in range(0, window, lanes):
                part = (0, window - j, window - j)
                start, to = p * steps[0] + ky * line + j, p * shape[1] * depth + ky * window + j
                copy_rows(shape[1], part, image, (start, steps[1]), unfolded, (to, depth))


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
    """dweight and dbias, summed over the batch; see `plain.conv_weight_grad`."""
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
    part, unfolded = cut(floats, filters * taps * channels)

    multiples(pixels, 1, s_at)
    dbias[:] = 0
    gated = dy_mask.shape[0] + x_mask.shape[0] > 0
    if gated:
        sums[:] = 0
    n_in, n_out, inner, depth, laid_out = 0, 0, 0, 0, -1
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
        steps = (stride[0] * line, stride[1] * inner)
        if inner != laid_out:
            laid_out = inner
            depth = _unfolded_depth(inner, kh, kw, x.itemsize)
            _image_tables((height, width), pad, inner, place)
            _window_table(shape, (shape[1] * depth, depth) if depth > 0 else steps, v_at)
            image[:] = 0
        _load_image(x[n].reshape(-1), in_list, n_in, compact, plane_at, place, image)
        if compact:
            _take_out(sums, out_list, n_out, taps, channels, in_list, n_in, part)
        target = part if compact else sums
        scalars, add = (gradient, s_row, s_at), gated or n > 0
        if depth > 0:
            _unfold(image, shape, steps, line, kh, window, depth, unfolded)
            sweep(n_out, pixels, kh * window, scalars, unfolded, v_at, target, c_row, add, (False, gradient))
        else:
            for ky in range(kh):
                panel, part_of = image[ky * line :], target[ky * window :]
                sweep(n_out, pixels, window, scalars, panel, v_at, part_of, c_row, add, (False, gradient))
        if compact:
            _put_back(sums, out_list, n_out, taps, channels, in_list, n_in, part)
        for i in range(n_out):
            dbias[out_list[i]] += interleaved_sum(gradient, out_list[i] * pixels, pixels)
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
