"""An independent reference: networks with multiply-by-mask gates, differentiated by a tiny tape.

Nothing here is shared with the package but the layer specs (sizes). Convolution is an einsum over
windows, gates multiply, nothing is skipped, and the backward pass is reverse-mode automatic
differentiation. Slow and short on purpose.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from refimpl.nn.chain import Residual
from refimpl.nn.context import Context
from refimpl.nn.gate import ChannelGate, Gated
from refimpl.nn.layers import BatchNorm2d, Conv2d, Linear
from refimpl.nn.network import Network
from refimpl.nn.pointwise import ReLU, Softplus, Tanh
from refimpl.nn.pooling import AvgPool2d, Flatten, GlobalAvgPool2d, MaxPool2d


class Var:
    """A value and how to send a cotangent on to the values it was computed from."""

    def __init__(self, value, *parents: tuple[Var, Callable]):
        self.value = np.asarray(value, dtype=np.float64)
        self.parents = parents
        self.grad = np.zeros_like(self.value)


def backward(loss: Var) -> None:
    order, seen = [], set()

    def visit(node):
        if id(node) not in seen:
            seen.add(id(node))
            for parent, _ in node.parents:
                visit(parent)
            order.append(node)

    visit(loss)
    loss.grad = np.ones_like(loss.value)
    for node in reversed(order):
        for parent, vjp in node.parents:
            parent.grad = parent.grad + vjp(node.grad)


def unbroadcast(grad, shape):
    grad = grad.sum(axis=tuple(range(grad.ndim - len(shape))))
    axes = tuple(i for i, size in enumerate(shape) if size == 1 and grad.shape[i] != 1)
    return grad.sum(axis=axes, keepdims=True) if axes else grad


def add(a, b):
    return Var(
        a.value + b.value,
        (a, lambda g: unbroadcast(g, a.value.shape)),
        (b, lambda g: unbroadcast(g, b.value.shape)),
    )


def mul(a, b):
    return Var(
        a.value * b.value,
        (a, lambda g: unbroadcast(g * b.value, a.value.shape)),
        (b, lambda g: unbroadcast(g * a.value, b.value.shape)),
    )


def reshape(x, *shape):
    return Var(x.value.reshape(shape), (x, lambda g: g.reshape(x.value.shape)))


def columns(x, start):
    """Every second column from `start`."""

    def vjp(g):
        out = np.zeros_like(x.value)
        out[:, start::2] = g
        return out

    return Var(x.value[:, start::2], (x, vjp))


def elementwise(x, value, slope):
    return Var(value, (x, lambda g: g * slope))


def relu(x):
    return elementwise(x, np.maximum(x.value, 0), x.value > 0)


def tanh(x):
    return elementwise(x, np.tanh(x.value), 1 - np.tanh(x.value) ** 2)


def sigmoid(x, tau=1.0):
    s = 1 / (1 + np.exp(-x.value / tau))
    return elementwise(x, s, s * (1 - s) / tau)


def softplus(x):
    return elementwise(x, np.logaddexp(0, x.value), 1 / (1 + np.exp(-x.value)))


def linear(x, weight, bias):
    return add(
        Var(
            x.value @ weight.value.T,
            (x, lambda g: g @ weight.value),
            (weight, lambda g: g.T @ x.value),
        ),
        bias,
    )


def windows(x, size, step):
    """(N,C,P,Q,kh,kw) windows of x and the transposed map."""
    view = sliding_window_view(x, size, axis=(2, 3))[:, :, :: step[0], :: step[1]]

    def scatter(g):
        out = np.zeros_like(x)
        rows, cols = g.shape[2:4]
        for i in range(size[0]):
            for j in range(size[1]):
                stop = i + step[0] * (rows - 1) + 1, j + step[1] * (cols - 1) + 1
                out[:, :, i : stop[0] : step[0], j : stop[1] : step[1]] += g[..., i, j]
        return out

    return view, scatter


def spread(weight, dilation, groups):
    """The weights of the same convolution without dilation and groups, and the map back."""
    filters, channels, *taps = weight.shape
    own = np.arange(filters)[:, None] // (filters // groups) * channels + np.arange(channels)
    wide = [(k - 1) * d + 1 for k, d in zip(taps, dilation, strict=True)]
    at = (np.arange(filters)[:, None], own, slice(None, None, dilation[0]), slice(None, None, dilation[1]))
    full = np.zeros((filters, groups * channels, *wide))
    full[at] = weight
    return full, lambda g: g[at]


def convolution(x, weight, bias, layer):
    full, gather = spread(weight.value, layer.spacing, layer.groups)
    view, scatter = padded_windows(x.value, full.shape[2:], layer.step, layer.pad)
    y = Var(
        np.einsum("ncpqij,kcij->nkpq", view, full),
        (x, lambda g: scatter(np.einsum("nkpq,kcij->ncpqij", g, full))),
        (weight, lambda g: gather(np.einsum("ncpqij,nkpq->kcij", view, g))),
    )
    return y if bias is None else add(y, reshape(bias, 1, -1, 1, 1))


def padded_windows(x, size, step, pad, fill=0.0):
    """`windows` of x with `fill` around it; the map gives back what belongs to x itself."""
    edges = ((0, 0), (0, 0), *((p, p) for p in pad))
    view, scatter = windows(np.pad(x, edges, constant_values=fill), size, step)
    height, width = x.shape[2:]
    return view, lambda g: scatter(g)[:, :, pad[0] : pad[0] + height, pad[1] : pad[1] + width]


def max_pool(x, size, step, pad):
    view, scatter = padded_windows(x.value, size, step, pad, -np.inf)
    flat = view.reshape(*view.shape[:4], -1)
    winner = np.arange(flat.shape[-1]) == flat.argmax(-1)[..., None]  # argmax: the first one wins a tie

    def vjp(g):
        return scatter((g[..., None] * winner).reshape(view.shape))

    return Var(flat.max(-1), (x, vjp))


def average_pool(x, size, step, pad):
    view, scatter = padded_windows(x.value, size, step, pad)

    def vjp(g):
        return scatter(np.broadcast_to(g[..., None, None], view.shape) / (size[0] * size[1]))

    return Var(view.mean((-1, -2)), (x, vjp))


def channel_mean(x):
    pixels = x.value.shape[2] * x.value.shape[3]
    return Var(
        x.value.mean((2, 3)),
        (x, lambda g: np.broadcast_to(g[:, :, None, None], x.value.shape) / pixels),
    )


def batch_norm(x, weight, bias, eps):
    """Composed of sums and products, so that the tape finds the derivative by itself."""
    shape = x.value.shape
    count = shape[0] * shape[2] * shape[3]

    def mean(v):
        return Var(v.value.mean((0, 2, 3), keepdims=True), (v, lambda g: np.broadcast_to(g, shape) / count))

    centred = add(x, mul(mean(x), Var(-1.0)))
    variance = mean(mul(centred, centred))
    inverse = (variance.value + eps) ** -0.5
    scale = elementwise(variance, inverse, -0.5 * inverse**3)
    normalised = mul(centred, scale)
    return add(mul(normalised, reshape(weight, 1, -1, 1, 1)), reshape(bias, 1, -1, 1, 1))


def cross_entropy(logits, labels):
    z = logits.value - logits.value.max(1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    rows = np.arange(len(labels))

    def vjp(g):
        onehot = np.zeros_like(z)
        onehot[rows, labels] = 1
        return g * (np.exp(log_p) - onehot) / len(labels)

    return Var(-log_p[rows, labels].mean(), (logits, vjp))


def straight_through(value, relaxed, gain):
    """`value` forward, gain * d(relaxed) backward."""
    return Var(value, (relaxed, lambda g: g * gain))


def stop(x):
    return Var(x.value)


def gate_mask(gate: ChannelGate, params, x, context: Context) -> Var:
    """The mask of mathematics.md §2.2-2.3b as a variable."""
    gating = context.gating
    source = stop(x) if gating.detach_gate_input else x
    summary = channel_mean(source) if x.value.ndim == 4 else source
    hidden = relu(linear(summary, params[f"{gate.name}.fc1.weight"], params[f"{gate.name}.fc1.bias"]))
    logits = linear(hidden, params[f"{gate.name}.fc2.weight"], params[f"{gate.name}.fc2.bias"])
    margin = add(columns(logits, 1), mul(columns(logits, 0), Var(-1.0)))
    if gating.mode == "gumbel":
        margin = add(margin, Var(context.noise[gate.name]))
    if gating.mode == "soft":
        return sigmoid(margin, gating.tau)
    hard = (margin.value > 0).astype(float)
    gain = np.zeros_like(hard)
    if "phi" in context.train:
        gain = hard if gating.gate_grad == "active" else np.ones_like(hard)
    relaxed = margin if gating.mode == "ste" else sigmoid(margin, gating.tau)
    return straight_through(hard, relaxed, gain)


def run(layers, params, x, context):
    """A chain of layer specs on the tape."""
    for layer in layers:
        x = run_layer(layer, params, x, context)
    return x


def run_layer(layer, params, x, context):
    match layer:
        case Gated():
            mask = gate_mask(layer.gate, params, x, context)
            z = run(layer.body, params, x, context)
            ones = (1,) * (z.value.ndim - 2)
            return mul(z, reshape(mask, *mask.value.shape, *ones))
        case Residual():
            return add(run(layer.body, params, x, context), run(layer.shortcut, params, x, context))
        case Conv2d():
            bias = params[f"{layer.name}.bias"] if layer.bias else None
            return convolution(x, params[f"{layer.name}.weight"], bias, layer)
        case Linear():
            return linear(x, params[f"{layer.name}.weight"], params[f"{layer.name}.bias"])
        case BatchNorm2d():
            return batch_norm(x, params[f"{layer.name}.weight"], params[f"{layer.name}.bias"], layer.eps)
        case ReLU():
            return relu(x)
        case Tanh():
            return tanh(x)
        case Softplus():
            return softplus(x)
        case MaxPool2d():
            return max_pool(x, layer.window, layer.step, layer.pad)
        case AvgPool2d():
            return average_pool(x, layer.window, layer.step, layer.pad)
        case GlobalAvgPool2d():
            return channel_mean(x)
        case Flatten():
            return reshape(x, x.value.shape[0], -1)
    raise TypeError(f"no rule for {layer}")


def loss_and_gradient(network: Network, w, x, y, context: Context) -> tuple[float, np.ndarray]:
    """Mean cross-entropy and its gradient w.r.t. all of w, as a multiply-by-mask implementation has them."""
    params = {name: Var(value) for name, value in network.layout.to_arrays(np.float64(w)).items()}
    loss = cross_entropy(run(network.layers, params, Var(x), context), y)
    backward(loss)
    gradient = np.concatenate([params[slot.name].grad.ravel() for slot in network.layout.slots])
    return float(loss.value), gradient
