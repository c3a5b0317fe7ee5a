"""The server of methods that send their model to the nodes and average what comes back.

Source: mathematics.md §10; McMahan et al. 2017, Algorithm 1 (the mean), Nichol et al. 2018, Algorithm 2
(a step towards the mean).
"""

from __future__ import annotations

import math

import numpy as np

from refimpl.federated.rounds import State, vectors_of
from refimpl.optim.prox.contract import check_alike


class Averaging:
    """The whole state is the model w; the new model is the (uniform or weighted) mean of the answers."""

    name: str

    def start(self, w0: np.ndarray) -> State:
        """The model."""
        check_alike(self.name, w0=w0)
        return {"w": w0.copy()}

    def broadcast(self, state: State, round_: int) -> np.ndarray:
        """The model."""
        return vectors_of(self.name, state, "w")[0]

    def server(self, state: State, round_: int, point: np.ndarray, mean: np.ndarray) -> tuple[State, float]:
        """The mean; there is no gradient mapping."""
        check_alike(self.name, point=point, mean=mean)
        return {"w": mean}, math.nan

    def model(self, state: State) -> np.ndarray:
        """The model."""
        return vectors_of(self.name, state, "w")[0]


def towards(w: np.ndarray, mean: np.ndarray, mix: float) -> np.ndarray:
    """w + mix (mean - w)."""
    return w + w.dtype.type(mix) * (mean - w)
