"""The network that cases are made of: one of the package's, or one of a user's own."""

import re
from dataclasses import dataclass

import numpy as np

from refimpl.crosscheck.golden.describe import LAYERS
from refimpl.crosscheck.golden.draw import Draw, Samples
from refimpl.errors import InputError, expect_numbers
from refimpl.nn.chain import Residual
from refimpl.nn.context import MODES, Gating
from refimpl.nn.gate import Gated
from refimpl.nn.layers import BatchNorm2d
from refimpl.nn.network import Network
from refimpl.nn.plan import every_layer


@dataclass(frozen=True)
class Subject:
    """The network, the number of samples in a batch, and the samples that are drawn from.

    samples: x (M, *input_shape) with labels (M,), or None for normal numbers with any labels. Raises
    `InputError` for a layer that golden files cannot describe, and for samples that do not fit the network.
    """

    network: Network
    batch: int = 3
    samples: Samples | None = None

    def __post_init__(self) -> None:
        expect_numbers("golden", positive=True, whole=True, batch=self.batch)
        known = {made for made, _ in LAYERS.values()}
        for layer in every_layer(self.network.layers):
            if type(layer) not in known and not isinstance(layer, (Gated, Residual)):
                kinds = ", ".join(LAYERS)
                raise InputError(
                    f"golden: no file can describe the layer {type(layer).__name__} of {self.network.name}; "
                    f"the layers it can describe are {kinds}"
                )
        if self.samples is None:
            return
        (x, labels), network = self.samples, self.network
        if x.shape[1:] != network.input_shape or labels.max() >= network.classes:
            raise InputError(
                f"golden: {network.name} takes samples of shape {network.input_shape} and has "
                f"{network.classes} classes; the data set has {x.shape[1:]} and {labels.max() + 1}"
            )

    @property
    def name(self) -> str:
        """The network's name as it begins the names of its cases."""
        return re.sub(r"[^\w.-]+", "-", self.network.name) or "own"

    @property
    def gated(self) -> bool:
        """Whether the network has gates."""
        return bool(self.network.gates)

    @property
    def zeros(self) -> bool:
        """Whether units may be exactly zero for all samples: batch normalisation would divide them by 0."""
        return not any(isinstance(layer, BatchNorm2d) for layer in every_layer(self.network.layers))

    def modes(self) -> dict[str, Gating]:
        """The gatings of most levels, by the title of their case: every mode, or none without gates."""
        if not self.gated:
            return {self.name: Gating()}
        return {f"{self.name}-{mode}": Gating(mode) for mode in MODES}

    def draw(self, title: str, seed: int, dtype: str) -> Draw:
        """What draws the numbers of the case with this title."""
        samples = None if self.samples is None else (self.samples[0].astype(dtype), self.samples[1])
        return Draw(seed, title, dtype, samples)


def fitted(x: np.ndarray, network: Network) -> np.ndarray:
    """Samples (M, C, H, W) in the shape that the network takes, where that is only another order of axes."""
    flat = len(network.input_shape) == 1 and x[:1].size == network.input_shape[0]
    return x.reshape(len(x), -1) if flat else x
