"""Random inputs of cases: normal numbers, and exact zeros and ties, where implementations differ.

Source: mathematics.md §2.2, §2.3. Derived. Implementations differ at exact zeros and ties, so every case
has some: channel 0 of the first weighted layer is zero before its ReLU for every sample, the first hidden
unit of every gate is zero too, and the last channel of every gate has zero logits (d = 0, which is off).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from refimpl.crosscheck.golden.case import NOISE, PARAM, Arrays
from refimpl.crosscheck.golden.describe import describe
from refimpl.nn.context import Gating
from refimpl.nn.layout import Layout
from refimpl.nn.network import Network
from refimpl.rng import SeedTree

# Added to the initial gate parameters, to weights over the root of their fan-in, so that some channels are
# off and no gate is saturated: sigmoid's derivative, 0 there but for rounding, is all that its gate learns.
GATE_NOISE = 1.0
BIAS_NOISE = 0.1  # added to all biases


Samples = tuple[np.ndarray, np.ndarray]  # x (..., *input_shape) with labels (...)


class Draw:
    """Draws the numbers of one case from a stream of its own, in the case's dtype.

    data: samples x (M, ...) of that dtype with labels (M,), from which samples are drawn, if there are any.
    """

    def __init__(self, seed: int, name: str, dtype: str, data: Samples | None = None) -> None:
        self.rng = SeedTree(seed).generator(f"golden {name}")
        self.dtype, self.data = dtype, data

    def normal(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        """Standard normal numbers times `scale`, rounded once to the dtype."""
        return (scale * self.rng.standard_normal(shape)).astype(self.dtype)

    def coarse(self, *shape: int) -> np.ndarray:
        """Multiples of 1/2 around 0, with many zeros and ties."""
        return (np.round(2 * self.rng.standard_normal(shape)) / 2).astype(self.dtype)

    def labels(self, *shape: int, classes: int) -> np.ndarray:
        """Class numbers, int64."""
        return self.rng.integers(classes, size=shape)

    def samples(self, network: Network, *shape: int) -> Samples:
        """Samples (*shape, *input_shape) and labels (*shape): normal numbers, or taken from the data."""
        if self.data is None:
            x = self.normal(*shape, *network.input_shape)
            return x, self.labels(*shape, classes=network.classes)
        chosen = self.rng.integers(len(self.data[1]), size=shape)
        return self.data[0][chosen], self.data[1][chosen]

    def mask(self, *shape: int) -> np.ndarray:
        """A mask of which about half is true."""
        return self.rng.random(shape) < 0.5

    def noise(self, network_gates: Mapping[str, int], *shape: int) -> Arrays:
        """`noise.<gate>` arrays (*shape, K) of Logistic(0, 1) numbers, for gates and their channels."""
        return {
            NOISE + gate: self.rng.logistic(size=(*shape, channels)).astype(self.dtype)
            for gate, channels in network_gates.items()
        }

    def params(self, layout: Layout, zeros: bool = True) -> Arrays:
        """`param.<name>` arrays with which some channels are off; with `zeros`, also exact zeros and ties."""
        w = layout.initialise(SeedTree(int(self.rng.integers(2**31))), "float64")
        views = layout.views(w)
        for slot in layout.slots:
            gate, fan_in = slot.parameter.part == "phi", math.prod(slot.shape[1:])
            if gate or len(slot.shape) == 1:
                scale = GATE_NOISE / math.sqrt(fan_in) if gate else BIAS_NOISE
                views[slot.name] += scale * self.rng.standard_normal(slot.shape)
        if zeros:
            _put_zeros(layout, views)
        return {PARAM + name: view.astype(self.dtype) for name, view in views.items()}

    def inputs(self, network: Network, gating: Gating, *shape: int, zeros: bool = True) -> Arrays:
        """Parameters of the network, samples and labels of that shape, and their noise in mode `gumbel`."""
        inputs = self.params(network.layout, zeros)
        inputs["x"], inputs["labels"] = self.samples(network, *shape)
        return inputs | (self.noise(gates_of(network), *shape) if gating.mode == "gumbel" else {})


def _put_zeros(layout: Layout, views: Arrays) -> None:
    """Set parameters to zero so that a unit is exactly 0 before ReLU, and a gate has a tie."""
    first = layout.slots[0].name.rpartition(".")[0]
    dead = [name for name in views if name.endswith((".gate.fc1.weight", ".gate.fc1.bias"))]
    for name in (f"{first}.weight", f"{first}.bias", *dead):
        if name in views:
            views[name][0] = 0
    for name in views:
        if name.endswith((".gate.fc2.weight", ".gate.fc2.bias")):
            views[name][-2:] = 0


def gates_of(network: Network) -> dict[str, int]:
    """The number of channels of every gate, by the gate's name."""
    return {block.gate.name: block.gate.out_channels for block in network.gates}


def network_settings(network: Network, gating: Gating) -> dict[str, Any]:
    """The settings that describe a network: layers, input shape, order of the parameters, gating."""
    return {
        "layers": describe(network.layers),
        "input_shape": list(network.input_shape),
        "parameters": [[slot.name, list(slot.shape)] for slot in network.layout.slots],
        "backbone_size": network.layout.theta.stop,
        "gating": gating_settings(gating),
    }


def gating_settings(gating: Gating) -> dict[str, Any]:
    """How gates decide, and how they are shaped if batch-shaping is on."""
    told = asdict(gating)
    return told if gating.shaping.weight else {key: told[key] for key in told if key != "shaping"}
