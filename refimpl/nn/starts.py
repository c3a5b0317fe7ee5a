"""How the gates of a network start: open for every sample, or calibrated so that they tell samples apart.

The usual start of mathematics.md §2.2 has decisions near 1 that hardly depend on the input, and training
does not change that much. The calibrated start draws the same numbers, and then scales and centres the hidden
units on samples of the nodes, so that each is active for about half of them. It changes the start alone.

Source: mathematics.md §2.2b. Derived.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from refimpl.kernels import linear, vector
from refimpl.nn.context import Context
from refimpl.nn.gate import LOGIT_STD, ChannelGate
from refimpl.nn.network import Network
from refimpl.registry import STARTS, check_keys, key

ROUNDING = 1e-6  # a hidden unit that varies by a smaller share of its size does not vary


@STARTS.register("open")
@dataclass(frozen=True)
class Open:
    """A1, A2 and b2 as in §2.2, at scales of your own; with the usual ones w stays as it is, bit for bit."""

    gate_a1: float = key(
        1.0, "scale of A1 at the start (calibrated: the standard deviation of hidden units)", at_least=0.0
    )
    gate_a2: float = key(LOGIT_STD, "standard deviation of A2 at the start", at_least=0.0)
    gate_margin: float = key(0.5, "biases at the start: b2 = (-margin, margin) for each channel")

    name: ClassVar[str]

    def __post_init__(self) -> None:
        check_keys(f"gate_start {self.name}", self)

    def begin(self, network: Network, w: np.ndarray, nodes: Sequence[np.ndarray]) -> np.ndarray:
        """A copy of the fresh w (d,) with its gates started; `nodes` are the nodes' training samples."""
        network.layout.check("gate start", w)
        started = w.copy()
        views = network.layout.views(started)
        for gate in (block.gate for block in network.gates):
            views[f"{gate.name}.fc1.weight"] *= w.dtype.type(self.gate_a1)
            views[f"{gate.name}.fc2.weight"] *= w.dtype.type(self.gate_a2 / LOGIT_STD)
            views[f"{gate.name}.fc2.bias"].reshape(-1, 2)[:] = -self.gate_margin, self.gate_margin
        return started


@STARTS.register("calibrated")
@dataclass(frozen=True)
class Calibrated(Open):
    """Hidden units with mean 0 and standard deviation `gate_a1` over some training samples of all nodes.

    The server has no samples. Each training node tells it, once and before round 1, the mean and mean square
    of each hidden unit over its first `gate_samples` training samples; the server takes the means of these
    over the nodes. Gates are calibrated one after the other, as a later one sees what an earlier one closed.
    """

    gate_samples: int = key(40, "training samples of each node that calibrate the gates", at_least=1)

    def begin(self, network: Network, w: np.ndarray, nodes: Sequence[np.ndarray]) -> np.ndarray:
        """See the class; the nodes are at least one."""
        started = super().begin(network, w, nodes)
        for gate in (block.gate for block in network.gates):
            told = np.stack([moments(network, gate, started, x[: self.gate_samples]) for x in nodes])
            mean, square = _mean(told.reshape(len(told), -1)).reshape(2, gate.hidden)
            spread = np.sqrt(np.maximum(square - mean * mean, 0.0))
            varies = spread > ROUNDING * np.sqrt(square)
            factor = np.divide(self.gate_a1, spread, out=np.ones_like(spread), where=varies)
            views = network.layout.views(started)
            bias, weight = views[f"{gate.name}.fc1.bias"], views[f"{gate.name}.fc1.weight"]
            bias[:] = (bias - mean) * factor
            weight[:] = weight * factor[:, None]
        return started


def moments(network: Network, gate: ChannelGate, w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What a node tells of a gate: mean and mean square of its hidden units before ReLU, (2, hidden)."""
    _, trace = network.forward(w, x, Context())
    views = network.layout.views(w)
    weight, bias = views[f"{gate.name}.fc1.weight"], views[f"{gate.name}.fc1.bias"]
    units = linear.forward(network.decisions(trace)[gate.name].summary, weight, bias).astype(np.float64)
    return np.stack([_mean(units), _mean(units * units)])


def _mean(rows: np.ndarray) -> np.ndarray:
    """The mean of float64 rows, summed in their order."""
    out = np.empty(rows.shape[1])
    vector.mean_of_rows(np.ascontiguousarray(rows), np.full(len(rows), 1.0 / len(rows)), out)
    return out
