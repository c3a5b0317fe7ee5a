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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refimpl.contracts import LocalSolution, Objective, Task
from refimpl.errors import ConfigError, expect_numbers
from refimpl.federated.adapt import Personal, Target, usual_adaptation
from refimpl.federated.local import Tally
from refimpl.federated.methods.averaging import PartialAveraging
from refimpl.federated.methods.keys import alpha_key, eta_key, inner_steps_key, lam_key
from refimpl.kernels import vector
from refimpl.optim.prox.contract import check_alike
from refimpl.registry import METHODS


@METHODS.register("pfedme")
@dataclass(frozen=True, kw_only=True)
class PFedMe(PartialAveraging):
    """Prox steps to a personalised model, which the local model follows; a step towards the mean.

    lam: Moreau weight; alpha, inner_steps: rate and number K of prox steps on a batch; eta: rate of the
    local model; local_steps: how often it moves in a round.
    """

    lam: float = lam_key()
    eta: float = eta_key(search=(0.05, 2.0))  # nodes move by eta lam (w - t), not by a gradient
    alpha: float = alpha_key()
    inner_steps: int = inner_steps_key()
    note = "accuracy is that of the nodes' personalised models, accuracy before that of the global model"
    labels = {"accuracy %": "personal %", "before %": "global %"}  # noqa: RUF012 - a constant of the class

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_numbers(self.name, positive=True, lam=self.lam, alpha=self.alpha)

    @staticmethod
    def check(config: Any) -> None:
        """Raise `ConfigError` if lam is zero."""
        if config.lam == 0:
            raise ConfigError("config: lam must be positive for pfedme: nodes move by eta lam (w - t)")

    def local(self, task: Task, point: np.ndarray, rng: np.random.Generator) -> LocalSolution:
        """w_i <- w_i - eta lam (w_i - t), t from `inner_steps` steps; the loss is that of `point`."""
        check_alike("pfedme", point=point)
        w, tally, first_loss, residual = point.copy(), Tally(), math.nan, math.nan
        for step, objective in enumerate(task.draw(rng, self.local_steps)):
            t, loss, residual = self._personal(objective, w, tally)
            first_loss = loss if step == 0 else first_loss
            w -= w.dtype.type(self.eta * self.lam) * (w - t)
        return tally.solution(w, first_loss, residual)

    def _personal(self, objective: Objective, w: np.ndarray, tally: Tally) -> tuple[np.ndarray, float, float]:
        """t after K steps t <- t - alpha (g(t) + lam (t - w)) from w; loss at w; last residual."""
        scalar = w.dtype.type
        t, gradient, first_loss = w.copy(), np.empty_like(w), math.nan
        for k in range(self.inner_steps):
            loss = objective(t, gradient)
            tally.add(objective)
            first_loss = loss if k == 0 else first_loss
            residual = vector.local_residual(t, gradient, w, scalar(self.lam))
            vector.local_step(t, gradient, w, scalar(self.alpha), scalar(self.lam))
        return t, first_loss, float(residual)

    def personalise(self, target: Target) -> Personal:
        """The usual adaptation, kept near the global model by lam."""
        return usual_adaptation(target._replace(settings=replace(target.settings, lam=self.lam)))
