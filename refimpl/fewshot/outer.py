"""The server's optimisers: a step along the mean of the tasks' meta-gradients.

An optimiser keeps vectors of its own beside the model (its state), which go into checkpoints with it.

Source: mathematics.md §13.2; Kingma & Ba 2015, Algorithm 1 (Adam).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from refimpl.contracts import State


class Outer(Protocol):
    """An optimiser of the meta-model w (d,)."""

    def start(self, w: np.ndarray) -> State:
        """Its vectors before round 1."""

    def step(self, state: State, round_: int, w: np.ndarray, g: np.ndarray) -> State:
        """The new w and vectors after a step along g (d,) in round `round_`, which counts from 1."""


@dataclass(frozen=True)
class SGD:
    """w <- w - eta g."""

    eta: float

    def start(self, w: np.ndarray) -> State:
        """It keeps nothing."""
        return {}

    def step(self, state: State, round_: int, w: np.ndarray, g: np.ndarray) -> State:
        """The new w."""
        return {"w": w - w.dtype.type(self.eta) * g}


@dataclass(frozen=True)
class Adam:
    """w <- w - eta m^ / (sqrt(v^) + eps), with running means m of g and v of g^2, corrected for their start.

    m^ = m / (1 - beta1^k) and v^ = v / (1 - beta2^k) in round k.
    """

    eta: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def start(self, w: np.ndarray) -> State:
        """Both means are zero."""
        return {"m": np.zeros_like(w), "v": np.zeros_like(w)}

    def step(self, state: State, round_: int, w: np.ndarray, g: np.ndarray) -> State:
        """The new w and means."""
        number = w.dtype.type
        m = state["m"] + number(1 - self.beta1) * (g - state["m"])
        v = state["v"] + number(1 - self.beta2) * (g * g - state["v"])
        rate = number(self.eta / (1 - self.beta1**round_))
        spread = np.sqrt(v / number(1 - self.beta2**round_)) + number(self.eps)
        return {"w": w - rate * m / spread, "m": m, "v": v}


OUTER = {"sgd": SGD, "adam": Adam}
