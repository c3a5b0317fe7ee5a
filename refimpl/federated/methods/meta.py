"""What the meta-gradient methods share: outer steps along a gradient that looks ahead of w.

Each of their outer steps is w <- w - beta d, and they differ in d alone (mathematics.md §10). Inner and
outer gradients use batches of their own, and each outer step looks ahead from the current w.

Source: mathematics.md §10; Finn et al. 2017, Algorithm 1; Fallah et al. 2020, Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np

from refimpl.errors import expect_numbers
from refimpl.federated.local import LocalSolution, Objective, Tally, Task
from refimpl.kernels import vector
from refimpl.optim.prox.contract import check_alike

# (w, the step's objectives, tally) -> loss after the inner steps, meta-gradient d
MetaGradient = Callable[[np.ndarray, Sequence[Objective], Tally], tuple[float, np.ndarray]]


def outer_steps(
    task: Task,
    point: np.ndarray,
    rng: np.random.Generator,
    beta: float,
    steps: int,
    batches: int,
    meta_gradient: MetaGradient,
) -> LocalSolution:
    """`steps` times w <- w - beta d from `point` (d,), each d from `batches` fresh batches.

    The loss reported is that of the methods' objective in the first step: after the inner steps, on the
    outer batch; the residual is the norm of the last d.
    """
    check_alike("outer_steps", point=point)
    w, d = point.copy(), point
    scalar = point.dtype.type
    tally, first_loss = Tally(), math.nan
    drawn = iter(task.draw(rng, batches * steps))
    for step in range(steps):
        loss, d = meta_gradient(w, list(islice(drawn, batches)), tally)
        first_loss = loss if step == 0 else first_loss
        vector.local_step(w, d, point, scalar(beta), scalar(0.0))
    return tally.solution(w, first_loss, float(vector.norm(d)))


def look_ahead(w: np.ndarray, inners: Sequence[Objective], alpha: float, tally: Tally) -> list[np.ndarray]:
    """w and the points after each inner step w <- w - alpha g, one step on each of `inners`."""
    points, gradient = [w], np.empty_like(w)
    for inner in inners:
        inner(points[-1], gradient)
        tally.add(inner)
        points.append(points[-1] - w.dtype.type(alpha) * gradient)
    return points


def gradient_at(objective: Objective, w: np.ndarray, tally: Tally) -> tuple[float, np.ndarray]:
    """Value and a new gradient at w, counted."""
    gradient = np.empty_like(w)
    loss = objective(w, gradient)
    tally.add(objective)
    return loss, gradient


def expect_rates(who: str, alpha: float, beta: float, steps: int, inner_steps: int = 1) -> None:
    """Raise `InputError` unless alpha >= 0, beta > 0 and there are steps; alpha = 0 looks nowhere ahead."""
    expect_numbers(who, positive=True, beta=beta)
    expect_numbers(who, positive=True, whole=True, steps=steps, inner_steps=inner_steps)
    expect_numbers(who, alpha=alpha)
