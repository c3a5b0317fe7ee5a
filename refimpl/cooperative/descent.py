"""Stochastic gradient descent with momentum and weight decay, and how its rate falls.

Source: mathematics.md §15.4; Sutskever et al. 2013 (momentum, in the form that PyTorch uses),
Loshchilov & Hutter 2017, eq. 5 (`cosine`, one period), He et al. 2016, section 4.2 (`steps`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from refimpl.contracts import State
from refimpl.errors import one_of

SCHEDULES = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "steps": lambda done: 0.1 ** ((done >= 0.5) + (done >= 0.75)),  # a tenth at half, and at three quarters
}


@dataclass(frozen=True)
class Momentum:
    """v <- momentum v + g + decay w, w <- w - rate v.

    rate: the learning rate at the start; schedule: how it falls, by its name in `SCHEDULES`; momentum: the
    share of v that is kept; decay: the weight decay; decays: how many entries, from the first on, decay
    (None: all).
    """

    rate: float
    momentum: float = 0.9
    decay: float = 0.0
    schedule: str = "constant"
    decays: int | None = None

    def __post_init__(self) -> None:
        one_of("Momentum", "schedule", self.schedule, tuple(SCHEDULES))

    def start(self, w: np.ndarray) -> State:
        """w and a velocity of 0."""
        return {"w": w.copy(), "velocity": np.zeros_like(w)}

    def rate_at(self, done: float) -> float:
        """The rate when a share `done` of the training lies behind."""
        return self.rate * SCHEDULES[self.schedule](done)

    def step(self, state: State, g: np.ndarray, done: float) -> State:
        """The state after a step along g (d,), which is changed."""
        w, number = state["w"], state["w"].dtype.type
        g[: self.decays] += number(self.decay) * w[: self.decays]
        velocity = number(self.momentum) * state["velocity"] + g
        return {"w": w - number(self.rate_at(done)) * velocity, "velocity": velocity}

    def model(self, state: State) -> np.ndarray:
        """The parameters."""
        return state["w"]
