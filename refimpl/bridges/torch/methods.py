"""What a node sends back in one round of the methods MetaGater is compared with, on flat tensors.

Each takes the server's point and the gradients (or losses) of the node's batches, in the order drawn.

Source: mathematics.md §10 and the papers named there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from refimpl.bridges.torch.rules import OURS, Rules
from refimpl.bridges.torch.solve import Gradient, local_solution, stage

Loss = Callable[[Tensor], Tensor]  # differentiable, of a point w (d,)


def fedavg(w: Tensor, gradients: Sequence[Gradient], eta: float) -> Tensor:
    """Local SGD; Reptile's nodes do the same."""
    return stage(w, gradients, eta)


def perfedavg(w: Tensor, gradients: Sequence[Gradient], alpha: float, beta: float) -> Tensor:
    """First order: for each pair of batches (D, D'), w <- w - beta g(w - alpha g(w; D); D')."""
    for inner, outer in zip(gradients[::2], gradients[1::2], strict=True):
        w = w - beta * outer(w - alpha * inner(w))
    return w


def perfedavg_hf(w: Tensor, gradients: Sequence[Gradient], alpha: float, beta: float, delta: float) -> Tensor:
    """Hessian-free: batches in threes (D, D', D''); the curvature of D'' by a difference of gradients."""
    for inner, outer, curve in zip(gradients[::3], gradients[1::3], gradients[2::3], strict=True):
        v = outer(w - alpha * inner(w))
        d = (curve(w + delta * v) - curve(w - delta * v)) / (2 * delta)
        w = w - beta * (v - alpha * d)
    return w


def fomaml(w: Tensor, gradients: Sequence[Gradient], alpha: float, beta: float, inner_steps: int) -> Tensor:
    """The outer gradient after `inner_steps` inner steps, as if it did not depend on them."""
    size = inner_steps + 1
    for start in range(0, len(gradients), size):
        *inners, outer = gradients[start : start + size]
        w = w - beta * outer(stage(w, inners, alpha))
    return w


def maml(w: Tensor, losses: Sequence[Loss], alpha: float, beta: float, inner_steps: int) -> Tensor:
    """The gradient of the loss after the inner steps, by differentiating through them."""
    size = inner_steps + 1
    for start in range(0, len(losses), size):
        *inners, outer = losses[start : start + size]
        point = w.detach().clone().requires_grad_()
        ahead = point
        for inner in inners:
            (gradient,) = torch.autograd.grad(inner(ahead), ahead, create_graph=True)
            ahead = ahead - alpha * gradient
        (direction,) = torch.autograd.grad(outer(ahead), point)
        w = w - beta * direction
    return w


def pfedme(
    w: Tensor,
    gradients: Sequence[Gradient],
    lam: float,
    eta_prox: float,
    prox_steps: int,
    eta: float,
    rules: Rules = OURS,
) -> Tensor:
    """For each batch: t from `prox_steps` steps on L + (lam/2)||. - w||^2; then w <- w - eta lam (w - t)."""
    for gradient in gradients:
        t = local_solution(w, [gradient] * prox_steps, eta_prox, lam, rules)
        w = w - eta * lam * (w - t)
    return w


def towards(w: Tensor, mean: Tensor, share: float) -> Tensor:
    """The server's step of Reptile and pFedMe: w + share (mean - w)."""
    return (1 - share) * w + share * mean
