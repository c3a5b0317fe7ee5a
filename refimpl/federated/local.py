"""The local problem of a node: min_w L_i(w) + (lam/2) ||w - centre||^2, solved by gradient steps.

A `Task` is the learning problem of a node: it draws objectives (a mini-batch, or all its data). Solvers see
only objectives, so networks and analytic problems are solved by the same code.

Source: mathematics.md §3 ([MG] eq. 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refimpl.contracts import LocalSolution, LocalSolutions, Objective, Task
from refimpl.errors import expect_numbers
from refimpl.kernels import vector
from refimpl.optim.prox.contract import check_alike


@dataclass(frozen=True)
class LocalSettings:
    """lam: Moreau weight; eta: step size; steps: gradient steps from the centre.

    own_rate: (start, stop, rate) of the entries of w that have a step size of their own, if any.
    """

    lam: float
    eta: float
    steps: int
    own_rate: tuple[int, int, float] | None = None

    def __post_init__(self) -> None:
        expect_numbers("LocalSettings", lam=self.lam)
        expect_numbers("LocalSettings", positive=True, eta=self.eta)
        expect_numbers("LocalSettings", positive=True, whole=True, steps=self.steps)

    def rates(self, size: int) -> list[tuple[slice, float]]:
        """The ranges of w (size,) and the step size of each."""
        if self.own_rate is None:
            return [(slice(size), self.eta)]
        start, stop, rate = self.own_rate
        return [(slice(start), self.eta), (slice(start, stop), rate), (slice(stop, size), self.eta)]


class Tally:
    """Adds up the cost of evaluations of measured objectives."""

    def __init__(self) -> None:
        self.gradients = 0
        self.flops = 0.0
        self.closed = 0.0

    def add(self, objective: Objective, gradients: int = 1) -> None:
        """Count the last evaluation as so many `gradients` (2 for a Hessian-vector product)."""
        self.gradients += gradients
        if hasattr(objective, "measure"):  # it is `Measured`; isinstance takes ten times as long
            flops, closed_share = objective.measure()
            self.flops += flops
            self.closed += gradients * closed_share

    def solution(self, w: np.ndarray, loss: float, residual: float) -> LocalSolution:
        """The node's answer with the totals."""
        return LocalSolution(w, loss, residual, self.gradients, self.flops, self.closed / self.gradients)


def solve_local(
    task: Task, centre: np.ndarray, settings: LocalSettings, rng: np.random.Generator
) -> LocalSolution:
    """`settings.steps` steps w <- w - eta (g(w) + lam (w - centre)) from the centre.

    centre (d,) float32/float64 is not changed. With lam = 0 this is local SGD.
    """
    check_alike("solve_local", centre=centre)
    found = _descend([task], centre, settings, [rng])
    if found is not None:
        return found.of(0)
    scalar = centre.dtype.type
    lam, rates = scalar(settings.lam), settings.rates(centre.size)
    w, gradient = centre.copy(), np.empty_like(centre)
    tally, first_loss, residual = Tally(), np.nan, np.nan
    for step, objective in enumerate(task.draw(rng, settings.steps)):
        loss = objective(w, gradient)
        first_loss = loss if step == 0 else first_loss
        if step == settings.steps - 1:
            residual = vector.local_residual(w, gradient, centre, lam)
        for where, eta in rates:
            vector.local_step(w[where], gradient[where], centre[where], scalar(eta), lam)
        tally.add(objective)
    return tally.solution(w, first_loss, float(residual))


def solve_each(
    tasks: Sequence[Task], centre: np.ndarray, settings: LocalSettings, rngs: Sequence[np.random.Generator]
) -> LocalSolutions:
    """`solve_local` for every task; in one compiled call, where the tasks can do that."""
    check_alike("solve_each", centre=centre)
    found = _descend(tasks, centre, settings, rngs)
    if found is not None:
        return found
    pairs = zip(tasks, rngs, strict=True)
    return LocalSolutions.stacked([solve_local(task, centre, settings, rng) for task, rng in pairs])


def _descend(
    tasks: Sequence[Any], centre: np.ndarray, settings: LocalSettings, rngs: Sequence[np.random.Generator]
) -> LocalSolutions | None:
    """The answers of tasks that run the whole iteration in compiled code, bit for bit; None if they cannot.

    Such a task has `descend_each` (`nn.task.NetworkTask`), which is called of the first of them.
    """
    if settings.own_rate is not None or not hasattr(tasks[0], "descend_each"):
        return None  # isinstance takes ten times as long
    eta, lam, steps = settings.eta, settings.lam, settings.steps
    found: LocalSolutions | None = tasks[0].descend_each(tasks, centre, eta, lam, steps, rngs)
    return found


def local_residual(objective: Objective, w: np.ndarray, centre: np.ndarray, lam: float) -> float:
    """||grad L_i(w) + lam (w - centre)|| at w; it bounds the error of an inexact solution (§7, §8.3)."""
    check_alike("local_residual", w=w, centre=centre)
    gradient = np.empty_like(w)
    objective(w, gradient)
    return float(vector.local_residual(w, gradient, centre, w.dtype.type(lam)))
