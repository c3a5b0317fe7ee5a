"""Layers: each gives its output and a function from dy to (dx, gradients of its parameters)."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from refimpl.crosscheck.template.head import Arrays, computes

Back = Callable[[Any], tuple[Any, Arrays]]


def pointwise(value: Callable[..., Any], slope: Callable[..., Any]) -> Callable[..., tuple[Any, Back]]:
    """A layer that acts on each entry; `slope` is its derivative."""

    def layer(entry: Arrays, x: Any, p: Arrays) -> tuple[Any, Back]:
        return value(entry, x), lambda dy: (dy * slope(entry, x), {})

    return layer


def linear(entry: Arrays, x: Any, p: Arrays) -> tuple[Any, Back]:
    """Y = x weight^T + bias."""

    def back(dy: Any) -> tuple[Any, Arrays]:
        return dy @ p["weight"], {"weight": dy.T @ x, "bias": dy.sum(0)}

    return x @ p["weight"].T + p.get("bias", 0), back


def flatten(entry: Arrays, x: Any, p: Arrays) -> tuple[Any, Back]:
    """(N, C, H, W) -> (N, C H W)."""
    return x.reshape(len(x), -1), lambda dy: (dy.reshape(x.shape), {})


def global_avg_pool2d(entry: Arrays, x: Any, p: Arrays) -> tuple[Any, Back]:
    """The mean of every channel."""
    pixels = x.shape[2] * x.shape[3]
    return x.mean((2, 3)), lambda dy: (np.broadcast_to(dy[:, :, None, None] / pixels, x.shape), {})


def padded(entry: Arrays, x: Any, fill: float = 0.0) -> Any:
    """X with the layer's padding."""
    (top, left) = entry.get("padding", (0, 0))
    return np.pad(x, ((0, 0), (0, 0), (top, top), (left, left)), constant_values=fill)


def taps(entry: Arrays, kernel: Any, shape: tuple[int, ...]) -> Iterator[tuple[int, int, Any]]:
    """For every place of the kernel, row by row: where it lies in a padded image, for all windows at once."""
    (down, right), (tall, wide) = entry["stride"], entry.get("dilation", (1, 1))
    rows = (shape[-2] - 1 - (kernel[0] - 1) * tall) // down + 1
    columns = (shape[-1] - 1 - (kernel[1] - 1) * wide) // right + 1
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            top, left = i * tall, j * wide
            yield i, j, np.s_[..., top : top + rows * down : down, left : left + columns * right : right]


def unpadded(entry: Arrays, whole: Any, like: Any) -> Any:
    """The part of a padded image that is not padding."""
    (top, left) = entry.get("padding", (0, 0))
    return whole[:, :, top : top + like.shape[2], left : left + like.shape[3]]


def conv2d(entry: Arrays, x: Any, p: Arrays) -> tuple[Any, Back]:
    """A correlation with weight (K, C/groups, kh, kw); a group's outputs see its own inputs only."""
    groups, weight = entry.get("groups", 1), p["weight"]
    w = weight.reshape(groups, -1, *weight.shape[1:])
    wide = padded(entry, x)
    split = wide.reshape(len(x), groups, -1, *wide.shape[2:])
    where = list(taps(entry, weight.shape[2:], wide.shape))
    y: Any = sum(np.einsum("ngchw,gkc->ngkhw", split[at], w[..., i, j]) for i, j, at in where)

    def back(dy: Any) -> tuple[Any, Arrays]:
        d, dw, dx = dy.reshape(y.shape), np.zeros_like(w), np.zeros_like(split)
        for i, j, at in where:
            dw[..., i, j] = np.einsum("ngkhw,ngchw->gkc", d, split[at])
            dx[at] += np.einsum("ngkhw,gkc->ngchw", d, w[..., i, j])
        gradients = {"weight": dw.reshape(weight.shape), "bias": dy.sum((0, 2, 3))}
        return unpadded(entry, dx.reshape(wide.shape), x), gradients

    bias = np.reshape(p.get("bias", np.zeros(len(weight), x.dtype)), (-1, 1, 1))
    return y.reshape(len(x), -1, *y.shape[3:]) + bias, back


def max_pool2d(entry: Arrays, x: Any, p: Arrays) -> tuple[Any, Back]:
    """The maximum of every window; of equal ones the first gets the gradient."""
    wide = padded(entry, x, -np.inf)
    where = [at for _, _, at in taps(entry, entry["kernel"], wide.shape)]
    values = np.stack([wide[at] for at in where])
    winner = values.argmax(0)

    def back(dy: Any) -> tuple[Any, Arrays]:
        dx = np.zeros_like(wide)
        for number, at in enumerate(where):
            dx[at] += dy * (winner == number)
        return unpadded(entry, dx, x), {}

    return values.max(0), back


def avg_pool2d(entry: Arrays, x: Any, p: Arrays) -> tuple[Any, Back]:
    """The mean of every window, padding included."""
    wide = padded(entry, x)
    where = [at for _, _, at in taps(entry, entry["kernel"], wide.shape)]

    def back(dy: Any) -> tuple[Any, Arrays]:
        dx = np.zeros_like(wide)
        for at in where:
            dx[at] += dy / len(where)
        return unpadded(entry, dx, x), {}

    return sum(wide[at] for at in where) / len(where), back


def normalised(x: Any, eps: float) -> tuple[Any, Back]:
    """X (groups, entries) with mean 0 and, but for eps, variance 1 in every group."""
    centred = x - x.mean(1, keepdims=True)
    root = np.sqrt(np.square(centred).mean(1, keepdims=True) + eps)
    z = centred / root

    def back(dz: Any) -> tuple[Any, Arrays]:
        return (dz - dz.mean(1, keepdims=True) - z * (dz * z).mean(1, keepdims=True)) / root, {}

    return z, back


def norm(entry: Arrays, x: Any, p: Arrays) -> tuple[Any, Back]:
    """Batch, frozen and group normalisation: weight z + bias, z being the normalised x."""
    channels, kind = (slice(None), None, None), entry["type"]
    if kind == "frozen_norm2d":
        root = np.sqrt(p["running_var"] + entry["eps"])[channels]
        z, inner = (x - p["running_mean"][channels]) / root, None
    else:
        axes = (1, 0, 2, 3) if kind == "batch_norm2d" else (0, 1, 2, 3)
        moved = x.transpose(axes)
        count = x.shape[1] if kind == "batch_norm2d" else len(x) * entry["groups"]
        flat, inner = normalised(moved.reshape(count, -1), entry["eps"])
        z = flat.reshape(moved.shape).transpose(axes)

    def back(dy: Any) -> tuple[Any, Arrays]:
        dz = dy * p["weight"][channels]
        gradients = {"weight": (dy * z).sum((0, 2, 3)), "bias": dy.sum((0, 2, 3))}
        if inner is None:
            return dz / root, gradients
        flat = inner(dz.transpose(axes).reshape(count, -1))[0]
        return flat.reshape(moved.shape).transpose(axes), gradients

    return z * p["weight"][channels] + p["bias"][channels], back


def sigmoid(t: Any) -> Any:
    """1 / (1 + exp(-t)), without overflow."""
    return np.exp(-np.logaddexp(0, -t))


LAYERS: dict[str, Callable[..., tuple[Any, Back]]] = {
    "conv2d": conv2d,
    "linear": linear,
    "max_pool2d": max_pool2d,
    "avg_pool2d": avg_pool2d,
    "global_avg_pool2d": global_avg_pool2d,
    "flatten": flatten,
    "relu": pointwise(lambda entry, x: np.maximum(x, 0), lambda entry, x: x > 0),
    "leaky_relu": pointwise(
        lambda entry, x: np.where(x > 0, x, entry["slope"] * x),
        lambda entry, x: np.where(x > 0, 1.0, entry["slope"]),
    ),
    "softplus": pointwise(lambda entry, x: np.logaddexp(x, 0), lambda entry, x: sigmoid(x)),
    "tanh": pointwise(lambda entry, x: np.tanh(x), lambda entry, x: 1 - np.tanh(x) ** 2),
    **dict.fromkeys(("batch_norm2d", "frozen_norm2d", "group_norm"), norm),
}


@computes(*LAYERS)
def one_layer(given: Arrays, settings: Arrays) -> Arrays:
    """A layer by itself: y and its gradients; a mask closes channels of y."""
    entry = {**settings, "type": settings["kind"]}
    y, back = LAYERS[settings["kind"]](entry, given["x"], given)
    mask = given.get("mask", np.ones(y.shape[:2], bool)).reshape(*y.shape[:2], *(1 for _ in y.shape[2:]))
    dx, gradients = back(given["dy"] * mask)
    return {"y": y * mask, "grad.x": dx} | {f"grad.{name}": value for name, value in gradients.items()}


def cross_entropy(logits: Any, labels: Any) -> tuple[Any, Any]:
    """The mean loss over the batch and its gradient in the logits."""
    shifted = logits - logits.max(1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    rows = np.arange(len(labels))
    gradient = np.exp(logs)
    gradient[rows, labels] -= 1
    return -logs[rows, labels].mean(), gradient / len(labels)


@computes("cross_entropy")
def only_loss(given: Arrays, settings: Arrays) -> Arrays:
    """The loss by itself."""
    loss, gradient = cross_entropy(given["logits"], given["labels"])
    return {"loss": loss, "grad.logits": gradient}
