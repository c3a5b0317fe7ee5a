"""pFedMe: nodes personalise within a Moreau envelope and move the global model towards their own.

Each local round draws one batch, takes K gradient steps on L + (lam/2)||. - w_i||^2 from w_i (the
personalised model t), then moves w_i towards t: a step on the envelope, whose gradient is lam (w_i - t).
The model returned is the global one; the personalised model of a node is what adaptation with the same
proximal term makes of it there (`adapt.py`).

Source: mathematics.md §10; Dinh et al. 2020, Algorithm 1. That t starts at w_i is our choice: the paper
asks for an inexact minimiser only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from refimpl.errors import expect_numbers
from refimpl.federated.local import LocalSolution, Objective, Tally, Task
from refimpl.federated.methods.averaging import Averaging, towards
from refimpl.federated.rounds import State
from refimpl.kernels import vector
from refimpl.optim.prox.contract import check_alike


@dataclass(frozen=True)
class PFedMe(Averaging):
    """lam: Moreau weight; eta_prox, prox_steps: rate and number K of prox steps on a batch.

    eta: rate of the local model; steps: local rounds between two communications; beta: share of the way
    the server goes to the mean.
    """

    lam: float
    eta_prox: float
    prox_steps: int
    eta: float
    steps: int
    beta: float
    name: str = "pfedme"

    def __post_init__(self) -> None:
        expect_numbers(self.name, positive=True, lam=self.lam, eta_prox=self.eta_prox)
        expect_numbers(self.name, positive=True, eta=self.eta, beta=self.beta)
        expect_numbers(self.name, positive=True, whole=True, prox_steps=self.prox_steps, steps=self.steps)

    def local(self, task: Task, point: np.ndarray, rng: np.random.Generator) -> LocalSolution:
        """w_i <- w_i - eta lam (w_i - t), t from `prox_steps` steps; the loss is that of `point`."""
        check_alike("pfedme", point=point)
        w, tally, first_loss, residual = point.copy(), Tally(), math.nan, math.nan
        for step, objective in enumerate(task.draw(rng, self.steps)):
            t, loss, residual = self._personal(objective, w, tally)
            first_loss = loss if step == 0 else first_loss
            w -= w.dtype.type(self.eta * self.lam) * (w - t)
        return tally.solution(w, first_loss, residual)

    def _personal(self, objective: Objective, w: np.ndarray, tally: Tally) -> tuple[np.ndarray, float, float]:
        """t after K steps t <- t - eta_prox (g(t) + lam (t - w)) from w; loss at w; last residual."""
        scalar = w.dtype.type
        t, gradient, first_loss = w.copy(), np.empty_like(w), math.nan
        for k in range(self.prox_steps):
            loss = objective(t, gradient)
            tally.add(objective)
            first_loss = loss if k == 0 else first_loss
            residual = vector.local_residual(t, gradient, w, scalar(self.lam))
            vector.local_step(t, gradient, w, scalar(self.eta_prox), scalar(self.lam))
        return t, first_loss, float(residual)

    def server(self, state: State, round_: int, point: np.ndarray, mean: np.ndarray) -> tuple[State, float]:
        """w <- (1 - beta) w + beta mean(w_i)."""
        check_alike(self.name, point=point, mean=mean)
        return {"w": towards(point, mean, self.beta)}, math.nan
