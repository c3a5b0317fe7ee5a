"""What the meta-gradient methods share: outer steps along a gradient that looks ahead of w.

Each of their outer steps is w <- w - eta d, and they differ in d alone (mathematics.md §10). Inner and
outer gradients use batches of their own, and each outer step looks ahead from the current w.

Source: mathematics.md §10; Finn et al. 2017, Algorithm 1; Fallah et al. 2020, Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from refimpl.contracts import LocalSolution, Objective, Task
from refimpl.federated.local import Tally
from refimpl.federated.methods.averaging import Averaging
from refimpl.federated.methods.keys import alpha_key
from refimpl.kernels import vector
from refimpl.optim.prox.contract import check_alike


@dataclass(frozen=True, kw_only=True)
class LookingAhead(Averaging):
    """Outer steps along the gradient after the inner steps, as if that point did not depend on w.

    A method with second-order terms has a `meta_gradient` of its own.
    """

    alpha: float = alpha_key()
    inner_steps = 1

    @property
    def batches(self) -> int:
        """How many batches an outer step draws: one for each inner step, and the outer one."""
        return self.inner_steps + 1

    def local(self, task: Task, point: np.ndarray, rng: np.random.Generator) -> LocalSolution:
        """`local_steps` times w <- w - eta d from `point` (d,), each d from fresh independent batches.

        The loss reported is that of the methods' objective in the first step: after the inner steps, on the
        outer batch; the residual is the norm of the last d.
        """
        check_alike(self.name, point=point)
        w, d = point.copy(), point
        scalar = point.dtype.type
        tally, first_loss = Tally(), math.nan
        drawn = iter(task.draw(rng, self.batches * self.local_steps))
        for step in range(self.local_steps):
            loss, d = self.meta_gradient(w, list(islice(drawn, self.batches)), tally)
            first_loss = loss if step == 0 else first_loss
            vector.local_step(w, d, point, scalar(self.eta), scalar(0.0))
        return tally.solution(w, first_loss, float(vector.norm(d)))

    def meta_gradient(
        self, w: np.ndarray, batches: Sequence[Objective], tally: Tally
    ) -> tuple[float, np.ndarray]:
        """The loss after the inner steps, and d = g(w~; D'), w~ being where they end."""
        *inners, outer = batches
        return gradient_at(outer, look_ahead(w, inners, self.alpha, tally)[-1], tally)


def look_ahead(
    w: np.ndarray,
    inners: Sequence[Objective],
    alpha: float,
    tally: Tally,
    moves: np.ndarray | None = None,
) -> list[np.ndarray]:
    """w and the points after each inner step w <- w - alpha g, one step on each of `inners`.

    moves (d,): ones where the steps move w and zeros where they do not; None: they move all of it.
    """
    points, gradient = [w], np.empty_like(w)
    for inner in inners:
        inner(points[-1], gradient)
        tally.add(inner)
        step = gradient if moves is None else moves * gradient
        points.append(points[-1] - w.dtype.type(alpha) * step)
    return points


def gradient_at(objective: Objective, w: np.ndarray, tally: Tally) -> tuple[float, np.ndarray]:
    """Value and a new gradient at w, counted."""
    gradient = np.empty_like(w)
    loss = objective(w, gradient)
    tally.add(objective)
    return loss, gradient
