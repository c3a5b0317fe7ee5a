"""Layers that have no second, readable kernel, compared with their formulas in NumPy and float64.

The formulas do not use the kernels they judge. Closed channels are zero and pass no gradient back.
Source: mathematics.md §2.1 (pools, activations), §2.4 (loss), §5 (proximal operators); Ioffe & Szegedy 2015
(batch normalisation). Derived: the backward passes.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from refimpl.contracts import Penalty
from refimpl.kernels.loss import softmax_cross_entropy
from refimpl.nn.layers import Back, BatchNorm2d, Flow, Layer
from refimpl.nn.pointwise import ReLU, Softplus, Tanh
from refimpl.nn.pooling import AvgPool2d, GlobalAvgPool2d, MaxPool2d
from refimpl.optim import prox

Arrays = dict[str, np.ndarray]
Passes = tuple[np.ndarray, np.ndarray]  # y and dx
SHAPE = (4, 5, 9, 19)  # of sizes that no vector divides
GROUP_SIZES = (3, 17, 1, 40)


class Comparison(NamedTuple):
    """A layer's results, those of its formula, and the number of terms of the longest sum in any of them."""

    name: str
    got: Arrays
    wanted: Arrays
    terms: int


def comparisons(dtype: str) -> Iterator[Comparison]:
    """Every layer that has a formula, on normal data of `dtype` with a third of the channels closed."""
    rng = np.random.default_rng(0)
    x, mask = rng.standard_normal(SHAPE).astype(dtype), rng.random(SHAPE[:2]) > 1 / 3
    formulas: tuple[tuple[str, Layer, Callable[[np.ndarray, np.ndarray], Passes]], ...] = (
        ("max pooling", MaxPool2d(2), lambda x, dy: max_pool(x, dy, 2, 2)),
        ("max pooling", MaxPool2d(3, 2), lambda x, dy: max_pool(x, dy, 3, 2)),
        ("max pooling", MaxPool2d(3, 2, 1), lambda x, dy: max_pool(x, dy, 3, 2, 1)),
        ("average pooling", AvgPool2d(2), lambda x, dy: average_pool(x, dy, 2, 2)),
        ("average pooling", AvgPool2d(3, 2), lambda x, dy: average_pool(x, dy, 3, 2)),
        ("average pooling", AvgPool2d(3, 2, 1), lambda x, dy: average_pool(x, dy, 3, 2, 1)),
        ("global pooling", GlobalAvgPool2d(), global_pool),
        ("relu", ReLU(), lambda x, dy: (np.maximum(x, 0), dy * (x > 0))),
        ("softplus", Softplus(), lambda x, dy: (np.logaddexp(x, 0), dy / (1 + np.exp(-x)))),
        ("tanh", Tanh(), lambda x, dy: (np.tanh(x), dy / np.cosh(x) ** 2)),
    )
    for name, layer, formula in formulas:
        y, _, cache = layer.forward({}, x, Flow(reads=mask, writes=mask))
        dy = rng.standard_normal(y.shape).astype(dtype)
        dx = layer.backward(dy, cache, {}, {}, Back(dy_mask=mask))
        assert dx is not None
        right = zip(("y", "dx"), formula(x.astype(float), dy.astype(float)), strict=True)
        wanted = {one: array * mask.reshape(mask.shape + (1,) * (array.ndim - 2)) for one, array in right}
        yield Comparison(name, {"y": y, "dx": dx}, wanted, x[0, 0].size)
    yield batch_norm(x, rng)
    yield cross_entropy(dtype, rng)
    yield from proximal(dtype, rng)


def _windows(x: np.ndarray, size: int, stride: int, pad: int, fill: float) -> np.ndarray:
    """x (N,C,H,W) -> (N,C,P,Q,size*size), with `fill` on the padding."""
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]
    return view.reshape(*view.shape[:4], -1)


def _send_back(
    x: np.ndarray, dy: np.ndarray, shares: np.ndarray, size: int, stride: int, pad: int
) -> np.ndarray:
    """dx, shaped like x: every dy is spread over the pixels of its window by `shares` (N,C,P,Q,size*size)."""
    (height, width), (rows, cols) = x.shape[2:], dy.shape[2:]
    dx = np.zeros((*x.shape[:2], height + 2 * pad, width + 2 * pad))
    for at in range(size * size):
        i, j = divmod(at, size)
        dx[:, :, i : i + stride * rows : stride, j : j + stride * cols : stride] += dy * shares[..., at]
    return dx[:, :, pad : pad + height, pad : pad + width]


def max_pool(x: np.ndarray, dy: np.ndarray, size: int, stride: int, pad: int = 0) -> Passes:
    """The largest value of each window; dy goes to the first pixel that has it."""
    windows = _windows(x, size, stride, pad, -np.inf)
    first = np.arange(size * size) == windows.argmax(axis=-1)[..., None]
    return windows.max(axis=-1), _send_back(x, dy, first, size, stride, pad)


def average_pool(x: np.ndarray, dy: np.ndarray, size: int, stride: int, pad: int = 0) -> Passes:
    """The mean of each window, zeros of the padding included; dy is spread in equal shares."""
    windows = _windows(x, size, stride, pad, 0.0)
    shares = np.full(windows.shape, 1 / size**2)
    return windows.mean(axis=-1), _send_back(x, dy, shares, size, stride, pad)


def global_pool(x: np.ndarray, dy: np.ndarray) -> Passes:
    """The mean of each channel; dy is spread in equal shares."""
    shares = np.ones_like(x) / (x.shape[2] * x.shape[3])
    return (x * shares).sum(axis=(2, 3)), dy[:, :, None, None] * shares


def batch_norm(x: np.ndarray, rng: np.random.Generator) -> Comparison:
    """Normalisation by the statistics of the batch, and the gradients of scale, shift and input."""
    layer, dtype = BatchNorm2d("norm", x.shape[1]), x.dtype
    weight, bias = rng.standard_normal((2, x.shape[1])).astype(dtype)
    dy = rng.standard_normal(x.shape).astype(dtype)
    params = {"norm.weight": weight, "norm.bias": bias}
    grads = {name: np.empty_like(array) for name, array in params.items()}
    y, _, cache = layer.forward(params, x, Flow())
    dx = layer.backward(dy, cache, params, grads, Back())
    assert dx is not None

    axes, wide, dwide = (0, 2, 3), x.astype(float), dy.astype(float)
    std = np.sqrt(wide.var(axes, keepdims=True) + layer.eps)
    normal = (wide - wide.mean(axes, keepdims=True)) / std
    scale = weight.astype(float)[:, None, None]
    slope = (dwide * normal).mean(axes, keepdims=True)
    wanted = {
        "y": scale * normal + bias[:, None, None],
        "dx": scale / std * (dwide - dwide.mean(axes, keepdims=True) - normal * slope),
        "dw": (dwide * normal).sum(axes),
        "db": dwide.sum(axes),
    }
    got = {"y": y, "dx": dx, "dw": grads["norm.weight"], "db": grads["norm.bias"]}
    return Comparison("batch normalisation", got, wanted, x.size // x.shape[1])


def cross_entropy(dtype: str, rng: np.random.Generator) -> Comparison:
    """Mean of -log softmax at the labels, and its gradient."""
    logits, labels = 5 * rng.standard_normal((7, 10)).astype(dtype), rng.integers(0, 10, 7)
    dlogits = np.empty_like(logits)
    loss = softmax_cross_entropy(logits, labels, dlogits)
    wide = logits.astype(float)
    log_softmax = wide - np.logaddexp.reduce(wide, axis=1, keepdims=True)
    hit = np.arange(10) == labels[:, None]
    wanted = {"loss": -log_softmax[hit].mean(), "dlogits": (np.exp(log_softmax) - hit) / len(labels)}
    return Comparison("cross-entropy", {"loss": np.array(loss), "dlogits": dlogits}, wanted, logits.shape[1])


def proximal(dtype: str, rng: np.random.Generator) -> Iterator[Comparison]:
    """Soft thresholds by entry and by group; some entries and groups become zero, others do not."""
    v, step, rho = rng.standard_normal(sum(GROUP_SIZES)).astype(dtype), 0.5, 1.0
    wide, ends = v.astype(float), np.cumsum(GROUP_SIZES)[:-1]
    parts = np.split(wide, ends)
    kept = [max(0.0, 1 - step * rho * np.sqrt(part.size) / np.linalg.norm(part)) for part in parts]
    by_group = np.concatenate([share * part for share, part in zip(kept, parts, strict=True)])
    by_entry = np.sign(wide) * np.maximum(np.abs(wide) - step * rho, 0)
    cases: tuple[tuple[str, Penalty, np.ndarray], ...] = (
        ("group prox", prox.GroupLasso(prox.Groups.from_sizes(GROUP_SIZES), rho), by_group),
        ("l1 prox", prox.L1(rho), by_entry),
    )
    for name, penalty, wanted in cases:
        out = np.empty_like(v)
        penalty.prox(v, step, out)
        yield Comparison(name, {"u": out}, {"u": wanted}, max(GROUP_SIZES))
