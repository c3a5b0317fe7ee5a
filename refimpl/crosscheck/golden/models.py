"""The networks of the cases: those of the zoo, narrow by default, and small ones."""

from typing import Any

from refimpl.errors import one_of
from refimpl.nn.gate import ChannelGate, Gated
from refimpl.nn.layers import BatchNorm2d, Conv2d, Layer, Linear, Shape
from refimpl.nn.network import Network
from refimpl.nn.pointwise import ReLU
from refimpl.nn.pooling import GlobalAvgPool2d, MaxPool2d
from refimpl.nn.zoo import network, residual

# With these sizes a file stays small; every architecture keeps all its layers.
NARROW: dict[str, dict[str, Any]] = {
    "mlp": {"input_shape": (12,), "hidden": [7], "classes": 4},
    "cnn3": {"input_shape": (2, 8, 8), "widths": [3, 4, 5], "classes": 4},
    "cnn7": {"input_shape": (2, 8, 8), "widths": [2, 3, 3, 4, 4, 5], "classes": 4},
    "digits": {"widths": [3, 5], "classes": 4},
}
NAMES = (*NARROW, "residual")
# Models with batch normalisation, and frozen statistics under gates. They are always narrow. In float32 they
# must be asked for: so many normalised layers amplify its rounding.
DEEP: dict[str, dict[str, Any]] = {
    "conv4": {"input_shape": (1, 16, 16), "widths": [2, 3, 3, 4], "classes": 3},
    "resnet12": {"input_shape": (2, 16, 16), "widths": [2, 2, 3, 3], "classes": 3},
    "resnet20": {"input_shape": (2, 8, 8), "widths": [2, 2, 3], "classes": 3},
}


def model(name: str, gated: bool = True, full: bool = False) -> Network:
    """A network by name, with its usual gates or none; `full`: with the zoo's own channel counts."""
    one_of("golden", "model", name, (*NAMES, *DEEP))
    if name == "residual":
        return residual((2, 6, 6), (3, 4), 4, ("conv2",) if gated else (), bias=False)
    return network(name, None if gated else (), **DEEP.get(name, {} if full else NARROW.get(name, {})))


def blocks(name: str, count: int, head: Linear, input_shape: Shape, pooled: bool = False) -> Network:
    """Plain blocks of two channels, each of them a convolution, batch normalisation and ReLU, and the head.

    pooled: whether max-pooling follows the first block.
    """
    layers: list[Layer] = []
    for number in range(1, count + 1):
        channels = input_shape[0] if number == 1 else 2
        layers.append(Conv2d(f"conv{number}", channels, 2, 3, padding=1, bias=False))
        layers += [BatchNorm2d(f"norm{number}", 2), ReLU()]
        layers += [MaxPool2d(2)] if pooled and number == 1 else []
    return Network(name, (*layers, GlobalAvgPool2d(), head), input_shape)


def tiny(gated: bool = True) -> Network:
    """A 6-5-3 network, gated with 4 hidden units, for levels that record whole iterations."""
    hidden: tuple[Layer, ...] = (Linear("fc1", 6, 5), ReLU())
    block = (Gated(ChannelGate("fc1.gate", 6, 5, hidden=4), hidden),) if gated else hidden
    return Network("tiny", (*block, Linear("fc2", 5, 3, gain=1.0)), (6,))
