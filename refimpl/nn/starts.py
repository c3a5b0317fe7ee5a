"""How the gates of a network start: open for every sample, or calibrated so that they tell samples apart.

The usual start of mathematics.md §2.2 has decisions near 1 that hardly depend on the input, and training
does not change that much. The calibrated start draws the same numbers, and then scales and centres the hidden
units on samples of the nodes, so that each is active for about half of them. It changes the start alone.

Source: mathematics.md §2.2b. Derived.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from refimpl.kernels import linear, vector
from refimpl.nn.context import Context
from refimpl.nn.gate import LOGIT_STD, ChannelGate
from refimpl.nn.network import Network
from refimpl.nn.norms import FrozenNorm2d
from refimpl.registry import STARTS, check_keys, key

What = Callable[[Network, ChannelGate, np.ndarray, np.ndarray], np.ndarray]
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
    gate_samples: int = key(
        40, "training samples of each node that calibrate gates or centre summaries", at_least=1
    )

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
        for gate in (block.gate for block in network.gates):
            self._look(network, gate, started, nodes)
        return started

    def _look(self, network: Network, gate: ChannelGate, w: np.ndarray, nodes: Sequence[np.ndarray]) -> None:
        """Set in w what the samples decide of a gate: the statistics of a centred summary."""
        if isinstance(gate.norm, FrozenNorm2d):
            params = network.layout.views(w)
            mean, variance, _ = gate.norm.statistics(params)
            mean[:], spread = self._told(network, gate, w, nodes, _summaries)
            variance[:] = spread * spread

    def _told(
        self, network: Network, gate: ChannelGate, w: np.ndarray, nodes: Sequence[np.ndarray], what: What
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation over the nodes' first samples, from what each node tells of its own."""
        told = np.stack([moments(what(network, gate, w, x[: self.gate_samples])) for x in nodes])
        mean, square = _mean(told.reshape(len(told), -1)).reshape(2, -1)
        return mean, np.sqrt(np.maximum(square - mean * mean, 0.0))


@STARTS.register("calibrated")
@dataclass(frozen=True)
class Calibrated(Open):
    """Hidden units with mean 0 and standard deviation `gate_a1` over some training samples of all nodes.

    The server has no samples. Each training node tells it, once and before round 1, the mean and mean square
    of each hidden unit over its first `gate_samples` training samples; the server takes the means of these
    over the nodes. Gates are calibrated one after the other, as a later one sees what an earlier one closed.
    """

    def _look(self, network: Network, gate: ChannelGate, w: np.ndarray, nodes: Sequence[np.ndarray]) -> None:
        """Set the statistics, then scale and centre the hidden units; there is at least one node."""
        super()._look(network, gate, w, nodes)
        mean, spread = self._told(network, gate, w, nodes, _units)
        varies = spread > ROUNDING * np.sqrt(spread * spread + mean * mean)
        factor = np.divide(self.gate_a1, spread, out=np.ones_like(spread), where=varies)
        views = network.layout.views(w)
        bias, weight = views[f"{gate.name}.fc1.bias"], views[f"{gate.name}.fc1.weight"]
        bias[:] = (bias - mean) * factor
        weight[:] = weight * factor[:, None]


def _units(network: Network, gate: ChannelGate, w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The gate's hidden units before ReLU, (N, hidden)."""
    views = network.layout.views(w)
    weight, bias = views[f"{gate.name}.fc1.weight"], views[f"{gate.name}.fc1.bias"]
    return linear.forward(_seen(network, gate, w, x), weight, bias)


def _summaries(network: Network, gate: ChannelGate, w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The summaries (N, channels) of a gate with a centred one, as they are before that."""
    mean, variance, eps = gate.norm.statistics(network.layout.views(w))  # type: ignore[union-attr]
    return _seen(network, gate, w, x) * np.sqrt(variance.astype(np.float64) + eps) + mean


def _seen(network: Network, gate: ChannelGate, w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What A1 is applied to."""
    return network.decisions(network.forward(w, x, Context())[1])[gate.name].summary


def moments(values: np.ndarray) -> np.ndarray:
    """What a node tells of values (N, k): their means and mean squares, (2, k)."""
    wide = values.astype(np.float64)
    return np.stack([_mean(wide), _mean(wide * wide)])


def _mean(rows: np.ndarray) -> np.ndarray:
    """The mean of float64 rows, summed in their order."""
    out = np.empty(rows.shape[1])
    vector.mean_of_rows(np.ascontiguousarray(rows), np.full(len(rows), 1.0 / len(rows)), out)
    return out
