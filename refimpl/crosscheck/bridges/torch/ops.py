"""The template for PyTorch (`crosscheck/template`) as a module, and what other losses need.

Gradients are PyTorch's, by automatic differentiation. Source: mathematics.md §2, and PyTorch's documentation
of the functions called.
"""

from typing import Any

import numpy as np
import torch
from scipy import special
from torch import Tensor
from torch.nn import functional

from refimpl.crosscheck.template import module

template: Any = module("torch")
STATISTICS = ("running_mean", "running_var")


def divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher/T) || softmax(student/T)), mean over the batch."""
    goal, found = (functional.log_softmax(z / temperature, dim=1) for z in (teacher, student))
    return temperature**2 * functional.kl_div(found, goal, log_target=True, reduction="batchmean")


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
