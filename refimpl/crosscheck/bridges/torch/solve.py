"""Objectives, local problems and Algorithm 1, on flat tensors w (d,).

Source: mathematics.md §2.4, §3 and §4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from refimpl.crosscheck.bridges.torch.network import GatedNetwork, Noise
from refimpl.crosscheck.bridges.torch.ops import cross_entropy
from refimpl.crosscheck.bridges.torch.prox import Penalty
from refimpl.crosscheck.bridges.torch.rules import OURS, Rules
from refimpl.crosscheck.bridges.torch.weights import views


class Batch(NamedTuple):
    """Samples x, labels y (int64), and the gates' noise by name (mode `gumbel`)."""

    x: Tensor
    y: Tensor
    noise: Noise | None = None


class Objective(NamedTuple):
    """The mean cross-entropy of a model on a batch, as a function of the flat vector w (d,)."""

    model: GatedNetwork
    batch: Batch

    def loss(self, w: Tensor) -> Tensor:
        """Value at w, differentiable in w."""
        return cross_entropy(logits(self.model, w, *self.batch[::2]), self.batch.y, self.model.rules)

    def both(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient at w, which is zero in the parts that are not trained."""
        point = w.detach().clone().requires_grad_()
        value = self.loss(point)
        (gradient,) = torch.autograd.grad(value, point)
        return value.detach(), gradient * self.model.trained

    def gradient(self, w: Tensor) -> Tensor:
        """The gradient alone."""
        return self.both(w)[1]


def logits(model: GatedNetwork, w: Tensor, x: Tensor, noise: Noise | None = None) -> Tensor:
    """The network's output for x with parameters w (d,)."""
    result: Tensor = functional_call(model, views(model.shapes, w), (x, noise))
    return result


class LocalStep(NamedTuple):
    """Loss and gradient at the point a step starts from, and the point w it ends at."""

    loss: Tensor
    gradient: Tensor
    w: Tensor


def local_steps(
    centre: Tensor, objectives: Iterable[Objective], eta: float, lam: float, rules: Rules = OURS
) -> Iterator[LocalStep]:
    """Gradient descent from the centre, a step on each L + (lam/2)||w - centre||^2.

    The proximal term is differentiated, not written out.
    """
    w, weight = centre, lam / 2 if rules.half_lambda else lam
    for objective in objectives:
        loss, gradient = objective.both(w)
        point = w.detach().clone().requires_grad_()
        (pull,) = torch.autograd.grad(weight * (point - centre).square().sum(), point)
        w = w - eta * (gradient + pull)
        yield LocalStep(loss, gradient, w)


def local_solution(
    centre: Tensor, objectives: Iterable[Objective], eta: float, lam: float = 0.0, rules: Rules = OURS
) -> Tensor:
    """Where `local_steps` ends; with lam = 0 this is plain descent."""
    *_, last = local_steps(centre, objectives, eta, lam, rules)
    return last.w


class Steps(NamedTuple):
    """a_k, b_k, l_k of one round."""

    a: float
    b: float
    l: float


Schedule = Callable[[int], Steps]  # of the round's number, from 1


def ghadimi_lan(beta: float) -> Schedule:
    """The default policy of §4."""
    return lambda k: Steps(2 / (k + 1), beta, k * beta / 2)


def proximal_gradient(beta: float) -> Schedule:
    """No acceleration."""
    return lambda k: Steps(1.0, beta, beta)


def nesterov(beta: float) -> Schedule:
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
    schedule: Schedule,
    penalty: Penalty,
) -> Iterator[Round]:
    """Algorithm 1 from x_0 = xag_0 = w0: `solve(k, md)` gives the nodes' inexact solutions at centre md."""
    x = xag = w0
    for k in range(1, rounds + 1):
        a, b, l = schedule(k)
        md = (1 - a) * xag + a * x
        g = lam * (md - torch.stack(list(solve(k, md))).mean(0))
        x = penalty.rounded_prox(x - l * g, l)
        xag = penalty.rounded_prox(md - b * g, b)
        yield Round(md, g, x, xag)
