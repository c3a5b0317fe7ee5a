"""The gate inside a compiled program: its decision and its gradient, as `nn/gate.py` defines them.

Source: mathematics.md §2.2, §2.3, §2.3b, §2.3c. Derived.
"""

from __future__ import annotations

from refimpl.kernels import activation, shaping
from refimpl.kernels.jit import inlined
from refimpl.kernels.operation import DECIDE, GUMBEL, NOWHERE, SOFT, STE, maps_at, mask_at, rows_at


@inlined
def decide(op, n, how, space):
    """A gate's mask from its logits (z_off, z_on), its slope, and the mask as numbers.

    Where the gate cannot decide, that number is NaN, for the product to pass on.
    """
    values, outputs = space.values, op.output[0]
    logits, factor = rows_at(values, op.x, n, 2 * outputs), rows_at(values, op.y, n, outputs)
    slope, mask = rows_at(values, op.own, n, outputs), mask_at(space.masks, op.mask, n, outputs)
    for i in range(n):
        for c in range(outputs):
            factor[i, c] = logits[i, 2 * c + 1] - logits[i, 2 * c]
            if how.mode == GUMBEL:
                factor[i, c] += how.noise[i, op.gate, c]
            mask[i, c] = not factor[i, c] <= 0  # open as well where it is NaN
    if op.wide != NOWHERE:
        _shape(op, n, logits, how, space)
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
            else:
                factor[i, c] = d if d != d else one if mask[i, c] else zero


@inlined
def _shape(op, n, logits, how, space):
    """Batch-shaping of a gate: its term of the loss, and the gradient of that in d, without noise."""
    outputs = op.output[0]
    pull = rows_at(space.values, op.own + outputs, n, outputs)
    for i in range(n):
        for c in range(outputs):
            pull[i, c] = logits[i, 2 * c + 1] - logits[i, 2 * c]
    space.wide[op.wide * n] = shaping.shape_gates(pull, how.tau, how.shaping, pull)


@inlined
def add_shaping(total, program, n, space):
    """total + the terms of the loss that shape gates."""
    for i in range(program.shape[0]):
        if program[i].kind == DECIDE and program[i].wide != NOWHERE:
            total += space.wide[program[i].wide * n]
    return total


@inlined
def decide_backward(op, n, space):
    """The gradient of the logits from dL/dM, and from what shapes the gate."""
    outputs = op.output[0]
    dmask, slope = rows_at(space.slopes, op.dy, n, outputs), rows_at(space.values, op.own, n, outputs)
    dlogits = rows_at(space.slopes, op.dx, n, 2 * outputs)
    for i in range(n):
        for c in range(outputs):
            dmargin = dmask[i, c] * slope[i, c]
            dlogits[i, 2 * c] = -dmargin
            dlogits[i, 2 * c + 1] = dmargin
    if op.wide != NOWHERE:
        pull = rows_at(space.values, op.own + outputs, n, outputs)
        for i in range(n):
            for c in range(outputs):
                dlogits[i, 2 * c] -= pull[i, c]
                dlogits[i, 2 * c + 1] += pull[i, c]


@inlined
def product(op, n, space):
    """y = M * z; where closed channels were skipped, y is z already."""
    factor, y = rows_at(space.values, op.x2, n, op.output[0]), maps_at(space.values, op.y, n, op.output)
    if op.x != op.y:
        activation.scale_channels(maps_at(space.values, op.x, n, op.input), factor, y)
    activation.spread_nan(factor, y)


@inlined
def product_backward(op, n, space):
    """dL/dM = sum of dy * z; and dz = M * dy for a smooth mask (a 0/1 mask is applied by `dy_mask`)."""
    values, slopes, channels = space.values, space.slopes, op.output[0]
    dy = maps_at(slopes, op.dy, n, op.output)
    if op.dx2 != NOWHERE:
        dmask = rows_at(slopes, op.dx2, n, channels)
        activation.channel_products(dy, maps_at(values, op.x, n, op.input), dmask)
    if op.dx != NOWHERE and op.dx != op.dy:
        activation.scale_channels(
            dy, rows_at(values, op.x2, n, channels), maps_at(slopes, op.dx, n, op.input)
        )
