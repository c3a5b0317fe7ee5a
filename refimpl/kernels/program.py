"""A network's whole local solve as one compiled call: a table of operations run by a loop.

The layers of `nn/` are the readable definition; here the same kernels are called in the same order from
compiled code, so that a node's solve of problem (5) costs the interpreter nothing and threads do not
wait for each other. Results are bit-equal to the layers' (tested).

A program is a record array `OPERATION`, one row an operation, made by `nn/lowering.py`. Rows speak of
places in a workspace: offsets are per sample, so the region of n samples starts at n * offset.

Source: mathematics.md §2 (forward, backward), §3 (the local iteration). Derived.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.kernels import activation, loss, pool, tiled_conv, tiled_linear, tiled_weight_grad, vector
from refimpl.kernels.jit import inlined, kernel

CONV, LINEAR, RELU, SOFTPLUS, TANH, MAX_POOL, AVERAGE_POOL, GLOBAL_POOL, DECIDE, PRODUCT = range(10)
HARD, GUMBEL, STE, SOFT = range(4)
NOWHERE = -1

OPERATION = np.dtype(
    [
        ("kind", np.int64),
        ("input", np.int64, 3),  # channels, height, width of one sample's input (features, 1, 1)
        ("output", np.int64, 3),
        ("window", np.int64, 2),
        ("stride", np.int64, 2),
        ("pad", np.int64, 2),
        ("weight", np.int64),  # places in w and in the gradient
        ("bias", np.int64),
        ("weight2", np.int64),  # the gate's second layer
        ("bias2", np.int64),
        ("hidden", np.int64),  # hidden units of a gate
        ("x", np.int64),  # places of activations, per sample
        ("y", np.int64),
        ("dx", np.int64),  # places of their gradients; NOWHERE: not wanted
        ("dy", np.int64),
        ("spare", np.int64),  # the operation's own scratch: argmax, gate activations
        ("reads", np.int64),  # places of masks, NOWHERE: all on
        ("writes", np.int64),
        ("dy_mask", np.int64),
        ("dx_mask", np.int64),
        ("groups", np.int64),  # columns of the mask of x
        ("gate", np.int64),  # number of the gate this operation belongs to
        ("mask", np.int64),  # place of the mask a DECIDE makes and a PRODUCT applies
        ("need_dw", np.bool_),
        ("learns", np.bool_),  # gate rows: does the gate get a gradient
        ("scales", np.bool_),  # PRODUCT: multiply forward (else closed channels were skipped)
    ],
    align=True,
)


class Workspace(NamedTuple):
    """One thread's memory: activations, their gradients, masks, pooling positions, kernels' scratch."""

    values: np.ndarray
    slopes: np.ndarray
    masks: np.ndarray
    where: np.ndarray
    floats: np.ndarray
    ints: np.ndarray


class Decisions(NamedTuple):
    """How gates decide: temperature, mode, and noise (gates, n, widest gate), read in mode GUMBEL only."""

    tau: float
    mode: int
    noise: np.ndarray


@kernel
def _maps(values, at, n, shape):
    """The region at `at` as (n, C, pixels)."""
    pixels = shape[1] * shape[2]
    return values[at * n : at * n + n * shape[0] * pixels].reshape(n, shape[0], pixels)


@kernel
def _images(values, at, n, shape):
    """The region at `at` as (n, C, H, W)."""
    size = n * shape[0] * shape[1] * shape[2]
    return values[at * n : at * n + size].reshape(n, shape[0], shape[1], shape[2])


@kernel
def _rows(values, at, n, width):
    """The region at `at` as (n, width)."""
    return values[at * n : at * n + n * width].reshape(n, width)


@kernel
def _mask(masks, at, n, width):
    """The mask at `at` as (n, width); (0, width), which stands for "all on", where there is none."""
    if at < 0:
        return masks[:0].reshape(0, width)
    return masks[at * n : at * n + n * width].reshape(n, width)


@kernel
def _matrix(w, at, rows, columns):
    """A weight matrix inside w."""
    return w[at : at + rows * columns].reshape(rows, columns)


@kernel
def _filters(w, op):
    """A convolution's weights inside w."""
    size = op.output[0] * op.input[0] * op.window[0] * op.window[1]
    shape = (op.output[0], op.input[0], op.window[0], op.window[1])
    return w[op.weight : op.weight + size].reshape(shape)


@kernel
def _vector(w, at, size):
    return w[at : at + size]


@kernel
def _pair(field):
    return (field[0], field[1])


@inlined
def _decide(op, w, n, how, space):
    """A gate's mask, its slope and what its backward pass needs; see `nn/gate.py`.

    Scratch at `spare`, per sample: summary (C), pre-activation (h), hidden (h), logits (2K), slope (K),
    mask as float (K), dL/dM (K).
    """
    values, masks, floats, ints = space.values, space.masks, space.floats, space.ints
    channels, outputs, hidden_units = op.input[0], op.output[0], op.hidden
    at = op.spare
    x, reads = _maps(values, op.x, n, op.input), _mask(masks, op.reads, n, op.groups)
    summary = _rows(values, at, n, channels)
    if op.input[1] * op.input[2] == 1:
        summary[:] = x[:, :, 0]
    else:
        activation.channel_means(x, reads, summary)
    at += channels
    pre, hidden = _rows(values, at, n, hidden_units), _rows(values, at + hidden_units, n, hidden_units)
    first = _matrix(w, op.weight, hidden_units, channels)
    everything = _mask(masks, NOWHERE, n, 1)
    tiled_linear.forward(
        summary, first, _vector(w, op.bias, hidden_units), reads, everything, floats, ints, pre
    )
    for i in range(n):
        for j in range(hidden_units):
            hidden[i, j] = pre[i, j] if pre[i, j] > 0 else pre[i, j] * 0
    at += 2 * hidden_units
    logits = _rows(values, at, n, 2 * outputs)
    second = _matrix(w, op.weight2, 2 * outputs, hidden_units)
    bias = _vector(w, op.bias2, 2 * outputs)
    tiled_linear.forward(hidden, second, bias, everything, everything, floats, ints, logits)
    at += 2 * outputs
    slope, factor = _rows(values, at, n, outputs), _rows(values, at + outputs, n, outputs)
    mask = _mask(masks, op.mask, n, outputs)
    for i in range(n):
        for c in range(outputs):
            factor[i, c] = logits[i, 2 * c + 1] - logits[i, 2 * c]
            if how.mode == GUMBEL:
                factor[i, c] += how.noise[op.gate, i, c]
            mask[i, c] = factor[i, c] > 0
    if how.mode == STE:
        slope[:] = 1
    else:
        activation.sigmoid_scaled(factor, how.tau, factor, slope)
    for i in range(n):
        for c in range(outputs):
            if how.mode == SOFT:
                mask[i, c] = True
            else:
                factor[i, c] = 1 if mask[i, c] else 0


@inlined
def _forward(op, w, n, how, space):
    """One operation forward."""
    values, masks, floats, ints = space.values, space.masks, space.floats, space.ints
    x, y = _maps(values, op.x, n, op.input), _maps(values, op.y, n, op.output)
    stride, pad = _pair(op.stride), _pair(op.pad)
    if op.kind == CONV:
        reads, writes = _mask(masks, op.reads, n, op.groups), _mask(masks, op.writes, n, op.output[0])
        images, out = _images(values, op.x, n, op.input), _images(values, op.y, n, op.output)
        bias = _vector(w, op.bias, op.output[0])
        tiled_conv.convolve(
            images, _filters(w, op), bias, stride, pad, False, reads, writes, floats, ints, out
        )
    elif op.kind == LINEAR:
        reads, writes = _mask(masks, op.reads, n, op.groups), _mask(masks, op.writes, n, op.output[0])
        rows, out2 = _rows(values, op.x, n, op.input[0]), _rows(values, op.y, n, op.output[0])
        weight = _matrix(w, op.weight, op.output[0], op.input[0])
        tiled_linear.forward(
            rows, weight, _vector(w, op.bias, op.output[0]), reads, writes, floats, ints, out2
        )
    elif op.kind == DECIDE:
        _decide(op, w, n, how, space)
    elif op.kind == PRODUCT:
        if op.scales:
            factor = _rows(values, op.spare, n, op.output[0])
            activation.scale_channels(x, factor, y)
    elif op.kind == RELU and op.writes == NOWHERE:
        size = n * y.shape[1] * y.shape[2]  # one long channel: its loop is vectorised
        activation.relu_forward(x.reshape(1, 1, size), _mask(masks, NOWHERE, n, 1), y.reshape(1, 1, size))
    elif op.kind == RELU:
        activation.relu_forward(x, _mask(masks, op.writes, n, op.output[0]), y)
    elif op.kind == SOFTPLUS:
        activation.softplus_forward(x, _mask(masks, op.writes, n, op.output[0]), y)
    elif op.kind == TANH:
        activation.tanh_forward(x, _mask(masks, op.writes, n, op.output[0]), y)
    elif op.kind == GLOBAL_POOL:
        writes = _mask(masks, op.writes, n, op.output[0])
        activation.channel_means(x, writes, _rows(values, op.y, n, op.output[0]))
    else:
        writes = _mask(masks, op.writes, n, op.output[0])
        images, out = _images(values, op.x, n, op.input), _images(values, op.y, n, op.output)
        if op.kind == MAX_POOL:
            at = _images(space.where, op.spare, n, op.output)
            pool.max_forward(images, _pair(op.window), _pair(op.stride), writes, out, at)
        else:
            pool.average_forward(images, _pair(op.window), _pair(op.stride), writes, out)


@inlined
def _decide_backward(op, w, n, space, gradient):
    """A gate's gradients from dL/dM, and its share of the gradient of the block's input."""
    values, slopes, masks = space.values, space.slopes, space.masks
    floats, ints = space.floats, space.ints
    channels, outputs, hidden_units = op.input[0], op.output[0], op.hidden
    at = op.spare
    summary, hidden = (
        _rows(values, at, n, channels),
        _rows(values, at + channels + hidden_units, n, hidden_units),
    )
    at += channels + 2 * hidden_units + 2 * outputs
    slope, dmask = _rows(values, at, n, outputs), _rows(values, at + 2 * outputs, n, outputs)
    at = op.spare  # the gradients take the places of the activations in the other workspace
    dsummary, dpre = _rows(slopes, at, n, channels), _rows(slopes, at + channels, n, hidden_units)
    dhidden = _rows(slopes, at + channels + hidden_units, n, hidden_units)
    dlogits = _rows(slopes, at + channels + 2 * hidden_units, n, 2 * outputs)
    everything = _mask(masks, NOWHERE, n, 1)
    for i in range(n):
        for c in range(outputs):
            dmargin = dmask[i, c] * slope[i, c]
            dlogits[i, 2 * c] = -dmargin
            dlogits[i, 2 * c + 1] = dmargin
    second = _matrix(w, op.weight2, 2 * outputs, hidden_units)
    tiled_linear.input_grad(dlogits, second, everything, everything, floats, ints, dhidden)
    for i in range(n):
        for j in range(hidden_units):
            dpre[i, j] = dhidden[i, j] if hidden[i, j] > 0 else hidden[i, j] * 0
    reads = _mask(masks, op.reads, n, op.groups)
    if op.need_dw:
        dsecond = _matrix(gradient, op.weight2, 2 * outputs, hidden_units)
        dbias2 = _vector(gradient, op.bias2, 2 * outputs)
        tiled_linear.weight_grad(hidden, dlogits, everything, everything, floats, ints, dsecond, dbias2)
        dfirst = _matrix(gradient, op.weight, hidden_units, channels)
        dbias = _vector(gradient, op.bias, hidden_units)
        tiled_linear.weight_grad(summary, dpre, reads, everything, floats, ints, dfirst, dbias)
    if op.dx == NOWHERE:
        return
    dx_mask = _mask(masks, op.dx_mask, n, op.groups)
    first = _matrix(w, op.weight, hidden_units, channels)
    tiled_linear.input_grad(dpre, first, everything, dx_mask, floats, ints, dsummary)
    dx = _maps(slopes, op.dx, n, op.input)
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


@inlined
def _backward(op, w, n, space, gradient):
    """One operation backward: parameter gradients into `gradient`, dx into `space.slopes`."""
    values, slopes, masks = space.values, space.slopes, space.masks
    floats, ints = space.floats, space.ints
    dy_mask = _mask(masks, op.dy_mask, n, op.output[0])
    need_dx = op.dx != NOWHERE
    stride, pad = _pair(op.stride), _pair(op.pad)
    if op.kind == CONV:
        images, dout = _images(values, op.x, n, op.input), _images(slopes, op.dy, n, op.output)
        if op.need_dw:
            reads, dbias = _mask(masks, op.reads, n, op.groups), _vector(gradient, op.bias, op.output[0])
            dweight = _filters(gradient, op)
            tiled_weight_grad.weight_grad(
                images, dout, stride, pad, reads, dy_mask, floats, ints, dweight, dbias
            )
        if need_dx:
            dx_mask, dimages = _mask(masks, op.dx_mask, n, op.groups), _images(slopes, op.dx, n, op.input)
            weight = _filters(w, op)
            bias = _vector(w, op.bias, op.output[0])  # not used in this direction
            tiled_conv.convolve(
                dout, weight, bias, stride, pad, True, dy_mask, dx_mask, floats, ints, dimages
            )
    elif op.kind == LINEAR:
        rows, dout2 = _rows(values, op.x, n, op.input[0]), _rows(slopes, op.dy, n, op.output[0])
        if op.need_dw:
            reads, dbias = _mask(masks, op.reads, n, op.groups), _vector(gradient, op.bias, op.output[0])
            dmatrix = _matrix(gradient, op.weight, op.output[0], op.input[0])
            tiled_linear.weight_grad(rows, dout2, reads, dy_mask, floats, ints, dmatrix, dbias)
        if need_dx:
            dx_mask, drows = _mask(masks, op.dx_mask, n, op.groups), _rows(slopes, op.dx, n, op.input[0])
            matrix = _matrix(w, op.weight, op.output[0], op.input[0])
            tiled_linear.input_grad(dout2, matrix, dy_mask, dx_mask, floats, ints, drows)
    elif op.kind == DECIDE:
        if op.learns:
            _decide_backward(op, w, n, space, gradient)
    elif op.kind == PRODUCT:
        _product_backward(op, n, space)
    elif need_dx:
        _elementwise_backward(op, n, space, dy_mask)


@inlined
def _product_backward(op, n, space):
    """dL/dM = sum of dy * z; and dz = M * dy for a smooth mask (a 0/1 mask is applied by `dy_mask`)."""
    values, slopes = space.values, space.slopes
    dy = _maps(slopes, op.dy, n, op.output)
    if op.learns:
        dmask = _rows(values, op.spare + op.output[0], n, op.output[0])
        activation.channel_products(dy, _maps(values, op.x, n, op.input), dmask)
    if op.dx not in (NOWHERE, op.dy):
        factor = _rows(values, op.spare, n, op.output[0])
        activation.scale_channels(dy, factor, _maps(slopes, op.dx, n, op.input))


@inlined
def _elementwise_backward(op, n, space, dy_mask):
    """Activations and pooling."""
    values, slopes = space.values, space.slopes
    dy, dx = _maps(slopes, op.dy, n, op.output), _maps(slopes, op.dx, n, op.input)
    if op.kind == RELU and op.dy_mask == NOWHERE:
        y, size = _maps(values, op.y, n, op.output), n * dy.shape[1] * dy.shape[2]
        activation.relu_backward(
            dy.reshape(1, 1, size), y.reshape(1, 1, size), dy_mask, dx.reshape(1, 1, size)
        )
    elif op.kind == RELU:
        activation.relu_backward(dy, _maps(values, op.y, n, op.output), dy_mask, dx)
    elif op.kind == SOFTPLUS:
        activation.softplus_backward(dy, _maps(values, op.x, n, op.input), dy_mask, dx)
    elif op.kind == TANH:
        activation.tanh_backward(dy, _maps(values, op.y, n, op.output), dy_mask, dx)
    elif op.kind == GLOBAL_POOL:
        share = _rows(slopes, op.dy, n, op.output[0])
        pixels = op.input[1] * op.input[2]
        for i in range(n):
            for c in range(op.output[0]):
                share[i, c] /= share.dtype.type(pixels)
        dx[:] = 0
        activation.add_to_channels(share, dy_mask, dx)
    else:
        dout, dimages = _images(slopes, op.dy, n, op.output), _images(slopes, op.dx, n, op.input)
        if op.kind == MAX_POOL:
            at = _images(space.where, op.spare, n, op.output)
            pool.max_backward(dout, at, _pair(op.window), _pair(op.stride), dy_mask, dimages)
        else:
            pool.average_backward(dout, _pair(op.window), _pair(op.stride), dy_mask, dimages)


@inlined
def gradient_at(program, w, labels, how, space, gradient):
    """Loss at w on the samples at the start of `space.values`; writes the trained part of the gradient.

    labels (n,) says how many samples there are; the gradient's other entries are left alone.
    """
    n, last = labels.size, program[-1]
    for i in range(program.shape[0]):
        _forward(program[i], w, n, how, space)
    logits = _rows(space.values, last.y, n, last.output[0])
    dlogits = _rows(space.slopes, last.dy, n, last.output[0])
    value = loss.softmax_cross_entropy(logits, labels, dlogits)
    for i in range(program.shape[0] - 1, -1, -1):
        _backward(program[i], w, n, space, gradient)
    return value


@inlined
def _count_open(program, n, masks, counts, moments):
    """Add the sums over samples of products of open-channel counts (see `nn/work.py`)."""
    for s in range(n):
        counts[0] = 1
        for i in range(program.shape[0]):
            op = program[i]
            if op.kind == DECIDE:
                outputs = op.output[0]
                counts[op.gate + 1] = _mask(masks, op.mask, n, outputs)[s].sum()
        for a in range(counts.size):
            for b in range(counts.size):
                moments[a, b] += counts[a] * counts[b]


@kernel
def descend(program, x, y, batches, how, noise, eta, lam, centre, w, gradient, space, moments):
    """Steps w <- w - eta (g(w) + lam (w - centre)), one for each row of `batches` (indices into x, y).

    x (samples, features), y (samples,), noise (steps, gates, n, widest gate); eta and lam in the dtype of
    w. `gradient` must be zero where nothing is trained. Returns the first step's loss and the norm of the
    local problem's gradient before the last step; `moments` grows by every step's open-channel counts.
    """
    steps, n = batches.shape
    first_loss, residual = 0.0, 0.0
    labels = np.empty(n, dtype=np.int64)
    counts = np.empty(moments.shape[0], dtype=np.int64)
    features = x.shape[1]
    for step in range(steps):
        for i in range(n):
            labels[i] = y[batches[step, i]]
            space.values[i * features : (i + 1) * features] = x[batches[step, i]]
        now = Decisions(how.tau, how.mode, noise[step])
        value = gradient_at(program, w, labels, now, space, gradient)
        if step == 0:
            first_loss = value
        if step == steps - 1:
            residual = vector.local_residual(w, gradient, centre, lam)
        vector.local_step(w, gradient, centre, eta, lam)
        _count_open(program, n, space.masks, counts, moments)
    return first_loss, residual
