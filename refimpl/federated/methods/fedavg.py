"""FedAvg: local SGD from the server's model, server mean.

Source: mathematics.md §10; McMahan et al. 2017, Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refimpl.federated.local import LocalSettings, LocalSolution, Task, solve_local
from refimpl.federated.methods.averaging import Averaging


@dataclass(frozen=True)
class FedAvg(Averaging):
    """eta: local rate; steps: local gradient steps a round."""

    eta: float
    steps: int
    name: str = "fedavg"

    def __post_init__(self) -> None:
        LocalSettings(0.0, self.eta, self.steps)

    def local(self, task: Task, point: np.ndarray, rng: np.random.Generator) -> LocalSolution:
        """w_i <- w_i - eta g_i(w_i), `steps` times."""
        return solve_local(task, point, LocalSettings(0.0, self.eta, self.steps), rng)
