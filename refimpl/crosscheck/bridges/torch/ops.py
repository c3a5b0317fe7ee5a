"""Single operations on tensors; their gradients are PyTorch's, by automatic differentiation.

Source: mathematics.md §2 and PyTorch's documentation of the functions called.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from scipy import special
from torch import Tensor
from torch.nn import functional

# What a layer without layers inside computes, by its type: from its table (`golden/describe.py`), its input x
# and, where it has them, its weight, its bias, which may be None, and its statistics.
LAYERS: dict[str, Callable[..., Tensor]] = {
    "conv2d": lambda entry, x, weight, bias: functional.conv2d(
        x,
        weight,
        bias,
        tuple(entry["stride"]),
        tuple(entry["padding"]),
        tuple(entry.get("dilation", (1, 1))),
        entry.get("groups", 1),
    ),
    "linear": lambda entry, x, weight, bias: functional.linear(x, weight, bias),
    "batch_norm2d": lambda entry, x, weight, bias: functional.batch_norm(
        x, None, None, weight, bias, training=True, eps=entry["eps"]
    ),
    "frozen_norm2d": lambda entry, x, weight, bias, mean, variance: functional.batch_norm(
        x, mean.detach(), variance.detach(), weight, bias, training=False, eps=entry["eps"]
    ),
    "group_norm": lambda entry, x, weight, bias: functional.group_norm(
        x, entry["groups"], weight, bias, entry["eps"]
    ),
    "max_pool2d": lambda entry, x: functional.max_pool2d(x, *_window(entry)),
    "avg_pool2d": lambda entry, x: functional.avg_pool2d(x, *_window(entry)),
    "global_avg_pool2d": lambda entry, x: summary(x),
    "flatten": lambda entry, x: x.flatten(1),
    "relu": lambda entry, x: functional.relu(x),
    "leaky_relu": lambda entry, x: functional.leaky_relu(x, entry["slope"]),
    "softplus": lambda entry, x: torch.logaddexp(x, torch.zeros_like(x)),  # PyTorch's is linear above 20
    "tanh": lambda entry, x: torch.tanh(x),
}
STATISTICS = ("running_mean", "running_var")


def arguments(kind: str, params: Mapping[str, Tensor]) -> tuple[Tensor | None, ...]:
    """A layer's parameters, by name, in the order in which those of its kind take them."""
    if "weight" not in params:
        return ()
    names = ("weight", "bias", *(STATISTICS if kind == "frozen_norm2d" else ()))
    return tuple(params.get(name) for name in names)


def _window(entry: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """Size, stride and padding of a pool's windows; a table without padding has none."""
    return tuple(entry["kernel"]), tuple(entry["stride"]), tuple(entry.get("padding", (0, 0)))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross-entropy, mean over the batch."""
    return functional.cross_entropy(logits, labels)


def divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher/T) || softmax(student/T)), mean over the batch."""
    goal, found = (functional.log_softmax(z / temperature, dim=1) for z in (teacher, student))
    return temperature**2 * functional.kl_div(found, goal, log_target=True, reduction="batchmean")


def over_pixels(mask: Tensor, like: Tensor) -> Tensor:
    """mask (N,K) with as many axes as `like` (N,K,...), to be broadcast."""
    return mask.reshape(*mask.shape, *(1 for _ in like.shape[2:]))


def summary(x: Tensor) -> Tensor:
    """Channel means: (N,C,H,W) -> (N,C); (N,C) is its own summary."""
    return x.mean((2, 3)) if x.dim() == 4 else x


def margin(logits: Tensor) -> Tensor:
    """d = z_on - z_off (N,K) from logits (N, 2K), a channel's two side by side."""
    return logits[:, 1::2] - logits[:, 0::2]


def sigmoid(x: Tensor) -> Tensor:
    """1/(1 + e**-x); PyTorch's own has the derivative y (1 - y), without digits where y is nearly 1."""
    return functional.logsigmoid(x).exp()


class Distribution(torch.autograd.Function):
    """The distribution function of Beta(a, b) at sigmoid(u), by SciPy; its derivative is written out."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, a: float, b: float) -> Tensor:
        """I_p(a, b), without losing digits where p is nearly 1."""
        ctx.save_for_backward(u)
        ctx.prior = a, b
        at = u.detach().double().numpy()
        low, high = special.betainc(a, b, special.expit(at)), special.betainc(b, a, special.expit(-at))
        return torch.from_numpy(np.where(at < 0, low, 1 - high)).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        """p^a (1 - p)^b / B(a, b) times the slope."""
        (u,), (a, b) = ctx.saved_tensors, ctx.prior
        logs = a * functional.logsigmoid(u) + b * functional.logsigmoid(-u)
        return slopes[0] * (logs - special.betaln(a, b)).exp(), None, None


def shaping(d: Tensor, tau: float, weight: float, a: float, b: float) -> Tensor:
    """Batch-shaping of gates with decisions d (N,K), without noise (§2.3c): mean over the batch."""
    found = Distribution.apply(torch.sort(d, dim=0, stable=True).values / tau, a, b)
    wanted = torch.arange(1, len(d) + 1, dtype=d.dtype)[:, None] / (len(d) + 1)
    return weight * (found - wanted).square().sum() / len(d)


def mask_of(d: Tensor, mode: str, tau: float) -> Tensor:
    """The mask M (N,K) of margins d (noise included), with the derivative its mode has (§2.3).

    A 0/1 mask carries its surrogate's derivative by adding r(d) - r(d), the second without gradient.
    """
    relaxed = d if mode == "ste" else sigmoid(d / tau)
    return relaxed if mode == "soft" else (d > 0).to(d.dtype) + (relaxed - relaxed.detach())
