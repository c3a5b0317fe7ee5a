"""Convolutions most of whose weights are pruned: only the kept weights are multiplied.

The weights stay where they are, in an array (K, C, kh, kw); `kept` is a boolean array of that shape, and
`tables_of` turns it, once for each mask, into lists of the kept terms of every result channel.

* Forward and input gradient: each result is the chain of the dense kernels (`plain.conv_forward`,
  `plain.conv_input_grad`) without the terms of pruned weights. A term w * x with w = 0 changes no finite sum,
  so the bits are those of the dense kernels at weights that are zero where they are pruned. Only the sign of
  a zero may differ, and results of NaN or infinity in x, which the dense kernels multiply by zero.
* Weight gradient: only at the kept weights, in an order of its own (`plain.kept_weight_grad`): for each
  sample 16 chains over the pixels i, i + 16, ..., added pairwise; then one sample after the other. So vectors
  run along pixels and any weight is left out at no cost; in the dense order they run along the weights.

In all passes vectors run along pixels of shifted copies of the planes, as in `tiled_conv`, and one kept
weight takes part at a time. Results do not depend on the vector width.

Source: mathematics.md §2.1, §14.1. Derived.
"""

from __future__ import annotations

import numpy as np

from refimpl.kernels import plain
from refimpl.kernels.arrays import Pair, check_shape, check_target, output_size, tidy_floats
from refimpl.kernels.jit import USE_TILE, inlined, kernel, large_kernel, optimise_for_size
from refimpl.kernels.panels import clear, clear_rows, copy_planes, multiples, shift_table, whole_vectors
from refimpl.kernels.sparse_row import NUMBERS, add_sums, sparse_row, weights_together
from refimpl.kernels.sparse_tables import (
    ALIGNED,
    HEAD,
    SUMS,
    Geometry,
    sparse_scratch,
    tables_of,
    together,
)
from refimpl.kernels.sums import total
from refimpl.kernels.target import VECTOR_BYTES
from refimpl.kernels.views import cut
from refimpl.kernels.workspace import scratch


@inlined
def _opened(tables, targets):
    """The first part of the tables, as `sparse_tables._part` lays it out, and what follows it."""
    head, rest = cut(tables, HEAD)
    down, rest = cut(rest, head[0])
    right, rest = cut(rest, head[0])
    edges, rest = cut(rest, targets * (head[HEAD - 3] + 1))
    whole, rest = cut(rest, targets * (head[HEAD - 2] + 1))
    offsets, rest = cut(rest, head[HEAD - 1] + ALIGNED)
    places, rest = cut(rest, head[HEAD - 1])
    return head, (down, right), edges, whole, offsets, places, rest


@inlined
def _prepared(source, head, shifts, samples, floats, ints):
    """Panels for so many samples with the rows cleared that no copy fills, and the rest of the scratch."""
    planes, plane, channels = np.int64(head[0]), np.int64(head[4]), source.shape[1]
    image = channels * planes * plane
    panel, floats = cut(floats, samples * image + ALIGNED)
    every, ints = cut(ints, channels)
    table, ints = cut(ints, 5 * planes)
    shape, stride = (np.int64(head[1]), np.int64(head[3])), (np.int64(head[5]), np.int64(head[6]))
    multiples(channels, np.int64(1), every)
    shift_table((source.shape[2], source.shape[3]), shifts[0], shifts[1], stride, shape, table)
    for s in range(samples):
        clear_rows(shape, table, panel[s * image :], plane, channels * planes)
    return panel, image, every, table, floats


@inlined
def _copy(source, n, head, every, table, panel):
    """Fill the panel of one sample."""
    size, stride = (source.shape[2], source.shape[3]), (np.int64(head[5]), np.int64(head[6]))
    cols, plane = np.int64(head[3]), np.int64(head[4])
    columns = (np.int64(0), cols, cols)
    copy_planes(source[n].reshape(-1), every, source.shape[1], size, stride, columns, table, panel, plane)


@large_kernel
def convolve(source, weights, bias, tables, floats, ints, target):
    """As `tiled_conv.convolve` where all channels take part, in the direction that the tables are for.

    weights: flat; bias: empty where there is none; floats, ints: scratch of the size that `sparse_scratch`
    says, the floats best aligned to a cache line.
    """
    optimise_for_size()
    targets = target.shape[1]
    while tables.size > 0:
        head, shifts, edges, _, offsets, places, tables = _opened(tables, targets)
        _convolve_part(source, weights, bias, head, shifts, (edges, offsets, places), floats, ints, target)


@kernel
def _convolve_part(source, weights, bias, head, shifts, lists, floats, ints, target):
    """One part of `convolve`. The results of a grid with gaps are computed side by side and then spread."""
    n_samples, targets, lanes = target.shape[0], target.shape[1], VECTOR_BYTES // source.itemsize
    edges, offsets, places = lists
    rows, cols = np.int64(head[2]), np.int64(head[3])
    pixels, area = rows * cols, target.shape[2] * target.shape[3]
    direct, group = head[9] == 1 and head[10] == 1, together(pixels, source.itemsize)
    group = group if direct else 1
    panel, image, every, table, floats = _prepared(source, head, shifts, group, floats, ints)
    values, part = cut(floats, whole_vectors(places.size, source.itemsize))
    for k in range(places.size):
        values[k] = weights[places[k]]
    out = target.reshape(-1) if direct else part
    vectors = whole_vectors(pixels, source.itemsize) // lanes
    strips = (vectors + SUMS - 1) // SUMS
    each, n, count = (vectors + strips - 1) // strips, 0, group
    while n < n_samples:
        while n + count > n_samples:
            count //= 2
        for s in range(count):
            _copy(source, n + s, head, every, table, panel[s * image :])
        to = n * targets * area if direct else 0
        for start in range(0, vectors, each):
            wide = min(each, vectors - start)
            valid = min(lanes, pixels - (start + wide - 1) * lanes)
            number = NUMBERS[wide - 1, count]
            for block in range(0, edges.size - targets, targets):
                last = block == edges.size - 2 * targets
                for t in range(targets):
                    begin, end = np.int64(edges[block + t]), np.int64(edges[block + targets + t])
                    terms = (values, offsets, begin, end)
                    result = (out, to + t * pixels + start * lanes, targets * pixels, valid)
                    shift = bias[t] if last and bias.size > 0 else bias.dtype.type(0)
                    sparse_row(number, terms, (panel, start * lanes, image), result, block > 0, shift)
        if not direct:
            _spread(part, head, target[n])
        n += count


@kernel
def _spread(part, head, target):
    """target[c, origin + spread * (p, q)] = part[c, p, q]."""
    rows, cols = np.int64(head[2]), np.int64(head[3])
    for c in range(target.shape[0]):
        for p in range(rows):
            for q in range(cols):
                target[c, head[7] + p * head[9], head[8] + q * head[10]] = part[(c * rows + p) * cols + q]


# --- weight gradient


@large_kernel
def weight_grad(x, dy, more, tables, floats, ints, dweight, dbias):
    """dweight (flat) at the kept weights, zero at the others, and dbias: `plain.kept_weight_grad`.

    tables: of the forward pass; more: add to what dweight and dbias hold, for further samples of a batch;
    floats, ints: scratch as for the forward pass.
    """
    optimise_for_size()
    if not more:
        clear(dweight)
        clear(dbias)
    head, shifts, _, edges, offsets, places, _ = _opened(tables, dbias.size)
    panel, _, every, table, sums = _prepared(x, head, shifts, 1, floats, ints)
    pixels = dy.shape[2] * dy.shape[3]
    for k in range(places.size):
        sums[k] = dweight[places[k]]
    for n in range(x.shape[0]):
        gradient = dy[n].reshape(-1)
        _copy(x, n, head, every, table, panel)
        for block in range(0, edges.size - dbias.size, dbias.size):
            starts, ends = edges[block : block + dbias.size], edges[block + dbias.size :]
            _add_weights(gradient, pixels, panel, starts, ends, offsets, sums)
        for t in range(dbias.size):
            dbias[t] += total(gradient, t * pixels, pixels)
    for k in range(places.size):
        dweight[places[k]] = sums[k]


@kernel
def _add_weights(gradient, pixels, panel, starts, ends, offsets, sums):
    """Add one sample's share to the sum of every kept weight."""
    wide = weights_together(sums.itemsize)
    for t in range(starts.size):
        for k in range(starts[t], ends[t], wide):
            count = min(wide, ends[t] - k)
            add_sums(count, (gradient, t * pixels, pixels), panel, offsets, (sums, np.int64(k)))


# --- what the layers call


def kept_weight_grad(
    x: np.ndarray,
    dy: np.ndarray,
    stride: Pair,
    pad: Pair,
    kept: np.ndarray,
    dweight: np.ndarray,
    dbias: np.ndarray,
) -> None:
    """Write dweight (K,C,kh,kw), zero where `kept` is False, and dbias (K,), summed over the batch."""
    who = "sparse.kept_weight_grad"
    x, dy = tidy_floats(who, x=x, dy=dy)
    filters, channels = kept.shape[:2]
    size = output_size(x.shape[2:], kept.shape[2:], stride, pad)
    check_shape(who, "x", x, (len(x), channels, *x.shape[2:]))
    check_shape(who, "dy", dy, (len(x), filters, *size))
    check_target(who, "dweight", dweight, x.dtype, kept.shape)
    check_target(who, "dbias", dbias, x.dtype, (filters,))
    if not USE_TILE:
        plain.kept_weight_grad(x, dy, stride, pad, kept, dweight, dbias)
        return
    tables = tables_of(kept, Geometry(x.shape[2:], stride, pad)).forward
    memory = scratch(x.dtype, *sparse_scratch(tables, channels, filters, x.itemsize))
    weight_grad(x, dy, False, tables, *memory, dweight.reshape(-1), dbias)
