"""The server of methods that send their model to the nodes and average what comes back.

Source: mathematics.md §10; McMahan et al. 2017, Algorithm 1 (the mean), Nichol et al. 2018, Algorithm 2
(a step towards the mean).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refimpl.contracts import LocalSolution, LocalSolutions, State, Task
from refimpl.federated.local import LocalSettings, solve_each, solve_local
from refimpl.federated.methods.keys import eta_key, local_steps_key
from refimpl.federated.rounds import vectors_of
from refimpl.optim.prox.contract import check_alike
from refimpl.registry import check_keys, key


class OneModel:
    """A method whose state has the model w (d,), which is what it broadcasts and what it returns."""

    name: str

    def broadcast(self, state: State, round_: int) -> np.ndarray:
        """The model."""
        return self.model(state)

    def model(self, state: State) -> np.ndarray:
        """The model."""
        return vectors_of(self.name, state, "w")[0]


@dataclass(frozen=True, kw_only=True)
class Averaging(OneModel):
    """The whole state is the model w; the new model is the (uniform or weighted) mean of the answers.

    A node's answer is the end of `local_steps` steps of SGD, unless a method says otherwise.
    """

    eta: float = eta_key()
    local_steps: int = local_steps_key()
    name = "averaging"

    def __post_init__(self) -> None:
        check_keys(self.name, self)

    def start(self, w0: np.ndarray) -> State:
        """The model."""
        check_alike(self.name, w0=w0)
        return {"w": w0.copy()}

    def local(self, task: Task, point: np.ndarray, rng: np.random.Generator) -> LocalSolution:
        """w_i <- w_i - eta g_i(w_i), `local_steps` times from `point` (d,)."""
        return solve_local(task, point, LocalSettings(0.0, self.eta, self.local_steps), rng)

    def local_each(
        self, tasks: Sequence[Task], point: np.ndarray, rngs: Sequence[np.random.Generator]
    ) -> LocalSolutions:
        """`local` of each node."""
        return solve_each(tasks, point, LocalSettings(0.0, self.eta, self.local_steps), rngs)

    def server(self, state: State, round_: int, point: np.ndarray, mean: np.ndarray) -> tuple[State, float]:
        """The mean; there is no gradient mapping."""
        check_alike(self.name, point=point, mean=mean)
        return {"w": mean}, math.nan


@dataclass(frozen=True, kw_only=True)
class PartialAveraging(Averaging):
    """The new model is the model moved by the share `mix` of the way to the mean of the answers."""

    mix: float = key(1.0, "share of the way the server goes to the nodes' mean", above=0.0, search=(0.1, 1.0))

    def server(self, state: State, round_: int, point: np.ndarray, mean: np.ndarray) -> tuple[State, float]:
        """w + mix (mean - w); there is no gradient mapping."""
        check_alike(self.name, point=point, mean=mean)
        return {"w": point + point.dtype.type(self.mix) * (mean - point)}, math.nan
