"""Convolution and its transpose on the vector tile: the same results as `plain`, bit for bit.

The forward pass and the input gradient are one operation: every wanted channel of the target is a sum
over open channels of the source and taps of the weight. Rows of the tile are target channels, terms are
(source channel, tap), lanes are pixels, of several samples where one alone has few. The panel holds one
shifted copy of each open source plane per column of taps, so that the lanes of a term are contiguous for
every tap; the tap's row is then only an offset. (Reading unaligned vectors from a single padded plane instead
was measured to cost 12 % of the whole pass, the copies 4-5 %.) Strides and dilations are other tables.

A convolution in groups is the same with every group as a sample of its own: its channels lie side by side in
memory, and so do its weights.

Source: mathematics.md §2.1, §2.3b. The use of the tile (`tile.py`) is derived.
"""

from __future__ import annotations

import math

import numpy as np

from refimpl.kernels import depthwise, few_slopes, sample_lanes
from refimpl.kernels.arrays import check_offsets
from refimpl.kernels.jit import inlined, kernel, large_kernel, optimise_for_size, shared
from refimpl.kernels.panels import (
    clear,
    clear_rows,
    closed_channels,
    copy_planes,
    finite,
    multiples,
    open_channels,
    pick,
    row_table,
    shift_table,
    term_table,
    whole_vectors,
)
from refimpl.kernels.simd import copy_rows, spread_pairs
from refimpl.kernels.target import VECTOR_BYTES
from refimpl.kernels.tile import sweep
from refimpl.kernels.views import cut

# Samples lie side by side, up to TOGETHER pixels, if one has fewer than FULL or weights more bytes than this.
TOGETHER, FULL, MANY_WEIGHTS = 256, 64, 1 << 19


@shared
def phases_of(taps, stride, dilation):
    """How many different rows, modulo the stride, the taps of a column of the kernel read."""
    return min(taps, stride // math.gcd(stride, dilation))


@kernel
def apart(array, groups):
    """(N, C, ...) with the groups of channels as samples: (N * groups, C // groups, ...)."""
    shape = array.shape
    return array.reshape((shape[0] * groups, shape[1] // groups, *shape[2:]))


def convolve_scratch(source, target, kernel_size, moves, transposed, itemsize, groups=1):
    """(floats, ints) that `convolve` needs; source, target = (channels, height, width) of a sample.

    moves = (stride, pad, dilation). Raises InputError where places in one sample do not fit into the tables.
    """
    source_channels, target_channels, size, (stride, _, dilation) = source[0], target[0], target[1:], moves
    extent = [(k - 1) * gap + 1 for k, gap in zip(kernel_size, dilation, strict=True)]
    reach = [(n + k) * step for n, k, step in zip(size, extent, stride, strict=True)]
    taps = kernel_size[0] * kernel_size[1]
    own = (0, 0)
    if 1 < groups == source_channels == target_channels:
        pixels = size[0] * size[1]
        own = depthwise.scratch(groups, reach[0] * reach[1], pixels, taps, reach[0] * reach[1], itemsize)
    elif groups == 1:
        own = sample_lanes.scratch(source, target, kernel_size, moves, transposed, itemsize)
        if transposed and taps == 9:
            few = few_slopes.input_grad_scratch(source, target, moves, itemsize)
            own = max(own[0], few[0]), max(own[1], few[1])
    source_channels, target_channels = source_channels // groups, target_channels // groups
    result = target_channels * size[0] * size[1]
    planes = kernel_size[1] * min(stride[0], kernel_size[0])
    weight = source_channels * target_channels * taps
    most = side_by_side(size[0] * size[1], weight * itemsize) if groups == 1 else 1
    plane = (size[0] + extent[0]) * size[1] * most + VECTOR_BYTES // itemsize
    floats = source_channels * planes * plane + target_channels + 1
    if stride != (1, 1) or most > 1:
        floats += result * most
    check_offsets("conv", plane=reach[0] * reach[1], copies=floats, result=result, weight=weight)
    ints = 7 * planes + 4 * taps + 2 * source_channels * (1 + taps) + 4 * (target_channels + 1)
    return max(floats, own[0]), max(ints, own[1])


@large_kernel
def convolve(
    source, weight, bias, stride, pad, dilation, transposed, reads, writes, clears, floats, ints, target
):
    """target = conv(source, weight) + bias, or its transpose: `plain.conv_forward`, `plain.conv_input_grad`.

    transposed: source is dy and target dx; the bias is not used. Masks are (N, C) or empty: `reads` says
    which channels of the source are not zero, `writes` which of the target are wanted; the others become
    zero if it `clears`, and else keep what they hold, for readers that skip them. floats, ints: scratch of
    the size `convolve_scratch` says, the floats best aligned to a cache line.
    """
    optimise_for_size()
    kh, kw = weight.shape[2:]
    taps, phases = kh * kw, phases_of(kh, stride[0], dilation[0])
    channels = weight.shape[1]
    groups = (target if transposed else source).shape[1] // channels
    if groups > 1 and groups == source.shape[1] == target.shape[1]:
        step, base, gap = stride, (-pad[0], -pad[1]), dilation
        if transposed:
            base, gap = pad, (-dilation[0], -dilation[1])
        inside = pad[0] <= (kh - 1) * dilation[0] and pad[1] <= (kw - 1) * dilation[1]
        if not transposed or (max(stride) == 1 and inside):
            forward, masks = not transposed, (reads, writes, clears)
            depthwise.convolve(source, weight, bias, step, base, gap, forward, *masks, floats, ints, target)
            return
    moves, masks, scratch = (stride, pad, dilation), (reads, writes, clears), (floats, ints)
    few = groups == 1 and transposed and few_slopes.spreads(source, weight, target, moves, reads)
    if few and finite(weight.reshape(-1)):
        few_slopes.input_grad(source, weight, moves, reads, floats, ints, target)
        for n in range(source.shape[0] if clears else 0):
            close_channels(writes, n, target)
        return
    if groups == 1:
        done = _by_samples(source, weight, bias, moves, transposed, masks, scratch, target)
        source, target, reads, writes = source[done:], target[done:], reads[done:], writes[done:]
    source, target = apart(source, groups), apart(target, groups)
    reads, writes = apart(reads, groups), apart(writes, groups)
    down, ints = cut(ints, kw * phases)
    right, ints = cut(ints, kw * phases)
    tap_s, ints = cut(ints, taps)
    tap_plane, ints = cut(ints, taps)
    tap_row, ints = cut(ints, taps)
    weights, scratch, one = weight.reshape(-1), (floats, ints), np.int64(1)
    if not transposed:
        forward_taps(kh, kw, stride[0], pad, dilation, phases, tap_s, tap_plane, tap_row, down, right)
    residues = (min(stride[0], target.shape[2]), min(stride[1], target.shape[3]))
    for a in range(residues[0] if transposed else 1):
        for b in range(residues[1] if transposed else 1):
            if transposed:
                tables = (tap_s, tap_plane, tap_row, down, right)
                n_rows, n_cols, reach = _transposed_taps(kh, kw, stride, pad, dilation, (a, b), tables)
                n_taps, n_planes = n_rows * n_cols, n_cols
                rows = (target.shape[2] - a + stride[0] - 1) // stride[0]
                panel_rows, steps = rows + reach, (channels * taps, taps)
                source_step, target_step = (one, one), stride
            else:
                n_taps, n_planes, rows = taps, kw * phases, target.shape[2]
                panel_rows, steps = (kh - 1) * dilation[0] // stride[0] + rows, (taps, channels * taps)
                source_step, target_step = stride, (one, one)
            used = (tap_s[:n_taps], tap_plane[:n_taps], tap_row[:n_taps])
            planes = (down[:n_planes], right[:n_planes], panel_rows)
            grid, masks = (source_step, rows, (a, b), target_step), (reads, writes, clears)
            shift = (not transposed, bias)
            _correlate(source, weights, groups, steps, used, planes, grid, masks, shift, scratch, target)


@kernel
def forward_taps(kh, kw, stride_y, pad, dilation, phases, tap_s, tap_plane, tap_row, down, right):
    """Tables of the taps and planes of the forward pass (see `_correlate`).

    With a vertical stride, a plane copy holds every stride-th row, and there is one copy per residue of the
    tap's row.
    """
    optimise_for_size()
    for ky in range(kh):
        for kx in range(kw):
            plane, t, row = kx * phases + ky % phases, ky * kw + kx, ky * dilation[0]
            down[plane] = pad[0] - row % stride_y
            right[plane] = pad[1] - kx * dilation[1]
            tap_s[t], tap_plane[t], tap_row[t] = t, plane, row // stride_y


@kernel
def _meeting(taps, stride, dilation, at):
    """The taps k that meet the pixel at - pad: those with at - k * dilation = 0 modulo the stride.

    Returns the first (or `taps` if there is none), how far they are apart, how many there are, how far they
    are apart in dy, and the pixel of dy that the first one reads.
    """
    first = 0
    while first < taps and (at - first * dilation) % stride != 0:
        first += 1
    step = stride // math.gcd(stride, dilation)
    count = (taps - first + step - 1) // step
    return first, step, count, step * dilation // stride, (at - first * dilation) // stride


@kernel
def _transposed_taps(kh, kw, stride, pad, dilation, origin, tables):
    """Tables of the taps and planes for the pixels (a + sy * i, b + sx * j) of the input gradient.

    They receive from taps (ky, kx) through dy[i + (a + pad - ky * dilation) / sy, j + ...]. Returns rows and
    columns of taps, and how many rows of dy the first and the last one are apart.
    """
    optimise_for_size()
    (a, b), (tap_s, tap_plane, tap_row, down, right) = origin, tables
    first_y, step_y, n_rows, apart_y, begin_y = _meeting(kh, stride[0], dilation[0], a + pad[0])
    first_x, step_x, n_cols, apart_x, begin_x = _meeting(kw, stride[1], dilation[1], b + pad[1])
    reach = max(0, n_rows - 1) * apart_y
    for i in range(n_rows):
        for j in range(n_cols):
            t = i * n_cols + j
            tap_s[t] = (first_y + i * step_y) * kw + first_x + j * step_x
            tap_plane[t], tap_row[t] = j, reach - i * apart_y
    for j in range(n_cols):
        down[j] = reach - begin_y
        right[j] = j * apart_x - begin_x
    return n_rows, n_cols, reach


@kernel
def close_channels(mask, n, y):
    """Zero the closed channels of sample n of y (N, C, P, Q)."""
    result, area = y[n].reshape(-1), y.shape[2] * y.shape[3]
    for c in range(mask.shape[1] if mask.shape[0] > 0 else 0):
        if not mask[n, c]:
            clear(result[c * area : (c + 1) * area])


@kernel
def _scatter(part, channels, count, origin, stride, shape, target):
    """target[c, origin + stride * (p, q)] = part[c, p, q] for the listed channels."""
    area, width = target.shape[1] * target.shape[2], target.shape[2]
    flat = target.reshape(-1)
    for i in range(count):
        at, to = channels[i] * shape[0] * shape[1], channels[i] * area + origin[0] * width + origin[1]
        if stride[1] == 2:
            spread_pairs(shape[0], shape[1], part, at, flat, (to, stride[0] * width))
            continue
        for p in range(shape[0]):
            for q in range(shape[1]):
                flat[to + p * stride[0] * width + q * stride[1]] = part[at + p * shape[1] + q]


@kernel
def _bring_home(part, channels, count, begin, columns, target):
    """target[c, p, q] = part[c, p, begin + q], rows of `columns` columns, for the listed channels."""
    (_, rows, cols), flat, lanes = target.shape, target.reshape(-1), VECTOR_BYTES // target.itemsize
    for i in range(count):
        for q in range(0, cols, lanes):
            place = (channels[i] * rows * cols + q, cols)
            wanted = (0, cols - q, cols - q)
            copy_rows(rows, wanted, part, (channels[i] * rows * columns + begin + q, columns), flat, place)


@shared
def side_by_side(pixels, weight_bytes):
    """How many samples to treat as one wide image: as many as fill tiles, unless one alone does so.

    With many weights it pays even then, since they are read once for all of these samples.
    """
    return max(1, TOGETHER // max(1, pixels)) if pixels < FULL or weight_bytes > MANY_WEIGHTS else 1


@shared
def equal_parts(samples, most):
    """The samples of the largest of equal parts that have at most so many."""
    parts = max(1, (samples + most - 1) // most)
    return max(1, (samples + parts - 1) // parts)


@kernel
def alike(mask, n, most):
    """How many samples from n on, at most so many, have the mask of sample n."""
    if mask.shape[0] == 0:
        return most
    for count in range(1, most):
        for c in range(mask.shape[1]):
            if mask[n, c] != mask[n + count, c]:
                return count
    return most


@inlined
def _by_samples(source, weight, bias, moves, transposed, masks, scratch, target):
    """Convolve as many samples as pays with samples as lanes (see `sample_lanes`); returns how many.

    masks = (reads, writes, clears), scratch = (floats, ints).
    """
    n_samples, taps, done, (reads, writes, clears) = source.shape[0], weight.shape[2:], 0, masks
    inner, outer, size, shift = source.shape[1:], target.shape[1:], source.itemsize, (not transposed, bias)
    lanes = sample_lanes.together(n_samples, inner, outer, taps, moves, transposed, size)
    if lanes > 0:
        same = alike(reads, 0, n_samples) == n_samples and alike(writes, 0, n_samples) == n_samples
        if not (same and finite(weight.reshape(-1))):
            lanes = 0
    while lanes > 0:
        part = slice(done, done + (n_samples - done) // lanes * lanes)
        sample_lanes.convolve(
            source[part], weight.reshape(-1), taps, moves, transposed, (reads, writes), shift, lanes, scratch,
            target[part],
        )  # fmt: skip
        done = part.stop
        lanes = sample_lanes.together(n_samples - done, inner, outer, taps, moves, transposed, size)
    for n in range(done if clears else 0):
        close_channels(writes, n, target)
    return done


@inlined
def _correlate(source, weights, groups, steps, taps, planes, grid, masks, bias, scratch, target):
    """target[n, t] = sum over (source channel c, tap) of weight * shifted source plane, for each sample.

    weights: flat, those of sample n begin at the (n modulo `groups`)-th part of them, with
    steps = (per source channel, per target channel); taps = (offset in the weight,
    plane, row of the plane) of each tap; planes = (down, right, rows) of the shifted copies.
    grid = (stride, rows, origin, spread): the copies step over the source by `stride`; the result's `rows`
    rows are those of the target if spread is (1, 1), and otherwise every spread-th pixel of it from `origin`
    on. masks = (reads, writes, whether to zero what `writes` closes); bias = (whether, values).
    """
    n_samples, channels, height, width = source.shape
    targets, (reads, writes, clears) = target.shape[1], masks
    stride, rows, origin, spread = grid
    tap_s, tap_plane, tap_row = taps
    down, right, panel_rows = planes
    n_taps, n_planes = tap_s.size, down.size
    cols = (target.shape[3] - origin[1] + spread[1] - 1) // spread[1]
    size, direct = (height, width), spread[0] == 1 and spread[1] == 1
    most = side_by_side(rows * cols, weights.size * weights.itemsize) if direct and groups == 1 else 1
    most = equal_parts(n_samples, most)
    unmoved = n_planes == 1 and down[0] == 0 and right[0] == 0
    in_place = most == 1 and unmoved and stride[0] == 1 and stride[1] == 1 and (panel_rows, cols) == size

    floats, ints = scratch
    slots, ints = cut(ints, channels)
    read_list, ints = cut(ints, channels)
    write_list, ints = cut(ints, targets)
    s_row, ints = cut(ints, targets + 1)
    c_row, ints = cut(ints, targets + 1)
    closed, ints = cut(ints, targets + 1)
    tap_v, ints = cut(ints, n_taps)
    shifts, ints = cut(ints, 5 * n_planes)
    s_at, v_at = cut(ints, channels * n_taps)
    widest = 0 if in_place else whole_vectors(panel_rows * cols * most, source.itemsize)
    copies, floats = cut(floats, channels * n_planes * widest)
    bias_row, part = cut(floats, targets + 1)

    multiples(channels, np.int64(1), slots)
    shift_table(size, down, right, stride, (panel_rows, cols), shifts)
    n_read, n_write, n_closed, before, plane, n = 0, 0, 0, 0, height * width, 0
    while n < n_samples:
        count = alike(writes, n, alike(reads, n, min(most, n_samples - n)))
        result, group, line = target[n].reshape(-1), n % groups, count * cols
        home, changed = direct and count == 1, count != before  # home: results lie where they belong
        if changed and not in_place:
            plane = whole_vectors(panel_rows * line, source.itemsize)
            clear_rows((panel_rows, line), shifts, copies, plane, channels * n_planes)
        if changed:
            for t in range(n_taps):
                tap_v[t] = tap_plane[t] * plane + tap_row[t] * line
        if changed or reads.shape[0] > 0:
            n_read = open_channels(reads, n, channels, read_list)
            term_table(read_list, n_read, steps[0], tap_s, s_at)
            term_table(read_list if in_place else slots, n_read, n_planes * plane, tap_v, v_at)
        if changed or writes.shape[0] > 0:
            n_write = open_channels(writes, n, targets, write_list)
            row_table(write_list, n_write, steps[1], s_row)
            row_table(write_list, n_write, rows * line, c_row)
            n_closed = closed_channels(writes, n, targets, closed) if clears and home else 0
            row_table(closed, n_closed, rows * cols, closed)
        if bias[0] and (changed or writes.shape[0] > 0 or groups > 1):
            pick(bias[1][group * targets :], write_list, n_write, bias_row)
        panel = source[n].reshape(-1)
        if not in_place:
            for i in range(count):
                columns, image = (i * cols, cols, line), source[n + i].reshape(-1)
                copy_planes(image, read_list, n_read, size, stride, columns, shifts, copies, plane)
            panel = copies
        own = weights[group * (weights.size // groups) :]
        out, scalars, zeros = (result if home else part), (own, s_row, s_at), (closed, n_closed)
        depth, off = n_read * n_taps, np.bool_(False)
        sweep(n_write, depth, rows * line, scalars, panel, v_at, out, c_row, zeros, off, bias[0], bias_row)
        for i in range(0 if home else count):
            if clears:
                close_channels(writes, n + i, target)
            if direct:
                _bring_home(part, write_list, n_write, i * cols, line, target[n + i])
            else:
                _scatter(part, write_list, n_write, origin, spread, (rows, cols), target[n])
        before, n = count, n + count
