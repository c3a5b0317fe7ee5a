"""The networks that cases are about: the zoo's, narrow by default, and two small ones of their own."""

from __future__ import annotations

from typing import Any

from refimpl.errors import one_of
from refimpl.nn.chain import Residual
from refimpl.nn.gate import ChannelGate, Gated
from refimpl.nn.layers import BatchNorm2d, Conv2d, Layer, Linear
from refimpl.nn.network import Network
from refimpl.nn.pointwise import ReLU
from refimpl.nn.pooling import GlobalAvgPool2d
from refimpl.nn.zoo import MODELS

# Sizes at which a file stays small; every architecture keeps its layers.
NARROW: dict[str, dict[str, Any]] = {
    "mlp": {"sizes": (12, 7, 4)},
    "digits": {"widths": (3, 5), "classes": 4},
    "cnn3": {"input_shape": (2, 8, 8), "widths": (3, 4, 5), "classes": 4},
    "cnn7": {"input_shape": (2, 8, 8), "widths": (2, 3, 3, 4, 4, 5), "classes": 4},
}
GATES = {"mlp": ("fc1",), "digits": ("conv2",), "cnn3": ("conv3",), "cnn7": ("conv5", "conv6")}
NAMES = (*MODELS, "residual")


def model(name: str, gated: bool = True, full: bool = False) -> Network:
    """A network by name, with its usual gates or none; `full`: with the zoo's own channel counts."""
    one_of("golden", "model", name, NAMES)
    if name == "residual":
        return _residual(gated)
    make: Any = MODELS[name]
    network: Network = make(gates=GATES[name] if gated else (), **({} if full else NARROW[name]))
    return network


def tiny(gated: bool = True) -> Network:
    """6-5-3, the gate of the hidden layer with 4 hidden units: for levels that record whole iterations."""
    hidden: tuple[Layer, ...] = (Linear("fc1", 6, 5), ReLU())
    block = (Gated(ChannelGate("fc1.gate", 6, 5, hidden=4), hidden),) if gated else hidden
    return Network("tiny", (*block, Linear("fc2", 5, 3, gain=1.0)), (6,))


def _residual(gated: bool) -> Network:
    """What the zoo's models lack: batch normalisation, a gate inside a residual block."""
    inner: tuple[Layer, ...] = (Conv2d("conv2", 3, 4, 3, padding=1), ReLU())
    if gated:
        inner = (Gated(ChannelGate("conv2.gate", 3, 4), inner),)
    layers = (
        Conv2d("conv1", 2, 3, 3, padding=1, bias=False),
        BatchNorm2d("norm", 3),
        ReLU(),
        Residual((*inner, Conv2d("conv3", 4, 3, 3, padding=1))),
        ReLU(),
        GlobalAvgPool2d(),
        Linear("fc", 3, 4, gain=1.0),
    )
    return Network("residual", layers, (2, 6, 6))
