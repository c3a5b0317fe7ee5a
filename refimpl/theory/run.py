"""Run the federated method on analytic nodes, and record everything that the checks need.

The method is `MetaGater` of `federated.methods.metagater` itself, with full participation and full batches,
so that the checks apply to the code that trains networks.

Source: mathematics.md §4 and §8.4 (what a run must record). Derived.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice

import numpy as np

from refimpl.contracts import LocalSolution, Objective, Schedule, Task, Vector
from refimpl.federated.local import LocalSettings, local_residual
from refimpl.federated.methods.metagater import MetaGater
from refimpl.kernels import vector
from refimpl.theory.gap import check_convexity, solve_exactly
from refimpl.theory.problems import Loss, Problem


@dataclass(frozen=True)
class LossTask:
    """A node whose every batch is the whole analytic loss."""

    loss: Loss
    size: int = 1

    def draw(self, rng: np.random.Generator, count: int) -> Iterable[Objective]:
        """The loss itself, every time."""
        return [self.loss] * count


@dataclass(frozen=True)
class ExactMetaGater(MetaGater):
    """The method with local problems solved to rounding: the idealised algorithm of the theory."""

    def local(self, task: Task, point: Vector, rng: np.random.Generator) -> LocalSolution:
        """w_i*(point), for a `LossTask`."""
        assert isinstance(task, LossTask)
        found = solve_exactly(task.loss, point, self.local_settings.lam)
        return LocalSolution(found.w, found.value, found.residual, 0, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Round:
    """The record of one iteration."""

    k: int
    md: Vector  # centre of the local problems
    gradient: Vector  # g_k = lam (md - mean of answers)
    residual: float  # mean over nodes of the local objective's gradient norm at the answers
    x: Vector  # x_k
    ag: Vector  # xag_k
    gap: float  # ||G~_k||, as the server reports it
    answers: tuple[Vector, ...]  # w~_i, one a node


@dataclass(frozen=True, eq=False)
class Run:
    """The settings of a run and all its rounds; `rounds[k - 1]` is iteration k."""

    problem: Problem
    lam: float
    beta: float
    steps: int  # local gradient steps; 0 for exact local solutions
    w0: Vector
    rounds: list[Round]

    @property
    def name(self) -> str:
        """The family and how exactly its local problems were solved."""
        return f"{self.problem.name}, {f's={self.steps}' if self.steps else 'exact'}"


def rounds_of(
    problem: Problem, lam: float, schedule: Schedule, w0: Vector, steps: int = 0
) -> Iterator[Round]:
    """The rounds of the method from w0 with `steps` local gradient steps of size 1/lam, without end.

    steps = 0 means exact local solutions.
    """
    settings = LocalSettings(lam, 1.0 / lam, max(steps, 1))
    kind = MetaGater if steps else ExactMetaGater
    method = kind(settings, schedule, problem.penalty)
    tasks = [LossTask(loss) for loss in problem.losses]
    uniform = np.full(len(tasks), 1.0 / len(tasks))
    unused = np.random.default_rng(0)  # full batches: nothing is drawn
    state = method.start(w0)
    for k in count(1):
        md = method.broadcast(state, k)
        answers = tuple(method.local(task, md, unused).w for task in tasks)
        mean = np.empty_like(md)
        vector.mean_of_rows(np.stack(answers), uniform, mean)
        state, gap = method.server(state, k, md, mean)
        residuals = [local_residual(task.loss, w, md, lam) for task, w in zip(tasks, answers, strict=True)]
        residual, g = float(np.mean(residuals)), lam * (md - mean)
        yield Round(k, md, g, residual, state["x"], state["ag"], gap, answers)


def record(
    problem: Problem, lam: float, beta: float, schedule: Schedule, w0: Vector, rounds: int, steps: int = 0
) -> Run:
    """The first `rounds` of `rounds_of`.

    beta is the b of the theory, which the checks use to recompute a_k, b_k, l_k independently; `schedule` is
    the one that is run.
    """
    check_convexity("record", problem.smoothness, lam)
    found = islice(rounds_of(problem, lam, schedule, w0, steps), rounds)
    return Run(problem, lam, beta, steps, w0, list(found))
