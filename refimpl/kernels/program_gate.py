"""The gate inside a compiled program: its decision and its gradient, as `nn/gate.py` defines them.

Source: mathematics.md §2.2, §2.3, §2.3b. Derived.
"""

from __future__ import annotations

from refimpl.kernels import activation, tiled_linear
from refimpl.kernels.jit import inlined
from refimpl.kernels.operation import (
    GUMBEL,
    NOWHERE,
    SOFT,
    STE,
    maps_at,
    mask_at,
    matrix_at,
    rows_at,
    vector_at,
)
from refimpl.kernels.panels import copy


@inlined
def decide(op, w, n, how, space):
    """A gate's mask, its slope and what its backward pass needs; see `nn/gate.py`.

    Scratch at `spare`, per sample: summary (C), pre-activation (h), hidden (h), logits (2K), slope (K),
    mask as float, or NaN where the gate cannot decide (K), dL/dM (K).
    """
    values, masks, floats, ints = space.values, space.masks, space.floats, space.ints
    channels, outputs, hidden_units = op.input[0], op.output[0], op.hidden
    at = op.spare
    x, reads = maps_at(values, op.x, n, op.input), mask_at(masks, op.reads, n, op.groups)
    summary = rows_at(values, at, n, channels)
    if op.input[1] * op.input[2] == 1:
        copy(x.reshape(-1), summary.reshape(-1))
    else:
        activation.channel_means(x, reads, summary)
    at += channels
    pre, hidden = rows_at(values, at, n, hidden_units), rows_at(values, at + hidden_units, n, hidden_units)
    first = matrix_at(w, op.weight, hidden_units, channels)
    everything = mask_at(masks, NOWHERE, n, 1)
    tiled_linear.forward(
        summary, first, vector_at(w, op.bias, hidden_units), reads, everything, floats, ints, pre
    )
    activation.rectify(pre.reshape(-1), pre.reshape(-1), hidden.reshape(-1))
    at += 2 * hidden_units
    logits = rows_at(values, at, n, 2 * outputs)
    second = matrix_at(w, op.weight2, 2 * outputs, hidden_units)
    bias = vector_at(w, op.bias2, 2 * outputs)
    tiled_linear.forward(hidden, second, bias, everything, everything, floats, ints, logits)
    at += 2 * outputs
    slope, factor = rows_at(values, at, n, outputs), rows_at(values, at + outputs, n, outputs)
    mask = mask_at(masks, op.mask, n, outputs)
    for i in range(n):
        for c in range(outputs):
            factor[i, c] = logits[i, 2 * c + 1] - logits[i, 2 * c]
            if how.mode == GUMBEL:
                factor[i, c] += how.noise[i, op.gate, c]
            mask[i, c] = not factor[i, c] <= 0  # open as well where it is NaN
    if how.mode == STE:
        for i in range(n):
            for c in range(outputs):
                slope[i, c] = 1
    elif op.learns or how.mode == SOFT:  # else only the sign is needed
        activation.sigmoid_scaled(factor, how.tau, factor, slope)
    zero, one = factor.dtype.type(0), factor.dtype.type(1)
    for i in range(n):
        for c in range(outputs):
            d = factor[i, c]
            if how.mode == SOFT:
                mask[i, c] = True
            else:  # NaN stays, for the product to pass on
                factor[i, c] = d if d != d else one if mask[i, c] else zero


@inlined
def decide_backward(op, w, n, more, space, gradient):
    """A gate's gradients from dL/dM (added up if `more`), and its share of that of the block's input."""
    values, slopes, masks = space.values, space.slopes, space.masks
    floats, ints = space.floats, space.ints
    channels, outputs, hidden_units = op.input[0], op.output[0], op.hidden
    at = op.spare
    summary, hidden = (
        rows_at(values, at, n, channels),
        rows_at(values, at + channels + hidden_units, n, hidden_units),
    )
    at += channels + 2 * hidden_units + 2 * outputs
    slope, dmask = rows_at(values, at, n, outputs), rows_at(values, at + 2 * outputs, n, outputs)
    at = op.spare  # the gradients take the places of the activations in the other workspace
    dsummary, dpre = rows_at(slopes, at, n, channels), rows_at(slopes, at + channels, n, hidden_units)
    dhidden = rows_at(slopes, at + channels + hidden_units, n, hidden_units)
    dlogits = rows_at(slopes, at + channels + 2 * hidden_units, n, 2 * outputs)
    everything = mask_at(masks, NOWHERE, n, 1)
    for i in range(n):
        for c in range(outputs):
            dmargin = dmask[i, c] * slope[i, c]
            dlogits[i, 2 * c] = -dmargin
            dlogits[i, 2 * c + 1] = dmargin
    second = matrix_at(w, op.weight2, 2 * outputs, hidden_units)
    tiled_linear.input_grad(dlogits, second, everything, everything, floats, ints, dhidden)
    activation.rectify(dhidden.reshape(-1), hidden.reshape(-1), dpre.reshape(-1))
    reads = mask_at(masks, op.reads, n, op.groups)
    if op.need_dw:
        dsecond = matrix_at(gradient, op.weight2, 2 * outputs, hidden_units)
        dbias2 = vector_at(gradient, op.bias2, 2 * outputs)
        tiled_linear.weight_grad(hidden, dlogits, everything, everything, more, floats, ints, dsecond, dbias2)
        dfirst = matrix_at(gradient, op.weight, hidden_units, channels)
        dbias = vector_at(gradient, op.bias, hidden_units)
        tiled_linear.weight_grad(summary, dpre, reads, everything, more, floats, ints, dfirst, dbias)
    if op.dx == NOWHERE:
        return
    dx_mask = mask_at(masks, op.dx_mask, n, op.groups)
    first = matrix_at(w, op.weight, hidden_units, channels)
    tiled_linear.input_grad(dpre, first, everything, dx_mask, floats, ints, dsummary)
    dx = maps_at(slopes, op.dx, n, op.input)
    pixels = op.input[1] * op.input[2]
    if pixels == 1:
        for i in range(n):
            for c in range(channels):
                dx[i, c, 0] += dsummary[i, c]
    else:
        for i in range(n):
            for c in range(channels):
                dsummary[i, c] /= dsummary.dtype.type(pixels)
        activation.add_to_channels(dsummary, dx_mask, dx)
