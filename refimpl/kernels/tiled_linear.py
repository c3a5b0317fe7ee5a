"""The fully connected layer on vector tiles: the same results as `plain`, bit for bit.

Forward: inner products of rows of the input and rows of the weight, both in place (`dot`). Input gradient:
rows of the tile are samples, terms outputs, lanes features. Weight gradient: rows are outputs, terms
samples, lanes features. These two read and write in place as well.

One tile serves several samples, so with masks an input or output is left out where it is closed for the
whole batch; where only some samples close it, they contribute zeros. Scratch arrays (`floats`, `ints`)
come from the caller: `scratch` says how large.

Source: mathematics.md §2.1, §2.3b. The use of the tile (`tile.py`) is derived.
"""

from __future__ import annotations

import numpy as np

from refimpl.kernels.arrays import check_offsets
from refimpl.kernels.dot import dot_sweep
from refimpl.kernels.jit import kernel, large_kernel, optimise_for_size
from refimpl.kernels.panels import clear, copy_runs, multiples, open_channels, row_table
from refimpl.kernels.sums import PARTIAL_SUMS
from refimpl.kernels.tile import sweep, sweep_steps
from refimpl.kernels.views import cut, flat


def scratch(n_samples, features, outputs):
    """(floats, ints) that any of the three passes needs.

    Raises InputError where places in the arrays do not fit into the passes' tables.
    """
    check_offsets("linear", x=n_samples * features, y=n_samples * outputs, weight=outputs * features)
    tables = 3 * (features + outputs) + 2 * n_samples + 4 * PARTIAL_SUMS
    return n_samples * (features + outputs) + outputs, tables


@kernel
def _used(mask, columns, out):
    """List the columns that are open in at least one row of the mask; returns how many."""
    optimise_for_size()
    count = 0
    for c in range(columns):
        used, n = mask.shape[0] == 0, 0
        while not used and n < mask.shape[0]:
            used, n = mask[n, c], n + 1
        if used:
            out[count] = c
            count += 1
    return count


@kernel
def _select(x, mask, out):
    """out = x where the mask is open, else 0, all flat; without branches, so that it is vectorised."""
    zero = out.dtype.type(0)
    for i in range(x.size):
        out[i] = x[i] if mask[i] else zero


@kernel
def _masked(x, mask, table, out):
    """The flat x; with a mask, a copy of it in `out` that has zeros where the mask is closed.

    table: scratch for one entry more than there are groups of features, if groups have several features.
    """
    whole = flat(x)
    if mask.shape[0] == 0:
        return whole
    groups, features = mask.shape[1], x.shape[1]
    size = features // groups
    if size == 1:
        _select(whole, flat(mask), out)
        return out
    clear(out[: whole.size])
    for n in range(x.shape[0]):
        count = open_channels(mask, n, groups, table)
        row_table(table, count, size, table)
        copy_runs(count, size, whole, n * features, table, out, n * features, table)
    return out


@kernel
def _close(mask, y):
    """Zero the features of y (N, features) that are closed."""
    result, groups = flat(y), mask.shape[1]
    size = y.shape[1] // max(1, groups)
    if size == 1 and mask.shape[0] > 0:
        _select(result, flat(mask), result)
        return
    for n in range(mask.shape[0]):
        for g in range(groups):
            if not mask[n, g]:
                clear(result[(n * groups + g) * size : (n * groups + g + 1) * size])


@kernel
def _runs(mask, features, starts, stops):
    """List the longest runs of features that are open in at least one sample; returns how many."""
    optimise_for_size()
    if mask.shape[0] == 0:
        starts[0], stops[0] = 0, features
        return 1
    groups = mask.shape[1]
    size, count, end = features // groups, 0, -1
    for g in range(_used(mask, groups, stops)):
        start = stops[g] * size
        if start != end:
            starts[count] = start
            count += 1
        end = start + size
        stops[count - 1] = end
    return count


@kernel
def _rows_at(count, step, table):
    """table[i] = i * step; the last is repeated to the end of the table, which blocks of rows may reach."""
    optimise_for_size()
    for i in range(table.size):
        table[i] = max(0, min(i, count - 1)) * step


@kernel
def _whole_blocks(first, last, count, starts, lanes):
    """Append the blocks of 16 features from `first` to `last` - 1 to the `count` that `_term_blocks` has."""
    optimise_for_size()
    for at in range(first, last, PARTIAL_SUMS):
        starts[count], lanes[count] = at, (1 << min(PARTIAL_SUMS, last - at)) - 1
        count += 1
    return count


@kernel
def _term_blocks(mask, features, groups, starts, lanes):
    """List the blocks of 16 features of which some are open in some sample; returns how many.

    starts: the first feature of each block; lanes: bit i says whether feature start + i is open.
    """
    optimise_for_size()
    if mask.shape[0] == 0:
        return _whole_blocks(0, features, 0, starts, lanes)
    size, count = features // max(1, mask.shape[1]), 0
    used = _used(mask, mask.shape[1], groups)
    if size % PARTIAL_SUMS == 0:
        for i in range(used):
            count = _whole_blocks(groups[i] * size, (groups[i] + 1) * size, count, starts, lanes)
        return count
    block, bits = -1, 0
    for i in range(used):
        for feature in range(groups[i] * size, (groups[i] + 1) * size):
            if feature // PARTIAL_SUMS != block:
                block, bits = feature // PARTIAL_SUMS, 0
                starts[count] = block * PARTIAL_SUMS
                count += 1
            bits |= 1 << feature % PARTIAL_SUMS
            lanes[count - 1] = bits
    return count


@large_kernel
def forward(x, weight, bias, reads, writes, floats, ints, y):
    """y = x weight^T + bias on the outputs of `writes`; see `plain.linear_forward`."""
    optimise_for_size()
    n_samples, features = x.shape
    outputs = weight.shape[0]
    copy, floats = cut(floats, n_samples * features)
    result, bias_row = cut(floats, n_samples * outputs)
    used, ints = cut(ints, outputs)
    groups, ints = cut(ints, features)
    blocks, ints = cut(ints, features // PARTIAL_SUMS + 1)
    lanes, ints = cut(ints, features // PARTIAL_SUMS + 1)
    w_at, ints = cut(ints, outputs + PARTIAL_SUMS)
    x_at, ints = cut(ints, n_samples + PARTIAL_SUMS)
    y_at = ints[: n_samples + PARTIAL_SUMS]

    gated = writes.shape[0] > 0
    rows = _used(writes, outputs, used)
    n_blocks = _term_blocks(reads, features, groups, blocks, lanes)
    _rows_at(outputs, features, w_at)
    _rows_at(n_samples, features, x_at)
    _rows_at(n_samples, rows, y_at)
    if gated:
        for i in range(outputs + PARTIAL_SUMS):
            w_at[i] = used[min(i, rows - 1)] * features if rows > 0 else 0
        for i in range(rows):
            bias_row[i] = bias[used[i]]
    dot_sweep(
        rows,
        n_samples,
        (flat(weight), w_at),
        (_masked(x, reads, groups, copy), x_at),
        (blocks, lanes, n_blocks),
        bias_row if gated else bias,
        (result if gated else flat(y), y_at),
    )
    if gated:
        for n in range(n_samples):
            for i in range(rows):
                y[n, used[i]] = result[n * rows + i]
        _close(writes, y)


@kernel
def _sweep_runs(rows, depth, runs, scalars, panel, result, add):
    """`sweep` over runs of features (starts, stops, count); panel = (V, v_at), result = (C, c_row)."""
    (starts, stops, count), (v, v_at), (c, c_row) = runs, panel, result
    nothing, off = (c_row, np.int64(0)), np.bool_(False)
    for run in range(count):
        first = starts[run]
        width = stops[run] - first
        sweep(rows, depth, width, scalars, v[first:], v_at, c[first:], c_row, nothing, add, off, scalars[0])


@large_kernel
def input_grad(dy, weight, dy_mask, dx_mask, floats, ints, dx):
    """dx = dy weight on the features of `dx_mask`; see `plain.linear_input_grad`."""
    optimise_for_size()
    n_samples, outputs = dy.shape
    features = weight.shape[1]
    starts, ints = cut(ints, features)
    stops, ints = cut(ints, features)
    s_at, ints = cut(ints, outputs)
    v_at, ints = cut(ints, outputs)
    s_row, ints = cut(ints, n_samples + 1)
    c_row, _ = cut(ints, n_samples + 1)
    signal = _masked(dy, dy_mask, s_at, floats)
    depth = _used(dy_mask, outputs, s_at)
    for k in range(depth):
        v_at[k] = s_at[k] * features
    _rows_at(n_samples, outputs, s_row)
    _rows_at(n_samples, features, c_row)
    runs = (starts, stops, _runs(dx_mask, features, starts, stops))
    scalars, panel, result = (signal, s_row, s_at), (flat(weight), v_at), (flat(dx), c_row)
    _sweep_runs(n_samples, depth, runs, scalars, panel, result, np.bool_(False))
    _close(dx_mask, dx)


@kernel
def _add_rows(rows, out):
    """out += the rows of a flat array, from the first to the last."""
    width = out.size
    for n in range(rows.size // width):
        row = rows[n * width : (n + 1) * width]
        for o in range(width):
            out[o] += row[o]


@large_kernel
def weight_grad(x, dy, x_mask, dy_mask, more, floats, ints, dweight, dbias):
    """dweight = dy^T x and dbias = column sums of dy; see `plain.linear_weight_grad`.

    more: add to the sums that dweight and dbias hold, for further samples of the same batch.
    """
    optimise_for_size()
    n_samples, features = x.shape
    outputs = dy.shape[1]
    starts, ints = cut(ints, features)
    stops, ints = cut(ints, features)
    used, ints = cut(ints, outputs)
    s_row, ints = cut(ints, outputs + 1)
    c_row, ints = cut(ints, outputs + 1)
    s_at, v_at = cut(ints, n_samples)
    copy, floats = cut(floats, n_samples * outputs)
    signal, panel = _masked(dy, dy_mask, used, copy), _masked(x, x_mask, starts, floats)
    multiples(n_samples, outputs, s_at)
    multiples(n_samples, features, v_at)
    rows = _used(dy_mask, outputs, used)
    row_table(used, rows, np.int64(1), s_row)
    row_table(used, rows, features, c_row)
    if dy_mask.shape[0] + x_mask.shape[0] > 0 and not more:
        clear(flat(dweight))
    runs = (starts, stops, _runs(x_mask, features, starts, stops))
    result = (flat(dweight), c_row)
    _sweep_runs(rows, n_samples, runs, (signal, s_row, s_at), (panel, v_at), result, more)
    if not more:
        clear(dbias)
    _add_rows(signal, dbias)


@large_kernel
def weight_step(x, dy, eta, lam, centre, ints, weight, dbias):
    """weight <- weight - eta (g + lam (weight - centre)) with g = dy^T x; and dbias = column sums of dy.

    The same bits as `weight_grad` and `vector.local_step`.
    """
    optimise_for_size()
    n_samples, features = x.shape
    outputs = dy.shape[1]
    s_row, ints = cut(ints, outputs + 1)
    c_row, ints = cut(ints, outputs + 1)
    s_at, v_at = cut(ints, n_samples)
    _rows_at(outputs, np.int64(1), s_row)
    _rows_at(outputs, features, c_row)
    multiples(n_samples, outputs, s_at)
    multiples(n_samples, features, v_at)
    signal, panel, result = flat(dy), (flat(x), v_at), (flat(weight), c_row)
    pull = (flat(centre), eta, lam)
    sweep_steps(outputs, n_samples, features, (signal, s_row, s_at), panel, result, pull)
    clear(dbias)
    _add_rows(signal, dbias)
