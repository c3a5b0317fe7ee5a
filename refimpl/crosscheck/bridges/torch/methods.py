"""What a node returns in one round of the methods that MetaGater is compared with, on flat tensors.

Each function takes the server's point and the objectives of the node's batches in the order in which they
were drawn. Each batch is used once.

Source: mathematics.md §10 and the papers named there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from refimpl.crosscheck.bridges.torch.rules import OURS, Rules
from refimpl.crosscheck.bridges.torch.solve import Objective, local_solution

Objectives = Sequence[Objective]


def in_groups(objectives: Objectives, size: int) -> Iterator[Objectives]:
    """The batches of each outer step."""
    for start in range(0, len(objectives), size):
        yield objectives[start : start + size]


def perfedavg(w: Tensor, objectives: Objectives, alpha: float, beta: float) -> Tensor:
    """First order: for each pair of batches (D, D'), w <- w - beta g(w - alpha g(w; D); D')."""
    for inner, outer in in_groups(objectives, 2):
        w = w - beta * outer.gradient(w - alpha * inner.gradient(w))
    return w


def perfedavg_hf(w: Tensor, objectives: Objectives, alpha: float, beta: float, delta: float) -> Tensor:
    """Hessian-free: batches in threes (D, D', D''); the curvature of D'' by a difference of gradients."""
    for inner, outer, curve in in_groups(objectives, 3):
        v = outer.gradient(w - alpha * inner.gradient(w))
        d = (curve.gradient(w + delta * v) - curve.gradient(w - delta * v)) / (2 * delta)
        w = w - beta * (v - alpha * d)
    return w


def fomaml(w: Tensor, objectives: Objectives, alpha: float, beta: float, inner_steps: int) -> Tensor:
    """The outer gradient after `inner_steps` inner steps, as if it did not depend on them."""
    for *inners, outer in in_groups(objectives, inner_steps + 1):
        w = w - beta * outer.gradient(local_solution(w, inners, alpha))
    return w


def maml(w: Tensor, objectives: Objectives, alpha: float, beta: float, inner_steps: int) -> Tensor:
    """The gradient of the loss after the inner steps, by differentiating through them."""
    for *inners, outer in in_groups(objectives, inner_steps + 1):
        point = w.detach().clone().requires_grad_()
        ahead = point
        for inner in inners:
            (gradient,) = torch.autograd.grad(inner.loss(ahead), ahead, create_graph=True)
            ahead = ahead - alpha * gradient
        (direction,) = torch.autograd.grad(outer.loss(ahead), point)
        w = w - beta * direction
    return w


def pfedme(
    w: Tensor,
    objectives: Objectives,
    lam: float,
    eta_prox: float,
    prox_steps: int,
    eta: float,
    rules: Rules = OURS,
) -> Tensor:
    """For each batch: t from `prox_steps` steps on L + (lam/2)||. - w||^2; then w <- w - eta lam (w - t)."""
    for objective in objectives:
        t = local_solution(w, [objective] * prox_steps, eta_prox, lam, rules)
        w = w - eta * lam * (w - t)
    return w


def towards(w: Tensor, mean: Tensor, share: float) -> Tensor:
    """The server's step of Reptile and pFedMe: w + share (mean - w)."""
    return (1 - share) * w + share * mean
