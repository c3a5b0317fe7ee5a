"""Local problems, Algorithm 1 and the two stages of adaptation, on flat tensors.

Source: mathematics.md §3, §4 and §6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from refimpl.bridges.torch.network import GatedNetwork, Noise
from refimpl.bridges.torch.ops import cross_entropy
from refimpl.bridges.torch.prox import Prox
from refimpl.bridges.torch.rules import OURS, Rules
from refimpl.bridges.torch.weights import views

Gradient = Callable[[Tensor], Tensor]  # of one loss, at a point w (d,)


class Batch(NamedTuple):
    """Samples x, labels y (int64), and the gates' noise by name (mode `gumbel`)."""

    x: Tensor
    y: Tensor
    noise: Noise = {}


def loss_at(model: GatedNetwork, w: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy with parameters w (d,)."""
    logits = functional_call(model, views(model.shapes, w), (batch.x, batch.noise))
    return cross_entropy(logits, batch.y, model.rules)


def gradient_at(model: GatedNetwork, w: Tensor, batch: Batch) -> Tensor:
    """Its gradient in w, with zeros in the parts that are not trained."""
    return loss_and_gradient(model, w, batch)[1]


def loss_and_gradient(model: GatedNetwork, w: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Both at once, detached."""
    point = w.detach().clone().requires_grad_()
    loss = loss_at(model, point, batch)
    (gradient,) = torch.autograd.grad(loss, point)
    return loss.detach(), gradient * model.trained


def losses(model: GatedNetwork, batches: Iterable[Batch]) -> list[Gradient]:
    """The gradients of a model's losses on batches, as functions of w."""
    return [lambda w, batch=batch: gradient_at(model, w, batch) for batch in batches]


def local_iterates(
    centre: Tensor, gradients: Sequence[Gradient], eta: float, lam: float, rules: Rules = OURS
) -> Iterator[Tensor]:
    """The points after each step of gradient descent on L + (lam/2)||w - centre||^2, from the centre.

    The proximal term is differentiated, not written out.
    """
    w = centre
    half = 0.5 if rules.half_lambda else 1.0
    for gradient in gradients:
        point = w.detach().clone().requires_grad_()
        (pull,) = torch.autograd.grad(half * lam * (point - centre).square().sum(), point)
        w = w - eta * (gradient(w) + pull)
        yield w


def local_solution(
    centre: Tensor, gradients: Sequence[Gradient], eta: float, lam: float, rules: Rules = OURS
) -> Tensor:
    """The last of `local_iterates`."""
    *_, last = local_iterates(centre, gradients, eta, lam, rules)
    return last


class Steps(NamedTuple):
    """a_k, b_k, l_k of one round."""

    a: float
    b: float
    l: float


def ghadimi_lan(beta: float) -> Callable[[int], Steps]:
    """The default policy of §4."""
    return lambda k: Steps(2 / (k + 1), beta, k * beta / 2)


def proximal_gradient(beta: float) -> Callable[[int], Steps]:
    """No acceleration."""
    return lambda k: Steps(1.0, beta, beta)


def nesterov(beta: float) -> Callable[[int], Steps]:
    """Nesterov's method for smooth convex F."""
    return lambda k: Steps(2 / (k + 1), beta, beta * (k + 1) / 2)


SCHEDULES = {"ghadimi-lan": ghadimi_lan, "proximal-gradient": proximal_gradient, "nesterov": nesterov}


class Round(NamedTuple):
    """The four vectors of a round."""

    md: Tensor
    g: Tensor
    x: Tensor
    xag: Tensor


def accelerated_rounds(
    w0: Tensor,
    rounds: int,
    solve: Callable[[int, Tensor], Sequence[Tensor]],
    lam: float,
    schedule: Callable[[int], Steps],
    prox: Prox,
    weights: Sequence[float] | None = None,
) -> Iterator[Round]:
    """Algorithm 1 from x_0 = xag_0 = w0: `solve(k, md)` gives the nodes' inexact solutions at centre md.

    weights: of the nodes' answers, summing to one; uniform unless given.
    """
    x = xag = w0
    for k in range(1, rounds + 1):
        a, b, l = schedule(k)
        md = (1 - a) * xag + a * x
        answers = torch.stack(list(solve(k, md)))
        shares = torch.full((len(answers),), 1 / len(answers)) if weights is None else torch.tensor(weights)
        mean = (shares.to(answers.dtype)[:, None] * answers).sum(0)
        g = lam * (md - mean)
        x = prox(x - l * g, l)
        xag = prox(md - b * g, b)
        yield Round(md, g, x, xag)


def stage(w: Tensor, gradients: Sequence[Gradient], eta: float) -> Tensor:
    """One stage of adaptation (§6): gradient steps in the part its model trains."""
    for gradient in gradients:
        w = w - eta * gradient(w)
    return w
