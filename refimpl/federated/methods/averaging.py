"""The server of methods that send their model to the nodes and average what comes back.

Source: mathematics.md §10; McMahan et al. 2017, Algorithm 1 (the mean), Nichol et al. 2018, Algorithm 2
(a step towards the mean).
"""

from __future__ import annotations

import math

import numpy as np

from refimpl.federated.rounds import State


class Averaging:
    """The whole state is the model w; the new model is the (uniform or weighted) mean of the answers."""

    def start(self, w0: np.ndarray) -> State:
        """The model."""
        return {"w": w0.copy()}

    def broadcast(self, state: State, round_: int) -> np.ndarray:
        """The model."""
        return state["w"]

    def server(self, state: State, round_: int, point: np.ndarray, mean: np.ndarray) -> tuple[State, float]:
        """The mean; there is no gradient mapping."""
        return {"w": mean}, math.nan

    def model(self, state: State) -> np.ndarray:
        """The model."""
        return state["w"]


def towards(w: np.ndarray, mean: np.ndarray, mix: float) -> np.ndarray:
    """w + mix (mean - w)."""
    return w + w.dtype.type(mix) * (mean - w)
