"""Gradients of convolutions whose dy is mostly zero: only its other entries are multiplied.

Behind 2 x 2 max-pooling three of four entries of dy are zero, and behind ReLU more. A term with such an entry
changes no finite sum, so the bits are those of the dense kernels; only the sign of a zero may differ. (An
infinite or NaN factor would show: callers ask for finite ones.)

The entries of a channel of dy that are not zero are listed in the order of the pixels. Each goes with a whole
window of the other operand, which has channels last:

* Weight gradient: the sums of a window stay in registers while they run over the listed pixels of dy. Vectors
  of x are read where they lie; a window is one run of them for each row of the kernel.
* Input gradient, of 3 x 3 kernels: the weights of a window stay in registers, and every listed pixel adds its
  multiple of them to the sums of the pixels around it. A sum takes its terms in the order (channel, tap): a
  later tap reads an earlier pixel, so that the pixels of a channel are taken from the last to the first.

Source: mathematics.md §2.1. Derived.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from refimpl.kernels.jit import intrinsic, kernel, large_kernel, optimise_for_size, shared
from refimpl.kernels.panels import clear, grid, multiples, open_channels, transpose
from refimpl.kernels.plain import is_on
from refimpl.kernels.simd import I32, INDEX, Vectors, emitting, entry, rows_from, summed, switched
from refimpl.kernels.target import TARGET, VECTOR_BYTES
from refimpl.kernels.views import cut

LISTED = 8  # entries looked at together; so many may be written beyond the last one listed
LOOKED_AT = 4096  # entries of dy from which the share of those that are not zero is estimated
FEW, FEWER = 0.4, 0.33  # share up to which skipping pays in the weight gradient, in the input gradient


@kernel
def mostly_zero(dy, mask, most):
    """Whether the share of entries of dy that are not zero is below `most`, judged by the first sample."""
    area, count, entries = dy.shape[2] * dy.shape[3], 0, 0
    values = dy.reshape(-1)
    for c in range(dy.shape[1] if dy.shape[0] > 0 else 0):
        if entries < LOOKED_AT and is_on(mask, 0, c):
            entries += area
            for value in values[c * area : (c + 1) * area]:
                count += value != 0
    return count < most * entries


# --- lists of the entries that are not zero


def _places_of_bits() -> list[int]:
    """For each byte the places of its bits that are set, as the bytes of a word."""
    places = [[bit for bit in range(8) if byte >> bit & 1] for byte in range(256)]
    return [int.from_bytes(bytes(each).ljust(8, b"\0"), "little") for each in places]


@intrinsic
def list_entries(typingctx, values, start, count, out, at):
    """out[at + i] = the i-th p < count for which values[start + p] is not zero; returns how many."""

    def emit(builder, values, start, count, out, at):
        values, out = builder.gep(values, [start]), builder.gep(out, [at])
        vectors, byte, word = Vectors(builder, values.type.pointee, LISTED), ir.IntType(8), ir.IntType(64)
        words = ir.Constant(ir.ArrayType(word, 256), [word(each) for each in _places_of_bits()])
        table = cgutils.global_constant(builder.module, "places_of_bits", words)
        found = cgutils.alloca_once_value(builder, INDEX(0))

        def look(p, mask):
            value, n = vectors.load(builder.gep(values, [p]), mask), builder.load(found)
            bits = builder.bitcast(builder.fcmp_unordered("!=", value, vectors.zero), byte)
            bits = builder.zext(bits, INDEX)
            places = builder.load(builder.gep(table, [INDEX(0), bits]))
            places = builder.bitcast(places, ir.VectorType(byte, LISTED))
            first = vectors.splat(builder.trunc(p, I32))
            pixels = builder.add(builder.zext(places, ir.VectorType(I32, LISTED)), first)
            vectors.store(pixels, builder.gep(out, [n]))
            builder.store(builder.add(n, builder.ctpop(bits)), found)

        vectors.each(count, look)
        return builder.load(found)

    return types.intp(values, types.intp, types.intp, out, types.intp), emitting(emit)


# --- weight gradient

WIDTHS = (6, 4, 2, 1) if TARGET.registers >= 32 else (4, 2, 1)  # vectors of a run that are summed together
RUNS = (3, 1)  # runs of a window that are summed together


@shared
def rows_together(vectors):
    """How many channels of dy are treated together: several, where one has too few sums to hide latencies."""
    return 4 if vectors == 1 else 2 if vectors == 2 else 1


CASES = tuple(
    (rows, runs, vectors)
    for runs in RUNS
    for vectors in WIDTHS
    for rows in sorted({1, rows_together(vectors)})
)
NUMBERS = np.full(np.max(CASES, axis=0) + 1, -1)
for _number, _case in enumerate(CASES):
    NUMBERS[_case] = _number


class _Windows:
    """Emits the sums of windows for one of the cases."""

    def __init__(self, builder: ir.IRBuilder, element: Any, case: tuple[int, int, int]) -> None:
        self.builder, self.simd = builder, Vectors(builder, element)
        self.rows, self.runs, self.vectors = case

    def window(self, base: Any, step: Any) -> list[Any]:
        """Pointers to the vectors of a window whose runs are `step` entries apart."""
        runs = [base]
        while len(runs) < self.runs:
            runs.append(self.builder.gep(runs[-1], [step]))
        lanes = self.simd.lanes
        return [self.builder.gep(run, [INDEX(j * lanes)]) for run in runs for j in range(self.vectors)]

    def add(self, places: list[Any], terms: list[Any], d: list[Any], lists: list[Any], panel: Any) -> None:
        """Add the terms from first to before last, terms = (first, last), to the sums at `places`."""
        (v, at, step), (first, last), builder = panel, terms, self.builder

        def new(sums: list[Any], k: Any) -> list[Any]:
            added: list[Any] = []
            for d_row, listed in zip(d, lists, strict=True):
                pixel = entry(builder, listed, k)
                slope = self.simd.splat(builder.load(builder.gep(d_row, [pixel])))
                for place in self.window(builder.gep(v, [entry(builder, at, pixel)]), step):
                    added.append(self.simd.fma(slope, self.simd.load(place), sums[len(added)]))
            return added

        results = summed(builder, first, last, [self.simd.load(place) for place in places], new)
        for result, place in zip(results, places, strict=True):
            self.simd.store(result, place)


@intrinsic
def _add_windows(typingctx, number, terms, slopes, lists, panel, result):
    """C[c_row[i] + c + r * c_step + p] += sum_k D[d_row[i] + l] * V[v + at[l] + r * v_step + p], l = L[i, k].

    i < rows, r < runs, p < lanes of the vectors: those of CASES[number]. terms = (first, last) k;
    slopes = (D, d_row, first row); lists = (L, how far rows are apart in L, first row);
    panel = (V, v, at, v_step); result = (C, c_row, c, c_step). All vectors are whole.
    """

    def emit(builder, number, terms, slopes, lists, panel, result):
        (d, d_row, row), (listed, apart, own) = slopes, lists
        (v, v_start, at, v_step), (c, c_row, c_start, c_step) = panel, result
        v, c = builder.gep(v, [v_start]), builder.gep(c, [c_start])
        for case in switched(builder, number, enumerate(CASES)):
            windows = _Windows(builder, c.type.pointee, case)
            starts = rows_from(builder, c, c_row, row, windows.rows)
            places = [place for base in starts for place in windows.window(base, c_step)]
            mine = [builder.add(own, INDEX(i)) for i in range(windows.rows)]
            mine = [builder.gep(listed, [builder.mul(apart, i)]) for i in mine]
            rows = rows_from(builder, d, d_row, row, windows.rows)
            windows.add(places, terms, rows, mine, (v, at, v_step))

    return types.void(types.intp, types.UniTuple(types.intp, 2), slopes, lists, panel, result), emitting(emit)


@kernel
def windows_pay(dy, mask, window):
    """Whether `add_windows` is faster than the dense kernel for runs of `window` entries.

    Vectors of 64 bytes that start anywhere lie in two lines of the cache each.
    """
    if VECTOR_BYTES >= 64 and window * dy.itemsize < VECTOR_BYTES:
        return False
    return mostly_zero(dy, mask, FEW)


@shared
def _widest(left):
    """How many vectors of those left in a run are treated next."""
    for wide in WIDTHS:
        if wide <= left:
            return wide
    return 1


@shared
def lists_size(pixels):
    """How many entries the lists of `add_windows` need."""
    return rows_together(1) * (pixels + LISTED + 1)


@large_kernel
def add_windows(gradient, pixels, rows, d_row, panel, result, kernel_rows, vectors, lists):
    """Add one sample's share to the sums of all windows: a row of C for each row of the table of channels.

    gradient: dy of the sample, flat; d_row, c_row: where the channels begin in dy and in C;
    panel = (V, at, v_step), where at[pixel] is the place of its window; result = (C, c_row, c_step); vectors:
    of a run; lists: scratch of `lists_size`.
    """
    lanes, apart, row = VECTOR_BYTES // gradient.itemsize, pixels + LISTED, 0
    (v, at, v_step), (c, c_row, c_step) = panel, result
    counts, lists = cut(lists, rows_together(1))
    while row < rows:
        together = rows_together(vectors) if rows_together(vectors) <= rows - row else 1
        least, most = np.int64(pixels), np.int64(0)
        for i in range(together):
            count = list_entries(gradient, np.int64(d_row[row + i]), pixels, lists, i * apart)
            counts[i], least, most = count, min(least, count), max(most, count)
        rest, run = together if most > least else 0, 0  # rows by themselves, where one list is longer
        while run < kernel_rows:
            runs, start = 3 if kernel_rows - run >= 3 else 1, 0
            while start < vectors:
                wide = _widest(vectors - start)
                source = (v, run * v_step + start * lanes, at, v_step)
                target = (c, c_row, run * c_step + start * lanes, c_step)
                for i in range(-1, rest):
                    number, own = NUMBERS[together if i < 0 else 1, runs, wide], max(0, i)
                    terms = (np.int64(0), least) if i < 0 else (least, np.int64(counts[i]))
                    mine, listed = (gradient, d_row, row + own), (lists, apart, own)
                    _add_windows(number, terms, mine, listed, source, target)
                start += wide
            run += runs
        row += together


# --- input gradient

MOST_LISTED = 1 << 18  # entries of dy of a sample


@intrinsic
def _spread_windows(typingctx, vectors, entries, slopes, weights, at, line, result):
    """R[r + at[l] + ky * line + kx * size + p] += D[d + l] * W[w + (3 ky + kx) * size + p] for 3 x 3 taps.

    l = L[l_at + k] for k = count - 1, ..., 0: entries = (L, l_at, count); slopes = (D, d); weights = (W, w);
    result = (R, r). p < size runs over the lanes of one or two `vectors`. Loads and stores alternate: in
    blocks they take up to 1.6 times as long.
    """

    def emit(builder, vectors, entries, slopes, weights, at, line, result):
        *where, count = entries
        listed, d, w, r = (builder.gep(base, [to]) for base, to in (where, slopes, weights, result))
        simd = Vectors(builder, r.type.pointee)

        def spread(vectors):
            taps = [simd.load(builder.gep(w, [INDEX(t * simd.lanes)])) for t in range(9 * vectors)]
            with cgutils.for_range(builder, count, intp=INDEX) as loop:
                pixel = entry(builder, listed, builder.sub(builder.sub(count, INDEX(1)), loop.index))
                slope = simd.splat(builder.load(builder.gep(d, [pixel])))
                row = builder.gep(r, [entry(builder, at, pixel)])
                for i, tap in enumerate(taps):
                    if i in (3 * vectors, 6 * vectors):
                        row = builder.gep(row, [line])
                    place = builder.gep(row, [INDEX(i % (3 * vectors) * simd.lanes)])
                    simd.store(simd.fma(slope, tap, simd.load(place)), place)

        for case in switched(builder, vectors, ((1, 1), (2, 2))):
            spread(case)

    return types.void(types.intp, entries, slopes, weights, at, types.intp, result), emitting(emit)


@shared
def _vectors(channels, itemsize):
    """How many vectors of channels are treated together: two where that leaves none of them empty."""
    lanes = VECTOR_BYTES // itemsize
    return 2 - (channels + lanes - 1) // lanes % 2


@shared
def _reach(size, result, stride, pad, dilation):
    """Rows (or columns) of a padded image that three taps of all pixels of dy meet."""
    return max(size + pad, (result - 1) * stride + 2 * dilation + 1)


def input_grad_scratch(source, target, moves, itemsize):
    """(floats, ints) that `input_grad` needs; source, target = (channels, height, width) of dy and dx.

    moves = (stride, pad, dilation).
    """
    (filters, rows, cols), (channels, height, width), (stride, pad, dilation) = source, target, moves
    if math.prod(source) > MOST_LISTED:
        return 0, 0
    lanes = VECTOR_BYTES // itemsize * _vectors(channels, itemsize)
    reach = [_reach(*each) for each in zip(target[1:], source[1:], stride, pad, dilation, strict=True)]
    lists, tables = filters * (rows * cols + LISTED), rows * cols + height * width + 9 + 2 * channels
    floats = (channels + lanes - 1) // lanes * lanes * (reach[0] * reach[1] + 9 * filters)
    return floats, lists + 2 * filters + tables


@kernel
def spreads(dy, weight, dx, moves, dy_mask):
    """Whether `input_grad` can compute dx from this dy, and is faster than the dense kernel."""
    (kh, kw), channels, size = weight.shape[2:], dx.shape[1], VECTOR_BYTES // dy.itemsize
    size *= _vectors(channels, dy.itemsize)
    if kh != 3 or kw != 3 or moves[2][1] != 1 or dy.shape[1] * dy.shape[2] * dy.shape[3] > MOST_LISTED:
        return False
    if 3 * channels < 2 * ((channels + size - 1) // size * size):  # too many lanes would be empty
        return False
    return mostly_zero(dy, dy_mask, FEWER)


@kernel
def _taps_by_lanes(weight, lanes, ints, taps):
    """taps (channels' part, filter, tap, lane) = weight (filter, channel, 3, 3); zero in empty lanes."""
    optimise_for_size()
    filters, channels = weight.shape[:2]
    tap_at, ints = cut(ints, 9)
    channel_at, _ = cut(ints, lanes)
    multiples(np.int64(9), lanes, tap_at)
    multiples(lanes, np.int64(9), channel_at)
    flat, size = weight.reshape(-1), 9 * lanes
    clear(taps)
    for k in range(filters):
        for first in range(0, channels, lanes):
            to, most = (first // lanes * filters + k) * size, min(lanes, channels - first)
            transpose(flat[(k * channels + first) * 9 :], channel_at, most, 9, taps[to:], tap_at)


@large_kernel
def input_grad(dy, weight, moves, dy_mask, floats, ints, dx):
    """dx of all channels (see `plain.conv_input_grad`) for finite 3 x 3 weights, without horizontal dilation.

    moves = (stride, pad, dilation); floats, ints: scratch of the size `input_grad_scratch` says.
    """
    optimise_for_size()
    (n_samples, filters, rows, cols), (channels, height, width) = dy.shape, dx.shape[1:]
    (stride, pad, dilation), vectors = moves, _vectors(channels, dy.itemsize)
    lanes, pixels, area = VECTOR_BYTES // dy.itemsize * vectors, rows * cols, height * width
    line = _reach(width, cols, stride[1], pad[1], dilation[1]) * lanes
    plane = _reach(height, rows, stride[0], pad[0], dilation[0]) * line
    parts, listed = (channels + lanes - 1) // lanes, pixels + LISTED

    sums, floats = cut(floats, parts * plane)
    taps, floats = cut(floats, parts * filters * 9 * lanes)
    _taps_by_lanes(weight, lanes, ints, taps)
    lists, ints = cut(ints, filters * listed)
    counts, ints = cut(ints, filters)
    open_list, ints = cut(ints, filters)
    at, ints = cut(ints, pixels)
    pixel_at, ints = cut(ints, area)
    channel_at, ints = cut(ints, channels)
    grid((rows, cols), (stride[0] * line, stride[1] * lanes), np.int64(0), at)
    grid((height, width), (line, lanes), pad[0] * line + pad[1] * lanes, pixel_at)
    multiples(channels, area, channel_at)

    for n in range(n_samples):
        slopes, out = dy[n].reshape(-1), dx[n].reshape(-1)
        n_open = open_channels(dy_mask, n, filters, open_list)
        for i in range(n_open):
            counts[i] = list_entries(slopes, np.int64(open_list[i]) * pixels, pixels, lists, i * listed)
        clear(sums)
        for b in range(parts):
            result = (sums, b * plane)
            for i in range(n_open):
                k, apart = np.int64(open_list[i]), dilation[0] * line
                entries, weights = (
                    (lists, i * listed, np.int64(counts[i])),
                    (taps, (b * filters + k) * 9 * lanes),
                )
                _spread_windows(vectors, entries, (slopes, k * pixels), weights, at, apart, result)
            first, most = b * lanes, min(lanes, channels - b * lanes)
            transpose(sums[b * plane :], pixel_at, area, most, out[first * area :], channel_at)
