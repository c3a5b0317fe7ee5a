"""Per-FedAvg, first-order variant: one step ahead with one batch, the gradient there with another.

Source: mathematics.md §10; Fallah et al. 2020, Algorithm 1 with the Hessian term dropped. Both the inner
and the outer step start from w (two plain SGD steps in a row would be another method).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from refimpl.federated.local import LocalSolution, Tally, Task
from refimpl.federated.rounds import State
from refimpl.kernels import vector


@dataclass(frozen=True)
class PerFedAvgFO:
    """alpha: inner rate (as at a target node); beta: outer rate; steps: outer steps a round."""

    alpha: float
    beta: float
    steps: int
    name: str = "perfedavg"

    def start(self, w0: np.ndarray) -> State:
        """The meta-model."""
        return {"w": w0.copy()}

    def broadcast(self, state: State, round_: int) -> np.ndarray:
        """The meta-model."""
        return state["w"]

    def local(self, task: Task, point: np.ndarray, rng: np.random.Generator) -> LocalSolution:
        """w~ = w - alpha g(w; D); w <- w - beta g(w~; D'), with independent batches D and D'.

        The loss reported is that of the method's objective: after the inner step, on D'.
        """
        w, gradient = point.copy(), np.empty_like(point)
        scalar = point.dtype.type
        tally, first_loss = Tally(), math.nan
        batches = iter(task.draw(rng, 2 * self.steps))
        for step, (inner, outer) in enumerate(zip(batches, batches, strict=True)):
            inner(w, gradient)
            tally.add(inner)
            ahead = w - scalar(self.alpha) * gradient
            loss = outer(ahead, gradient)
            tally.add(outer)
            first_loss = loss if step == 0 else first_loss
            vector.local_step(w, gradient, point, scalar(self.beta), scalar(0.0))
        return tally.solution(w, first_loss, float(vector.norm(gradient)))

    def server(self, state: State, round_: int, point: np.ndarray, mean: np.ndarray) -> tuple[State, float]:
        """The mean."""
        return {"w": mean}, math.nan

    def model(self, state: State) -> np.ndarray:
        """The meta-model."""
        return state["w"]
