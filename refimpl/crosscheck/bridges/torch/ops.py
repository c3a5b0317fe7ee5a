"""Single operations on tensors; their gradients are PyTorch's, by automatic differentiation.

Source: mathematics.md §2 and PyTorch's documentation of the functions called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from refimpl.crosscheck.bridges.torch.rules import Rules

Pair = tuple[int, int]


def weight_as(weight: Tensor, rules: Rules) -> Tensor:
    """A weight (out, in, ...) as the rules read it."""
    return weight.transpose(0, 1) if rules.transposed and weight.shape[0] == weight.shape[1] else weight


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, rules: Rules) -> Tensor:
    """Cross-correlation: x (N,C,H,W), weight (K,C,kh,kw)."""
    return functional.conv2d(x, weight_as(weight, rules), bias, stride, padding)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, rules: Rules) -> Tensor:
    """x W^T + bias: x (N,I), weight (O,I)."""
    return functional.linear(x, weight_as(weight, rules), bias)


class _LeakyAtZero(torch.autograd.Function):
    """ReLU with a chosen derivative at 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        """max(x, 0)."""
        ctx.save_for_backward(x)
        ctx.slope = slope
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        """Dy where x > 0, slope dy where x = 0."""
        (x,) = ctx.saved_tensors
        return torch.where(x > 0, dy, torch.where(x == 0, ctx.slope * dy, 0 * dy)), None


def relu(x: Tensor, rules: Rules) -> Tensor:
    """max(x, 0)."""
    if rules.relu_slope_at_zero == 0:
        return functional.relu(x)
    return _LeakyAtZero.apply(x, rules.relu_slope_at_zero)


def softplus(x: Tensor, rules: Rules) -> Tensor:
    """log(1 + e**x); PyTorch's own is linear above 20."""
    return torch.logaddexp(x, torch.zeros_like(x))


def tanh(x: Tensor, rules: Rules) -> Tensor:
    """Hyperbolic tangent."""
    return torch.tanh(x)


ACTIVATIONS: dict[str, Callable[[Tensor, Rules], Tensor]] = {"relu": relu, "softplus": softplus, "tanh": tanh}


def max_pool(x: Tensor, window: Pair, stride: Pair, rules: Rules) -> Tensor:
    """Largest value of each window."""
    if rules.pool_tie == "first":
        return functional.max_pool2d(x, window, stride)
    windows = x.unfold(2, window[0], stride[0]).unfold(3, window[1], stride[1]).flatten(-2)
    if rules.pool_tie == "shared":
        return windows.amax(-1)
    backwards = windows.flip(-1)
    return backwards.gather(-1, backwards.argmax(-1, keepdim=True)).squeeze(-1)


def average_pool(x: Tensor, window: Pair, stride: Pair) -> Tensor:
    """Mean of each window."""
    return functional.avg_pool2d(x, window, stride)


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, rules: Rules) -> Tensor:
    """x (N,C,H,W) normalised per channel with the statistics of the batch."""
    if rules.variance == "biased":
        return functional.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    axes, shape = (0, 2, 3), (1, -1, 1, 1)
    centred = x - x.mean(axes, keepdim=True)
    normalised = centred / torch.sqrt(x.var(axes, unbiased=True, keepdim=True) + eps)
    return normalised * weight.view(shape) + bias.view(shape)


def cross_entropy(logits: Tensor, labels: Tensor, rules: Rules) -> Tensor:
    """Softmax cross-entropy, mean over the batch."""
    return functional.cross_entropy(logits, labels, reduction=rules.loss)


def over_pixels(mask: Tensor, like: Tensor) -> Tensor:
    """mask (N,K) with as many axes as `like` (N,K,...), to be broadcast."""
    return mask.reshape(*mask.shape, *(1 for _ in like.shape[2:]))


def summary(x: Tensor) -> Tensor:
    """Channel means: (N,C,H,W) -> (N,C); (N,C) is its own summary."""
    return x.mean((2, 3)) if x.dim() == 4 else x


def margin(logits: Tensor, rules: Rules) -> Tensor:
    """d = z_on - z_off (N,K) from logits (N, 2K), a channel's two side by side."""
    first, second = logits[:, 0::2], logits[:, 1::2]
    return second - first if rules.logits == "off-on" else first - second


def sigmoid(x: Tensor) -> Tensor:
    """1/(1 + e**-x); PyTorch's own has the derivative y (1 - y), without digits where y is nearly 1."""
    return functional.logsigmoid(x).exp()


def mask_of(d: Tensor, mode: str, tau: float, rules: Rules) -> Tensor:
    """The mask M (N,K) of margins d (noise included), with the derivative its mode has (§2.3).

    A 0/1 mask carries its surrogate's derivative by adding r(d) - r(d), the second without gradient.
    """
    relaxed = d if mode == "ste" else sigmoid(d / tau)
    if mode == "soft":
        return relaxed
    is_on = d > 0 if rules.gate_tie == "off" else d >= 0
    return is_on.to(d.dtype) + (relaxed - relaxed.detach())
