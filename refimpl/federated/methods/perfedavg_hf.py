"""Per-FedAvg, Hessian-free variant: the Hessian's product with v as a difference of two gradients.

Exact on quadratics whatever delta; on smooth losses the error is O(delta^2), plus rounding of order
1/delta. Where w + delta v and w - delta v lie on different sides of a kink of ReLU or max-pooling, the
jump of the gradient is divided by delta too: no delta is small enough for all batches. The smaller delta,
the rarer kinks are, but the larger is rounding. `python -m bench.delta` measures both against exact products:
on batches of 100, the error exceeds the term itself in 9 % of the steps with delta 1e-4, in either dtype.
`DELTA` is chosen by it. In float32, 1e-5 has a median error of 2 % and exceeds the term in 2.5 % of the
steps; 1e-6 would in 1 %, but has a median of 17 %. In float64, 1e-7 has a median of 5e-9 and never did. So
the second-order term is rough in float32; float64, or `maml` with its exact products, has it right.
Source: mathematics.md §10; Fallah et al. 2020, section 5 (HF-MAML).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from refimpl.errors import expect_numbers
from refimpl.federated.local import Curved, LocalSolution, Objective, Tally, Task
from refimpl.federated.methods.averaging import Averaging
from refimpl.federated.methods.meta import expect_rates, gradient_at, look_ahead, outer_steps
from refimpl.kernels import vector
from refimpl.optim.prox.contract import check_alike

DELTA = {"float32": 1e-5, "float64": 1e-7}  # by dtype, if none is asked for


class CurvedObjective(Objective, Curved, Protocol):
    """An objective that also has exact products."""


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
        expect_numbers(self.name, positive=True, delta=self.delta)

    def local(self, task: Task, point: np.ndarray, rng: np.random.Generator) -> LocalSolution:
        """w~ = w - alpha g(w; D); v = g(w~; D'); w <- w - beta (v - alpha d), with d as below.

        d = [g(w + delta v; D'') - g(w - delta v; D'')]/(2 delta), D, D', D'' independent batches.
        """
        return outer_steps(task, point, rng, self.beta, self.steps, 3, self._meta_gradient)

    def _meta_gradient(
        self, w: np.ndarray, batches: Sequence[Objective], tally: Tally
    ) -> tuple[float, np.ndarray]:
        inner, outer, curve = batches
        _, ahead = look_ahead(w, [inner], self.alpha, tally)
        loss, v = gradient_at(outer, ahead, tally)
        d = difference(curve, w, v, self.delta, tally)
        return loss, v - w.dtype.type(self.alpha) * d


def difference(objective: Objective, w: np.ndarray, v: np.ndarray, delta: float, tally: Tally) -> np.ndarray:
    """[g(w + delta v) - g(w - delta v)]/(2 delta), which stands for the Hessian's product with v."""
    scalar = w.dtype.type
    step = scalar(delta) * v
    _, above = gradient_at(objective, w + step, tally)
    _, below = gradient_at(objective, w - step, tally)
    return (above - below) / scalar(2 * delta)


def relative_error(objective: CurvedObjective, w: np.ndarray, v: np.ndarray, delta: float) -> float:
    """||difference - H v|| / ||H v||, H v exact: what `python -m bench.delta` measures."""
    check_alike("relative_error", w=w, v=v)
    exact = objective.hessian_vector(w, v)
    off = difference(objective, w, v, delta, Tally()) - exact
    return float(vector.norm(off)) / float(vector.norm(exact))
