"""The networks of the paper and the helper that puts gates where you want them.

A new architecture is a few lines: a tuple of layers and an input shape. `gated` wraps any block of the
recipe (a weighted layer, its activation, its pooling) with a channel gate.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import count

from refimpl.errors import InputError, one_of
from refimpl.nn.chain import Residual, chain_shape
from refimpl.nn.gate import ChannelGate, Gated
from refimpl.nn.layers import BatchNorm2d, Conv2d, Layer, Linear, Pair, Shape
from refimpl.nn.network import Network
from refimpl.nn.pointwise import ACTIVATIONS, ReLU
from refimpl.nn.pooling import AvgPool2d, Flatten, GlobalAvgPool2d, MaxPool2d

Block = tuple[Layer, ...]


def with_gates(blocks: Sequence[Block], gates: Collection[str]) -> tuple[Layer, ...]:
    """Chain the blocks, gating those whose first layer is named in `gates`.

    A block is (weighted layer, activation, pooling...); its gate is named `<layer>.gate`.
    """
    layers: list[Layer] = []
    names = [layer.name for block in blocks for layer in block[:1] if isinstance(layer, (Conv2d, Linear))]
    for name in gates:
        one_of("with_gates", "layer", name, tuple(names))
    for block in blocks:
        first = block[0]
        if isinstance(first, (Conv2d, Linear)) and first.name in gates:
            layers.append(Gated(ChannelGate(f"{first.name}.gate", *_channels(first)), block))
        else:
            layers.extend(block)
    return tuple(layers)


def _channels(layer: Conv2d | Linear) -> Pair:
    """Input and output channels (features) of a weighted layer."""
    if isinstance(layer, Conv2d):
        return layer.in_channels, layer.out_channels
    return layer.in_features, layer.out_features


def _check_images(who: str, shape: Shape, widths: Sequence[int], number: int) -> None:
    """Raise `InputError` unless the shape is an image's and there are `number` positive widths."""
    if len(shape) != 3 or min(shape) < 1:
        raise InputError(f"{who}: expected an input shape (channels, height, width), got {tuple(shape)}")
    if len(widths) != number or min(widths) < 1:
        raise InputError(f"{who}: expected {number} positive widths, got {tuple(widths)}")


def _features(who: str, blocks: Sequence[Block], shape: Shape) -> int:
    """Features in all that the blocks make of images of `shape`; `InputError` if these are too small."""
    layers = [layer for block in blocks for layer in block]
    if not _fits(layers, shape):
        least = next(side for side in count(1) if _fits(layers, (shape[0], side, side)))
        raise InputError(
            f"{who}: images of {shape[1]}x{shape[2]} pixels are too small, the poolings need at least "
            f"{least}x{least}; enlarge or pad them, or choose the model mlp{channels_hint(shape)}"
        )
    return math.prod(chain_shape(layers, shape))


def _fits(layers: Sequence[Layer], shape: Shape) -> bool:
    """Whether something is left of images of `shape` behind the layers."""
    try:
        return min(chain_shape(layers, shape)) > 0
    except InputError:
        return False


def channels_hint(shape: Shape) -> str:
    """What to do about a shape of images that looks like (H, W, C), to end a message; else empty."""
    if len(shape) == 3 and shape[2] <= 4 < min(shape[:2]):
        return f"; if {tuple(shape)} has the channels last, pass numpy.moveaxis(x, -1, 1)"
    return ""


def mlp(
    sizes: Sequence[int] = (784, 100, 10), gates: Collection[str] = (), activation: str = "relu"
) -> Network:
    """Fully connected network; default 784-100-10, the paper's MNIST model. Layers `fc1`, `fc2`, ..."""
    one_of("mlp", "activation", activation, tuple(ACTIVATIONS))
    if len(sizes) < 2 or min(sizes) < 1:
        raise InputError(f"mlp: expected at least two positive sizes, got {tuple(sizes)}")
    last = len(sizes) - 1
    blocks: list[Block] = [(Flatten(),)]
    for i in range(1, last):
        blocks.append((Linear(f"fc{i}", sizes[i - 1], sizes[i]), ACTIVATIONS[activation]))
    blocks.append((Linear(f"fc{last}", sizes[last - 1], sizes[last], gain=1.0),))
    return Network("mlp", with_gates(blocks, gates), (sizes[0],))


def _conv_block(name: str, channels: Pair, activation: str, *pooling: Layer) -> Block:
    """3x3 convolution with padding 1, activation, pooling."""
    return (Conv2d(name, channels[0], channels[1], 3, padding=1), ACTIVATIONS[activation], *pooling)


def cnn3(
    input_shape: Shape = (3, 32, 32),
    widths: tuple[int, int, int] = (32, 64, 128),
    classes: int = 10,
    gates: Collection[str] = ("conv3",),
    activation: str = "relu",
) -> Network:
    """Three 3x3 convolutions (32-64-128), each followed by 2x2 max-pooling, then linear 2048 -> 10.

    The paper's CIFAR model, gate on conv 3. Source: [MG] section 5.1; layer details reconstructed.
    """
    one_of("cnn3", "activation", activation, tuple(ACTIVATIONS))
    _check_images("cnn3", input_shape, widths, 3)
    a, b, c = widths
    blocks: list[Block] = [
        _conv_block("conv1", (input_shape[0], a), activation, MaxPool2d(2)),
        _conv_block("conv2", (a, b), activation, MaxPool2d(2)),
        _conv_block("conv3", (b, c), activation, MaxPool2d(2)),
    ]
    features = _features("cnn3", blocks, input_shape)
    blocks += [(Flatten(),), (Linear("fc", features, classes, gain=1.0),)]
    return Network("cnn3", with_gates(blocks, gates), input_shape)


def cnn7(
    input_shape: Shape = (3, 32, 32),
    widths: tuple[int, int, int, int, int, int] = (32, 32, 64, 64, 128, 128),
    classes: int = 10,
    gates: Collection[str] = ("conv5", "conv6"),
    activation: str = "relu",
) -> Network:
    """Six 3x3 convolutions and a linear layer; max-pooling after convs 2 and 4, average pooling after 6.

    The paper's appendix model, gates on convs 5 and 6. The widths are our reading (doubling after each
    pooling, as in VGG): the text does not fix them. Source: [MG] appendix; reconstructed.
    """
    one_of("cnn7", "activation", activation, tuple(ACTIVATIONS))
    _check_images("cnn7", input_shape, widths, 6)
    pools: tuple[tuple[Layer, ...], ...] = ((), (MaxPool2d(2),), (), (MaxPool2d(2),), (), (AvgPool2d(2),))
    ins = (input_shape[0], *widths[:-1])
    blocks: list[Block] = [
        _conv_block(f"conv{i + 1}", (ins[i], widths[i]), activation, *pools[i]) for i in range(len(widths))
    ]
    features = _features("cnn7", blocks, input_shape)
    blocks += [(Flatten(),), (Linear("fc", features, classes, gain=1.0),)]
    return Network("cnn7", with_gates(blocks, gates), input_shape)


def digits(
    widths: tuple[int, int] = (16, 32),
    classes: int = 10,
    gates: Collection[str] = ("conv2",),
    activation: str = "relu",
) -> Network:
    """A small CNN for 8x8 grey images: two 3x3 convolutions with 2x2 max-pooling, then linear."""
    one_of("digits", "activation", activation, tuple(ACTIVATIONS))
    _check_images("digits", (1, 8, 8), widths, 2)
    a, b = widths
    blocks: list[Block] = [
        _conv_block("conv1", (1, a), activation, MaxPool2d(2)),
        _conv_block("conv2", (a, b), activation, MaxPool2d(2)),
        (Flatten(),),
        (Linear("fc", b * 4, classes, gain=1.0),),
    ]
    return Network("digits", with_gates(blocks, gates), (1, 8, 8))


def residual(
    input_shape: Shape = (2, 8, 8),
    widths: Pair = (6, 8),
    classes: int = 10,
    gates: Collection[str] = ("conv2",),
    bias: bool = True,
) -> Network:
    """What the models lack, for checks: batch normalisation, and a gate inside a residual block.

    widths: channels outside and inside the block; bias: of conv 1.
    """
    outer, inner = widths
    body = with_gates([(Conv2d("conv2", outer, inner, 3, padding=1), ReLU())], gates)
    layers = (
        Conv2d("conv1", input_shape[0], outer, 3, padding=1, bias=bias),
        BatchNorm2d("norm", outer),
        ReLU(),
        Residual((*body, Conv2d("conv3", inner, outer, 3, padding=1))),
        ReLU(),
        GlobalAvgPool2d(),
        Linear("fc", outer, classes, gain=1.0),
    )
    return Network("residual", layers, input_shape)


MODELS = {"mlp": mlp, "cnn3": cnn3, "cnn7": cnn7, "digits": digits}
USUAL_GATES = {"mlp": ["fc1"], "cnn3": ["conv3"], "cnn7": ["conv5", "conv6"], "digits": ["conv2"]}
