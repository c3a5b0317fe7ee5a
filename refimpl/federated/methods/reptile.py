"""Reptile: the server moves part of the way to the mean of the nodes' SGD end points.

With eps = 1 it is FedAvg; with one local step it is FedAvg with local rate eps eta.
Source: mathematics.md §10; Nichol et al. 2018, Algorithm 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from refimpl.errors import expect_numbers
from refimpl.federated.local import LocalSettings, LocalSolution, Task, solve_local
from refimpl.federated.methods.averaging import Averaging, towards
from refimpl.federated.rounds import State
from refimpl.optim.prox.contract import check_alike


@dataclass(frozen=True)
class Reptile(Averaging):
    """eta: local rate; steps: local gradient steps a round; eps: share of the way the server goes."""

    eta: float
    steps: int
    eps: float
    name: str = "reptile"

    def __post_init__(self) -> None:
        LocalSettings(0.0, self.eta, self.steps)
        expect_numbers(self.name, positive=True, eps=self.eps)

    def local(self, task: Task, point: np.ndarray, rng: np.random.Generator) -> LocalSolution:
        """phi_i: `steps` steps of SGD from w."""
        return solve_local(task, point, LocalSettings(0.0, self.eta, self.steps), rng)

    def server(self, state: State, round_: int, point: np.ndarray, mean: np.ndarray) -> tuple[State, float]:
        """w <- w + eps (mean phi_i - w)."""
        check_alike(self.name, point=point, mean=mean)
        return {"w": towards(point, mean, self.eps)}, math.nan
