"""Per-FedAvg, Hessian-free variant: the Hessian's product with v as a difference of two gradients.

Exact on quadratics whatever delta; on smooth losses the error is O(delta^2), plus rounding of order
1/delta. Where w + delta v and w - delta v lie on different sides of a kink of ReLU or max-pooling, the
jump of the gradient is divided by delta too: no delta is small enough for all batches.
Source: mathematics.md §10; Fallah et al. 2020, section 5 (HF-MAML).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refimpl.federated.local import LocalSolution, Objective, Tally, Task
from refimpl.federated.methods.averaging import Averaging
from refimpl.federated.methods.meta import expect_positive, expect_rates, gradient_at, look_ahead, outer_steps


@dataclass(frozen=True)
class PerFedAvgHF(Averaging):
    """alpha: inner rate; beta: outer rate; steps: outer steps a round; delta: step of the difference."""

    alpha: float
    beta: float
    steps: int
    delta: float
    name: str = "perfedavg-hf"

    def __post_init__(self) -> None:
        expect_rates(self.name, self.alpha, self.beta, self.steps)
        expect_positive(self.name, delta=self.delta)

    def local(self, task: Task, point: np.ndarray, rng: np.random.Generator) -> LocalSolution:
        """w~ = w - alpha g(w; D); v = g(w~; D'); w <- w - beta (v - alpha d), with d as below.

        d = [g(w + delta v; D'') - g(w - delta v; D'')]/(2 delta), D, D', D'' independent batches.
        """
        return outer_steps(task, point, rng, self.beta, self.steps, 3, self._meta_gradient)

    def _meta_gradient(
        self, w: np.ndarray, batches: Sequence[Objective], tally: Tally
    ) -> tuple[float, np.ndarray]:
        inner, outer, curve = batches
        scalar = w.dtype.type
        _, ahead = look_ahead(w, [inner], self.alpha, tally)
        loss, v = gradient_at(outer, ahead, tally)
        step = scalar(self.delta) * v
        _, above = gradient_at(curve, w + step, tally)
        _, below = gradient_at(curve, w - step, tally)
        d = (above - below) / scalar(2 * self.delta)
        return loss, v - scalar(self.alpha) * d
