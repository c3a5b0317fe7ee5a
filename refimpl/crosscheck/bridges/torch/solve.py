"""Objectives and local problems on flat tensors w (d,). Source: mathematics.md §2.4 and §3."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from refimpl.crosscheck.bridges.torch import ops
from refimpl.crosscheck.bridges.torch.network import GatedNetwork, Noise
from refimpl.crosscheck.bridges.torch.weights import Tensors, views


class Batch(NamedTuple):
    """Samples x, labels y (int64), and the gates' noise by name (mode `gumbel`)."""

    x: Tensor
    y: Tensor
    noise: Noise | None = None


class Objective(NamedTuple):
    """The mean loss of a model on a batch, as a function of the flat vector w (d,)."""

    model: GatedNetwork
    batch: Batch

    def loss(self, w: Tensor) -> Tensor:
        """Value at w, differentiable in w."""
        seen: Tensors = {}
        y = logits(self.model, w, self.batch.x, self.batch.noise, seen)
        loss: Tensor = ops.template.cross_entropy(y, self.batch.y)
        return loss + self.model.shaping(seen)

    def both(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient at w, which is zero in the parts that are not trained."""
        point = w.detach().clone().requires_grad_()
        value = self.loss(point)
        (gradient,) = torch.autograd.grad(value, point)
        return value.detach(), gradient * self.model.trained

    def gradient(self, w: Tensor) -> Tensor:
        """The gradient alone."""
        return self.both(w)[1]


Objectives = Sequence[Objective]


def logits(
    model: GatedNetwork, w: Tensor, x: Tensor, noise: Noise | None = None, seen: Tensors | None = None
) -> Tensor:
    """The network's output for x with parameters w (d,)."""
    result: Tensor = functional_call(model, views(model.shapes, w), (x, noise, seen))
    return result


def local_solution(centre: Tensor, objectives: Objectives, eta: float, lam: float = 0.0) -> Tensor:
    """Where gradient descent from the centre ends, after a step on each L + (lam/2)||w - centre||^2.

    The proximal term is differentiated, not written out; with lam = 0 this is plain descent.
    """
    w = centre
    for objective in objectives:
        point = w.detach().clone().requires_grad_()
        (pull,) = torch.autograd.grad(lam / 2 * (point - centre).square().sum(), point)
        w = w - eta * (objective.gradient(w) + pull)
    return w
