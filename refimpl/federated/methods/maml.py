"""MAML with the exact second-order term, by Hessian-vector products.

The direction is the gradient in w of the loss after the inner steps: the outer gradient taken back
through every inner step w -> w - alpha g(w; D), whose Jacobian is I - alpha H(w; D). H belongs to the
inner step's own batch, so on the batches drawn the gradient is exact, not an estimate.

With one outer step a round the server takes Finn et al.'s step on the mean over nodes; with more it is
Per-FedAvg with the exact Hessian.
Source: mathematics.md §10; Finn et al. 2017, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refimpl.errors import InputError
from refimpl.federated.local import Curved, LocalSolution, Objective, Tally, Task
from refimpl.federated.methods.averaging import Averaging
from refimpl.federated.methods.meta import expect_rates, gradient_at, look_ahead, outer_steps


@dataclass(frozen=True)
class MAML(Averaging):
    """alpha, inner_steps: inner rate and steps; beta: outer rate; steps: outer steps a round."""

    alpha: float
    beta: float
    steps: int
    inner_steps: int = 1
    name: str = "maml"

    def __post_init__(self) -> None:
        expect_rates(self.name, self.alpha, self.beta, self.steps, self.inner_steps)

    def local(self, task: Task, point: np.ndarray, rng: np.random.Generator) -> LocalSolution:
        """v = g(w~; D'); w <- w - beta (v - alpha H v), for one inner step; batches are independent.

        A Hessian-vector product counts as two gradient evaluations. Raises `InputError` where the task's
        objectives have none.
        """
        return outer_steps(task, point, rng, self.beta, self.steps, self.inner_steps + 1, self._meta_gradient)

    def _meta_gradient(
        self, w: np.ndarray, batches: Sequence[Objective], tally: Tally
    ) -> tuple[float, np.ndarray]:
        *inners, outer = batches
        points = look_ahead(w, inners, self.alpha, tally)
        loss, v = gradient_at(outer, points.pop(), tally)
        for inner, at in zip(reversed(inners), reversed(points), strict=True):
            product = _curved(inner).hessian_vector(at, v)
            tally.add(inner, gradients=2)
            v = v - w.dtype.type(self.alpha) * product
        return loss, v


def _curved(objective: Objective) -> Curved:
    if not isinstance(objective, Curved):
        raise InputError(
            f"maml: a {type(objective).__name__} has no hessian_vector(w, v); give it one, or use "
            "perfedavg-hf or fomaml, which need gradients only"
        )
    return objective
