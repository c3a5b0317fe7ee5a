"""First-order MAML: the outer gradient after the inner steps, as if it did not depend on them.

With one inner step it is Per-FedAvg (FO).
Source: mathematics.md §10; Finn et al. 2017, section 5.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refimpl.federated.local import LocalSolution, Objective, Tally, Task
from refimpl.federated.methods.averaging import Averaging
from refimpl.federated.methods.meta import expect_rates, gradient_at, look_ahead, outer_steps


@dataclass(frozen=True)
class FOMAML(Averaging):
    """alpha, inner_steps: inner rate and steps; beta: outer rate; steps: outer steps a round."""

    alpha: float
    beta: float
    steps: int
    inner_steps: int = 1
    name: str = "fomaml"

    def __post_init__(self) -> None:
        expect_rates(self.name, self.alpha, self.beta, self.steps, self.inner_steps)

    def local(self, task: Task, point: np.ndarray, rng: np.random.Generator) -> LocalSolution:
        """w <- w - beta g(w~; D'), w~ after `inner_steps` steps from w; all batches are independent."""
        return outer_steps(task, point, rng, self.beta, self.steps, self.inner_steps + 1, self._meta_gradient)

    def _meta_gradient(
        self, w: np.ndarray, batches: Sequence[Objective], tally: Tally
    ) -> tuple[float, np.ndarray]:
        *inners, outer = batches
        return gradient_at(outer, look_ahead(w, inners, self.alpha, tally)[-1], tally)
