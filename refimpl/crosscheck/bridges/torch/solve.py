"""Objectives, local problems, Algorithm 1 and the answers of other methods' nodes, on flat tensors w (d,).

Source: mathematics.md §2.4, §3, §4 and §10, and the papers named there.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from refimpl.crosscheck.bridges.torch import ops
from refimpl.crosscheck.bridges.torch.network import GatedNetwork, Noise, Watch
from refimpl.crosscheck.bridges.torch.prox import Penalty
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
        y = logits(self.model, w, self.batch.x, self.batch.noise, seen.__setitem__)
        return ops.cross_entropy(y, self.batch.y) + self.model.shaping(seen)

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
    model: GatedNetwork, w: Tensor, x: Tensor, noise: Noise | None = None, watch: Watch | None = None
) -> Tensor:
    """The network's output for x with parameters w (d,)."""
    result: Tensor = functional_call(model, views(model.shapes, w), (x, noise, watch))
    return result


def local_steps(
    centre: Tensor, objectives: Iterable[Objective], eta: float | Tensor, lam: float
) -> Iterator[Tensors]:
    """Gradient descent from the centre, a step on each L + (lam/2)||w - centre||^2.

    For each step: loss and gradient at the point it starts from, and the point w it ends at. The proximal
    term is differentiated, not written out. eta: one step size, or one for each entry of w.
    """
    w = centre
    for objective in objectives:
        loss, gradient = objective.both(w)
        point = w.detach().clone().requires_grad_()
        (pull,) = torch.autograd.grad(lam / 2 * (point - centre).square().sum(), point)
        w = w - eta * (gradient + pull)
        yield {"loss": loss, "gradient": gradient, "w": w}


def local_solution(centre: Tensor, objectives: Objectives, eta: float | Tensor, lam: float = 0.0) -> Tensor:
    """Where `local_steps` ends; with lam = 0 this is plain descent."""
    *_, last = local_steps(centre, objectives, eta, lam)
    return last["w"]


# By name and beta: a_k, b_k and l_k of round k, which is counted from 1.
SCHEDULES: dict[str, Callable[[float, int], tuple[float, float, float]]] = {
    "ghadimi-lan": lambda beta, k: (2 / (k + 1), beta, k * beta / 2),
    "proximal-gradient": lambda beta, k: (1.0, beta, beta),
    "nesterov": lambda beta, k: (2 / (k + 1), beta, beta * (k + 1) / 2),
}


def accelerated_rounds(
    w0: Tensor,
    rounds: int,
    solve: Callable[[int, Tensor], Sequence[Tensor]],
    lam: float,
    schedule: Mapping[str, Any],
    penalty: Callable[[int], Penalty],
) -> Iterator[Tensors]:
    """Algorithm 1 from x_0 = xag_0 = w0: the four vectors md, g, x and xag of every round.

    `solve(k, md)` gives the nodes' inexact solutions at centre md; schedule: its `name` and `beta`;
    `penalty(k)` is that of round k.
    """
    x = xag = w0
    for k in range(1, rounds + 1):
        a, b, l = SCHEDULES[schedule["name"]](schedule["beta"], k)
        md = (1 - a) * xag + a * x
        g = lam * (md - torch.stack(list(solve(k, md))).mean(0))
        x = penalty(k).rounded_prox(x - l * g, l)
        xag = penalty(k).rounded_prox(md - b * g, b)
        yield {"md": md, "g": g, "x": x, "xag": xag}


# --- what a node returns in one round of the methods that MetaGater is compared with ----------------------
#
# Each function takes the server's point, the objectives of the node's batches in the order in which they were
# drawn, each of which is used once, and the method's numbers.


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
    w: Tensor, objectives: Objectives, lam: float, eta_prox: float, prox_steps: int, eta: float
) -> Tensor:
    """For each batch: t from `prox_steps` steps on L + (lam/2)||. - w||^2; then w <- w - eta lam (w - t)."""
    for objective in objectives:
        t = local_solution(w, [objective] * prox_steps, eta_prox, lam)
        w = w - eta * lam * (w - t)
    return w


# The answer of a node by the method's name, and the numbers that it takes.
METHODS: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "fedavg": (local_solution, ("eta",)),
    "reptile": (local_solution, ("eta",)),
    "perfedavg": (perfedavg, ("alpha", "beta")),
    "perfedavg-hf": (perfedavg_hf, ("alpha", "beta", "delta")),
    "fomaml": (fomaml, ("alpha", "beta", "inner_steps")),
    "maml": (maml, ("alpha", "beta", "inner_steps")),
    "pfedme": (pfedme, ("lam", "eta_prox", "prox_steps", "eta")),
}
# The share of the way to the nodes' mean that the server goes, where that is not all of it.
SHARES = {"reptile": "eps", "pfedme": "beta"}
