"""A network's local solve, or its prediction, as one compiled call: a table of operations run by a loop.

The layers of `nn/` are the readable definition; here the same kernels are called in the same order from
compiled code, so that the interpreter costs nothing while a node solves its local problem, and threads do not
wait for each other. Results are bit-equal to the layers' (tested).

Source: mathematics.md §2 (forward, backward), §3 (the local iteration). Derived.
"""

from __future__ import annotations

import numpy as np

from refimpl.kernels import (
    activation,
    loss,
    norm,
    pool,
    runs,
    sparse,
    tiled_conv,
    tiled_linear,
    tiled_weight_grad,
    vector,
)
from refimpl.kernels import operation as code
from refimpl.kernels.jit import inlined, kernel, large_kernel, optimise_for_size
from refimpl.kernels.operation import (
    NOWHERE,
    Decisions,
    Workspace,
    bias_at,
    filters_at,
    images_at,
    maps_at,
    mask_at,
    matrix_at,
    pair_of,
    rows_at,
    vector_at,
)
from refimpl.kernels.panels import copy
from refimpl.kernels.program_gate import add_shaping, decide, decide_backward, product, product_backward
from refimpl.kernels.views import flat


@kernel
def _open(mask, n):
    """How many channels of sample n are open."""
    count = 0
    for c in range(mask.shape[1]):
        count += mask[n, c]
    return count


@large_kernel
def _forward(op, w, n, how, space):
    """One operation forward."""
    optimise_for_size()
    values, masks, floats, ints = space.values, space.masks, space.floats, space.ints
    reads, writes = mask_at(masks, op.reads, n, op.groups), mask_at(masks, op.writes, n, op.output[0])
    stride, pad = pair_of(op.stride), pair_of(op.pad)
    size = n * op.output[0] * op.output[1] * op.output[2]
    x, y = maps_at(values, op.x, n, op.input), maps_at(values, op.y, n, op.output)
    images, out = images_at(values, op.x, n, op.input), images_at(values, op.y, n, op.output)
    bias = bias_at(w, op, space.zeros)
    if op.kind == code.CONV and op.sparse:
        weights, tables = flat(filters_at(w, op)), space.kept[op.kept : op.kept_back]
        sparse.convolve(images, weights, bias, tables, floats, ints, out)
    elif op.kind == code.CONV:
        weight, dilation, forwards = filters_at(w, op), pair_of(op.dilation), np.bool_(False)
        tiled_conv.convolve(
            images, weight, bias, stride, pad, dilation, forwards, reads, writes, op.clears, floats, ints, out
        )
    elif op.kind == code.LINEAR:
        rows, out2 = rows_at(values, op.x, n, op.input[0]), rows_at(values, op.y, n, op.output[0])
        matrix = matrix_at(w, op)
        tiled_linear.forward(rows, matrix, bias, reads, writes, floats, ints, out2)
    elif op.kind == code.DECIDE:
        decide(op, n, how, space)
    elif op.kind == code.PRODUCT:
        product(op, n, space)
    elif op.kind == code.ADD:
        runs.add(0, size, values[op.x * n :], values[op.x2 * n :], op.below, values[op.y * n :])
    elif op.kind == code.RELU and op.writes == NOWHERE:  # one long loop
        activation.rectify(flat(x), flat(x), flat(y))
    elif op.kind == code.RELU:
        activation.relu_forward(x, writes, y)
    elif op.kind == code.LEAKY:
        activation.leaky_forward(x, op.number, writes, y)
    elif op.kind == code.BATCH_NORM:
        statistics = flat(rows_at(space.wide, op.wide, n, 2 * bias.size))
        mean, inverse_std = statistics[: bias.size], vector_at(statistics, bias.size, bias.size)
        gamma = vector_at(w, op.weight, bias.size)
        norm.batch_norm_forward(x, gamma, bias, op.number, op.below, mean, inverse_std, y)
    elif op.kind == code.GROUP_NORM:
        normalised, spreads = maps_at(values, op.own, n, op.input), rows_at(space.wide, op.wide, n, op.groups)
        gamma = vector_at(w, op.weight, bias.size)
        norm.group_norm_forward(x, gamma, bias, op.number, normalised, spreads, y)
    elif op.kind == code.FROZEN_NORM:
        gamma, mean = vector_at(w, op.weight, bias.size), vector_at(w, op.running_mean, bias.size)
        variance = vector_at(w, op.running_var, bias.size)
        norm.frozen_norm_forward(x, gamma, bias, mean, variance, op.number, writes, y)
    elif op.kind == code.SOFTPLUS:
        activation.softplus_forward(x, writes, y)
    elif op.kind == code.TANH:
        activation.tanh_forward(x, writes, y)
    elif op.kind == code.GLOBAL_POOL:
        activation.channel_means(x, writes, rows_at(values, op.y, n, op.output[0]))
    elif op.kind == code.MAX_POOL:
        at = images_at(space.where, op.own, n, op.output)
        pool.max_forward(images, pair_of(op.window), stride, pad, writes, out, at)
    elif op.kind == code.AVERAGE_POOL:
        pool.average_forward(images, pair_of(op.window), stride, pad, writes, out)
    if op.kind == code.CONV and op.below != 1.0:
        result = values[op.y * n :]
        runs.bend(0, size, result, result, op.below, result)


@large_kernel
def _backward(op, w, n, more, span, stepping, pull, space, gradient):
    """One operation backward: parameter gradients into `gradient` (added if `more`), dx to `space.slopes`.

    stepping: take the step of a weight that is marked for it, instead of writing its gradient.
    """
    optimise_for_size()
    values, slopes, masks = space.values, space.slopes, space.masks
    floats, ints = space.floats, space.ints
    reads, dy_mask = mask_at(masks, op.reads, n, op.groups), mask_at(masks, op.dy_mask, n, op.output[0])
    dx_mask = mask_at(masks, op.dx_mask, n, op.groups)
    need_dx, need_dw = op.dx != NOWHERE and span.values, op.need_dw and span.sums
    stride, pad = pair_of(op.stride), pair_of(op.pad)
    bias, dbias = bias_at(w, op, space.zeros), bias_at(gradient, op, space.unused)
    if op.kind == code.CONV:
        dout, dilation = images_at(slopes, op.dy, n, op.output), pair_of(op.dilation)
        images, dweight = images_at(values, op.x, n, op.input), filters_at(gradient, op)
        if need_dw and op.kept != NOWHERE:
            tables = space.kept[op.kept : op.kept_back]
            sparse.weight_grad(images, dout, more, tables, floats, ints, flat(dweight), dbias)
        elif need_dw:
            own = dbias[: dbias.size if op.bias >= 0 else 0]  # without a bias, none is summed
            tiled_weight_grad.weight_grad(
                images, dout, stride, pad, dilation, reads, dy_mask, more, floats, ints, dweight, own
            )
        if need_dx and op.sparse:
            weights, tables = flat(filters_at(w, op)), space.kept[op.kept_back : op.kept_end]
            dimages = images_at(slopes, op.dx, n, op.input)
            sparse.convolve(dout, weights, bias[:0], tables, floats, ints, dimages)
        elif need_dx:  # the bias is not used in this direction
            dimages, weight, yes = images_at(slopes, op.dx, n, op.input), filters_at(w, op), np.bool_(True)
            tiled_conv.convolve(
                dout, weight, bias, stride, pad, dilation, yes, dy_mask, dx_mask, yes, floats, ints, dimages
            )
    elif op.kind == code.LINEAR:
        rows, dout2 = rows_at(values, op.x, n, op.input[0]), rows_at(slopes, op.dy, n, op.output[0])
        matrix = matrix_at(w, op)
        if need_dx:
            drows = rows_at(slopes, op.dx, n, op.input[0])
            tiled_linear.input_grad(dout2, matrix, dy_mask, dx_mask, floats, ints, drows)
        if need_dw and stepping and op.steps:
            centre = matrix_at(pull.centre, op)
            tiled_linear.weight_step(rows, dout2, pull.eta, pull.lam, centre, ints, matrix, dbias)
        elif need_dw:
            dmatrix = matrix_at(gradient, op)
            tiled_linear.weight_grad(rows, dout2, reads, dy_mask, more, floats, ints, dmatrix, dbias)
    elif op.kind == code.DECIDE:
        if need_dx:
            decide_backward(op, n, space)
    elif op.kind == code.PRODUCT:
        if span.values:
            product_backward(op, n, space)
    elif op.kind == code.ADD:  # its gradients lie where dy is
        if op.learns and op.below != 1.0 and span.values:
            dy, size = slopes[op.dy * n :], n * op.output[0] * op.output[1] * op.output[2]
            runs.bend(0, size, dy, values[op.y * n :], op.below, dy)
    elif op.kind == code.BATCH_NORM or op.kind == code.GROUP_NORM or op.kind == code.FROZEN_NORM:
        if need_dw or (op.learns and span.values):
            _norm_backward(op, w, n, more, need_dw, space, gradient, dy_mask)
    elif need_dx:
        _elementwise_backward(op, n, space, dy_mask)


@inlined
def _norm_backward(op, w, n, more, need_dw, space, gradient, dy_mask):
    """Normalisation. Where that is by batch, the batch is a single part: nothing is added to earlier sums."""
    channels = op.output[0]
    dy, dx = maps_at(space.slopes, op.dy, n, op.output), maps_at(space.slopes, op.dx, n, op.input)
    gamma, dgamma = vector_at(w, op.weight, channels), vector_at(space.unused, 0, channels)
    dbias = vector_at(space.unused, channels, channels)
    if need_dw:
        dgamma, dbias = vector_at(gradient, op.weight, channels), vector_at(gradient, op.bias, channels)
    x, normalised = maps_at(space.values, op.x, n, op.input), maps_at(space.values, op.own, n, op.input)
    if op.kind == code.BATCH_NORM:
        statistics = flat(rows_at(space.wide, op.wide, n, 2 * channels))
        mean, inverse_std = statistics[:channels], vector_at(statistics, channels, channels)
        beta, below = vector_at(w, op.bias, channels), op.below
        norm.batch_norm_backward(dy, x, mean, inverse_std, gamma, beta, below, dgamma, dbias, dx)
    elif op.kind == code.GROUP_NORM:
        spreads = rows_at(space.wide, op.wide, n, op.groups)
        norm.group_norm_backward(dy, normalised, spreads, gamma, more, dgamma, dbias, dx)
    else:
        mean, variance = vector_at(w, op.running_mean, channels), vector_at(w, op.running_var, channels)
        norm.frozen_norm_backward(dy, x, gamma, mean, variance, op.number, dy_mask, more, dgamma, dbias, dx)


@inlined
def _elementwise_backward(op, n, space, dy_mask):
    """Activations, pooling, and the gradient of a second reader."""
    values, slopes = space.values, space.slopes
    dy, dx = maps_at(slopes, op.dy, n, op.output), maps_at(slopes, op.dx, n, op.input)
    dout, dimages = images_at(slopes, op.dy, n, op.output), images_at(slopes, op.dx, n, op.input)
    x, size = maps_at(values, op.x, n, op.input), n * dx.shape[1] * dx.shape[2]
    window, stride, pad = pair_of(op.window), pair_of(op.stride), pair_of(op.pad)
    if op.kind == code.FORK:
        runs.add(0, size, slopes[op.dx * n :], slopes[op.dy * n :], 1.0, slopes[op.dx * n :])
    elif op.kind == code.RELU and op.dy_mask == NOWHERE:
        activation.rectify(flat(dy), flat(x), flat(dx))
    elif op.kind == code.RELU:
        activation.relu_backward(dy, x, dy_mask, dx)
    elif op.kind == code.LEAKY:
        activation.leaky_backward(dy, x, op.number, dy_mask, dx)
    elif op.kind == code.SOFTPLUS:
        activation.softplus_backward(dy, x, dy_mask, dx)
    elif op.kind == code.TANH:
        activation.tanh_backward(dy, maps_at(values, op.y, n, op.output), dy_mask, dx)
    elif op.kind == code.GLOBAL_POOL:
        activation.share_out(rows_at(slopes, op.dy, n, op.output[0]), dy_mask, dx)
    elif op.kind == code.MAX_POOL:
        at = images_at(space.where, op.own, n, op.output)
        pool.max_backward(dout, at, window, stride, pad, dy_mask, dimages)
    elif op.kind == code.AVERAGE_POOL:
        pool.average_backward(dout, window, stride, pad, dy_mask, dimages)


@inlined
def _add_gradient(program, w, samples, total, more, known, span, stepping, pull, how, space, gradient):
    """total + the losses at w of the samples at the start of `space.values`, a part of a batch of `count`.

    samples = (labels, soft, chosen, count): what teachers say about which samples (`loss.add_losses`).
    The results of the first `known` operations are there already, but for those of gates. Writes the trained
    part of the gradient, or adds to it if `more`; its other entries are left alone.
    """
    labels, soft, chosen, count = samples
    n, last = labels.size, program[-1]
    for i in range(program.shape[0]):
        op = program[i]
        if span.values and op.kind != code.NOTHING and (i >= known or op.gate != NOWHERE):
            _forward(op, w, n, how, space)
    logits = rows_at(space.values, last.y, n, last.output[0])
    dlogits = rows_at(space.slopes, last.dy, n, last.output[0])
    total = loss.add_losses(total, logits, labels, soft, chosen, count, dlogits)
    total = add_shaping(total, program, n, space)
    for i in range(program.shape[0] - 1, -1, -1):
        if program[i].kind != code.NOTHING:
            _backward(program[i], w, n, more, span, stepping, pull, space, gradient)
    for at in space.pruned:
        gradient[at] = 0
    return total


@kernel
def predict(program, x, w, how, batch, space, logits, opened):
    """logits (N, classes) of the samples x (N, features), `batch` of them at a time; no gradients.

    opened (N, gates): how many channels each gate left open. how.noise is not read.
    """
    optimise_for_size()
    for first in range(0, x.shape[0], batch):
        n = min(batch, x.shape[0] - first)
        copy(flat(x[first : first + n]), space.values[: n * x.shape[1]])
        for i in range(program.shape[0]):
            op = program[i]
            _forward(op, w, n, how, space)
            if op.kind == code.DECIDE:
                mask = mask_at(space.masks, op.mask, n, op.output[0])
                for s in range(n):
                    opened[first + s, op.gate] = _open(mask, s)
        result = rows_at(space.values, program[-1].y, n, logits.shape[1])
        copy(flat(result), flat(logits[first : first + n]))


@inlined
def _count_open(program, n, masks, counts, moments):
    """Add the sums over samples of products of open-channel counts (see `nn/work.py`)."""
    for s in range(n):
        counts[0] = 1
        for i in range(program.shape[0]):
            op = program[i]
            if op.kind == code.DECIDE:
                outputs = op.output[0]
                counts[op.gate + 1] = _open(mask_at(masks, op.mask, n, outputs), s)
        for a in range(counts.size):
            for b in range(counts.size):
                moments[a, b] += counts[a] * counts[b]


@kernel
def _gather(x, first, chosen, samples):
    """Copy the chosen rows of x, which are counted from the `first` on, one after the other."""
    for i in range(chosen.size):
        copy(x[first + chosen[i]], samples[i * x.shape[1] : (i + 1) * x.shape[1]])


@inlined
def _from_sample(space, first, kept):
    """The workspace of the part that begins at sample `first`, where all samples have their own."""
    return Workspace(
        space.values[kept.values * first :],
        space.slopes,
        space.masks[kept.masks * first :],
        space.where[kept.where * first :],
        space.floats,
        space.ints,
        space.wide,
        space.zeros,
        space.unused,
        space.kept,
        space.pruned,
    )


@inlined
def _stepped(program):
    """Where the weight lies that is marked to be stepped row by row: first entry, one past the last."""
    for i in range(program.shape[0]):
        op = program[i]
        if op.steps:
            return op.weight, op.weight + op.output[0] * op.input[0]
    return np.int64(0), np.int64(0)


@inlined
def _step(w, gradient, pull, start, stop):
    """The local step of all parameters but those from `start` to `stop`, which have taken theirs."""
    for part in (slice(0, start), slice(stop, w.size)):
        vector.local_step(w[part], gradient[part], pull.centre[part], pull.eta, pull.lam)


@inlined
def _descend(program, x, y, at, soft, batches, span, kept, how, noise, pull, w, gradient, space, moments):
    """One descent from w: the first step's loss, and the norm of the gradient before the last step.

    at: where the node's samples and labels begin in x and y.
    """
    steps, n = batches.shape
    last = min(span.stop, n)
    first_loss, residual, value = 0.0, 0.0, 0.0
    labels = np.empty(n, dtype=np.int64)
    counts = np.empty(moments.shape[0], dtype=np.int64)
    start, stop = _stepped(program)
    for step in range(steps):
        value, known = span.loss, kept.first if step == 0 else kept.later
        stepping = stop > 0 and span.part >= n and step < steps - 1  # the last gradient is needed whole
        for first in range(span.first, last, span.part):
            chosen = slice(first, min(first + span.part, last))
            ours, picked, more = labels[chosen], batches[step, chosen], first > 0
            own = _from_sample(space, first, kept)
            for i in range(ours.size):
                ours[i] = y[at[1] + picked[i]]
            if span.values:
                _gather(x, at[0], picked, own.values)
            now = Decisions(how.tau, how.mode, noise[step, chosen], how.shaping)
            samples = ours, soft, picked, n
            value = _add_gradient(
                program, w, samples, value, more, known, span, stepping, pull, now, own, gradient
            )
            if span.sums:
                _count_open(program, ours.size, own.masks, counts, moments)
        if not (span.values and span.sums):
            return value, residual
        if step == 0:
            first_loss = value / n
        if step == steps - 1:
            residual = vector.local_residual(w, gradient, pull.centre, pull.lam)
        _step(w, gradient, pull, start if stepping else 0, stop if stepping else 0)
    return first_loss, residual


@kernel
def descend(program, x, y, soft, batches, nodes, span, kept, how, noise, pull, w, gradient, space, moments):
    """Steps w <- w - eta (g(w) + lam (w - centre)) from the centre, for each node; each has a row of w.

    x (samples, features), y (samples,): those of all nodes; soft: what teachers say about those of a single
    node; batches: indices into a node's samples, of all steps of the first node, then of the next; nodes
    (nodes, 3): how many samples each step has, and where the node's samples and labels begin in x and y;
    noise (nodes, steps, n, gates, widest gate). A few samples are treated at a time (`span`), so that their
    activations stay in the cache; sums go on from part to part, and `kept` says what outlives a part. Rows of
    w may be longer than the centre. `gradient` must be zero where nothing is trained.

    Returns (nodes, 2): the first step's loss, and the norm of the local problem's gradient before the last
    step. `moments` (nodes, ...) grow by the open-channel counts. A span that is not the whole batch is
    evaluated at w as it is: no step is taken, and the loss is the sum of losses up to the end of the span.
    """
    optimise_for_size()
    steps, found, start = noise.shape[1], np.empty((nodes.shape[0], 2)), 0
    for i in range(nodes.shape[0]):
        size, at = nodes[i, 0], (nodes[i, 1], nodes[i, 2])
        stop = start + steps * size
        picked, own = batches[start:stop].reshape(steps, size), w[i, : pull.centre.size]
        start = stop
        if span.values and span.sums:
            copy(pull.centre, own)
        found[i, 0], found[i, 1] = _descend(
            program, x, y, at, soft, picked, span, kept, how, noise[i], pull, own, gradient, space, moments[i]
        )
    return found
