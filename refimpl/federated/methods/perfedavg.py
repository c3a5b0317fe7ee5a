"""Per-FedAvg, first-order variant: one step ahead with one batch, the gradient there with another.

Source: mathematics.md §10; Fallah et al. 2020, Algorithm 1 with the Hessian term dropped. Both the inner
and the outer step start from w (two plain SGD steps in a row would be another method).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refimpl.federated.local import LocalSolution, Objective, Tally, Task
from refimpl.federated.methods.averaging import Averaging
from refimpl.federated.methods.meta import expect_rates, gradient_at, look_ahead, outer_steps


@dataclass(frozen=True)
class PerFedAvgFO(Averaging):
    """alpha: inner rate (as at a target node); beta: outer rate; steps: outer steps a round."""

    alpha: float
    beta: float
    steps: int
    name: str = "perfedavg"

    def __post_init__(self) -> None:
        expect_rates(self.name, self.alpha, self.beta, self.steps)

    def local(self, task: Task, point: np.ndarray, rng: np.random.Generator) -> LocalSolution:
        """w~ = w - alpha g(w; D); w <- w - beta g(w~; D'), with independent batches D and D'."""
        return outer_steps(task, point, rng, self.beta, self.steps, 2, self._meta_gradient)

    def _meta_gradient(
        self, w: np.ndarray, batches: Sequence[Objective], tally: Tally
    ) -> tuple[float, np.ndarray]:
        inner, outer = batches
        _, ahead = look_ahead(w, [inner], self.alpha, tally)
        return gradient_at(outer, ahead, tally)
