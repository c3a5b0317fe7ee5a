"""FedAvg: local SGD from the server's model, server mean.

Source: mathematics.md §10; McMahan et al. 2017, Algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from refimpl.federated.local import LocalSettings, LocalSolution, Task, solve_local
from refimpl.federated.rounds import State


@dataclass(frozen=True)
class FedAvg:
    """eta: local rate; steps: local gradient steps a round."""

    eta: float
    steps: int
    name: str = "fedavg"

    def start(self, w0: np.ndarray) -> State:
        """The model."""
        return {"w": w0.copy()}

    def broadcast(self, state: State, round_: int) -> np.ndarray:
        """The model."""
        return state["w"]

    def local(self, task: Task, point: np.ndarray, rng: np.random.Generator) -> LocalSolution:
        """w_i <- w_i - eta g_i(w_i), `steps` times."""
        return solve_local(task, point, LocalSettings(0.0, self.eta, self.steps), rng)

    def server(self, state: State, round_: int, point: np.ndarray, mean: np.ndarray) -> tuple[State, float]:
        """The mean; FedAvg has no gradient mapping."""
        return {"w": mean}, math.nan

    def model(self, state: State) -> np.ndarray:
        """The model."""
        return state["w"]
