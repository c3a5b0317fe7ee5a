"""The models: networks that are chosen by name, and the helper that puts gates where you want them.

A model is a dataclass registered in `MODELS`; its `key` fields are keys of a configuration. It has

    input_shape                              of the samples it is usually for, where no data set gives one
    usual_gates                              the layers that carry a gate where a configuration names none
    build(input_shape, classes, gates)       the network

A network is a tuple of layers and an input shape. `with_gates` makes the layers of blocks (a weighted layer,
its activation, its pooling), and gives some of them a channel gate.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any, ClassVar

from refimpl.errors import InputError, one_of
from refimpl.nn.chain import Residual, chain_shape
from refimpl.nn.gate import ChannelGate, Gated
from refimpl.nn.layers import BatchNorm2d, Conv2d, Layer, Linear, Pair, Shape
from refimpl.nn.network import Network
from refimpl.nn.norms import FrozenNorm2d
from refimpl.nn.pointwise import ACTIVATIONS, ReLU
from refimpl.nn.pooling import AvgPool2d, Flatten, GlobalAvgPool2d, MaxPool2d
from refimpl.registry import MODELS, key

Block = tuple[Layer, ...]


def with_gates(blocks: Sequence[Block], gates: Collection[str]) -> tuple[Layer, ...]:
    """Chain the blocks, gating those whose first layer is named in `gates`.

    A block is (weighted layer, activation, pooling...); its gate is named `<layer>.gate`.
    """
    names = [layer.name for block in blocks for layer in block[:1] if isinstance(layer, (Conv2d, Linear))]
    for name in gates:
        one_of("with_gates", "layer", name, tuple(names))
    return gate_blocks(blocks, gates)


def gate_blocks(blocks: Sequence[Block], gates: Collection[str]) -> tuple[Layer, ...]:
    """`with_gates` for some blocks of a network: `gates` may name layers of its other blocks as well."""
    layers: list[Layer] = []
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


def features(who: str, blocks: Sequence[Block], shape: Shape) -> int:
    """Features in all that the blocks make of images of `shape`; `InputError` if these are too small."""
    layers = [layer for block in blocks for layer in block]
    if not _fits(layers, shape):
        least = next(side for side in count(1) if _fits(layers, (shape[0], side, side)))
        raise InputError(
            f"{who}: images of {shape[1]}x{shape[2]} pixels are too small, the poolings need at least "
            f"{least}x{least}; enlarge or pad them, or choose the model mlp{_channels_hint(shape)}"
        )
    return math.prod(chain_shape(layers, shape))


def _fits(layers: Sequence[Layer], shape: Shape) -> bool:
    """Whether something is left of images of `shape` behind the layers."""
    try:
        return min(chain_shape(layers, shape)) > 0
    except InputError:
        return False


def _channels_hint(shape: Shape) -> str:
    """What to do about a shape of images that looks like (H, W, C), to end a message; else empty."""
    if len(shape) == 3 and shape[2] <= 4 < min(shape[:2]):
        return f"; if {tuple(shape)} has the channels last, pass numpy.moveaxis(x, -1, 1)"
    return ""


def normalised(name: str, channels: Pair, gates: Collection[str], kernel: int = 3, stride: int = 1) -> Block:
    """A padded convolution without bias, and its normalisation `<name>.norm`.

    With a gate its statistics are frozen: those of a batch need the samples that a gate skips (`norms.py`).
    """
    norm = FrozenNorm2d if name in gates else BatchNorm2d
    conv = Conv2d(name, *channels, kernel, stride, kernel // 2, bias=False)
    return conv, norm(f"{name}.norm", channels[1])


@MODELS.register("mlp")
@dataclass(frozen=True)
class MLP:
    """Fully connected network; 784-100-10 is the paper's MNIST model. Layers `fc1`, `fc2`, ..."""

    hidden: list[int] = key([100], "units of each hidden layer", at_least=1)

    input_shape: ClassVar[Shape] = (784,)

    @property
    def usual_gates(self) -> tuple[str, ...]:
        """The first hidden layer, if there is one."""
        return ("fc1",) if self.hidden else ()

    def build(self, input_shape: Shape, classes: int, gates: Collection[str] = ()) -> Network:
        """The network for samples of any shape, which it flattens."""
        return mlp((math.prod(input_shape), *self.hidden, classes), gates)


@dataclass(frozen=True)
class Images:
    """What all models for images share: channels of each convolution, or of each stage of them."""

    widths: list[int] = key([], "channels of each convolution; none: the model's usual ones", at_least=1)

    name: ClassVar[str]
    input_shape: ClassVar[Shape] = (3, 32, 32)
    usual_widths: ClassVar[Sequence[int]]
    usual_gates: ClassVar[Sequence[str]]

    def sizes(self, input_shape: Shape) -> tuple[Shape, tuple[int, ...]]:
        """The shape of an image and the widths; raises `InputError` where they are none."""
        shape, widths = tuple(input_shape), (*self.widths,) or (*self.usual_widths,)
        if len(shape) != 3 or min(shape) < 1:
            raise InputError(f"{self.name}: expected an input shape (channels, height, width), got {shape}")
        if len(widths) != len(self.usual_widths) or min(widths) < 1:
            raise InputError(f"{self.name}: expected {len(self.usual_widths)} positive widths, got {widths}")
        return shape, widths


@dataclass(frozen=True)
class Convolutional(Images):
    """Blocks of a 3x3 convolution with padding 1, its activation and its pooling; then a linear layer `fc`.

    A model of this kind says what follows each activation (`poolings`), and whether batch normalisation
    comes before each (`normalised`). Its layers are `conv1`, `conv2`, ...
    """

    poolings: ClassVar[Sequence[tuple[Layer, ...]]]
    normalised: ClassVar[bool] = False

    def build(
        self, input_shape: Shape, classes: int, gates: Collection[str] = (), activation: str = "relu"
    ) -> Network:
        """The network for images of `input_shape` (channels, height, width)."""
        name = self.name
        one_of(name, "activation", activation, tuple(ACTIVATIONS))
        shape, widths = self.sizes(input_shape)
        channels = pairwise((shape[0], *widths))
        blocks = [
            (*self.convolution(f"conv{number}", pair, gates), ACTIVATIONS[activation], *pooling)
            for number, (pair, pooling) in enumerate(zip(channels, self.poolings, strict=True), start=1)
        ]
        inputs = features(name, blocks, shape)
        blocks += [(Flatten(),), (Linear("fc", inputs, classes, gain=1.0),)]
        return Network(name, with_gates(blocks, gates), shape)

    def convolution(self, name: str, channels: Pair, gates: Collection[str]) -> Block:
        """A convolution, with its normalisation if the model has them."""
        if self.normalised:
            return normalised(name, channels, gates)
        return (Conv2d(name, *channels, 3, padding=1),)


@MODELS.register("cnn3")
class CNN3(Convolutional):
    """Three 3x3 convolutions (32-64-128), each followed by 2x2 max-pooling, then linear 2048 -> 10.

    The paper's CIFAR model, gate on conv 3. Source: [MG] section 5.1; layer details reconstructed.
    """

    name = "cnn3"
    poolings = ((MaxPool2d(2),),) * 3
    usual_widths = (32, 64, 128)
    usual_gates = ("conv3",)


@MODELS.register("cnn7")
class CNN7(Convolutional):
    """Six 3x3 convolutions and a linear layer; max-pooling after convs 2 and 4, average pooling after 6.

    The paper's appendix model, gates on convs 5 and 6. The widths are our reading (doubling after each
    pooling, as in VGG): the text does not fix them. Source: [MG] appendix; reconstructed.
    """

    name = "cnn7"
    poolings = ((), (MaxPool2d(2),), (), (MaxPool2d(2),), (), (AvgPool2d(2),))
    usual_widths = (32, 32, 64, 64, 128, 128)
    usual_gates = ("conv5", "conv6")


@MODELS.register("conv4")
class Conv4(Convolutional):
    """Four 3x3 convolutions (64 channels each) with batch normalisation and 2x2 max-pooling, then linear.

    The usual small network of few-shot learning, also with 32 channels. Source: Vinyals et al. 2016, section
    4; Finn et al. 2017, section 5.2 (32 channels). Derived: frozen statistics under a gate (`normalised`).
    """

    name = "conv4"
    normalised = True
    poolings = ((MaxPool2d(2),),) * 4
    usual_widths = (64, 64, 64, 64)
    usual_gates = ("conv4",)


@MODELS.register("digits")
class Digits(Convolutional):
    """A small CNN for 8x8 grey images: two 3x3 convolutions with 2x2 max-pooling, then linear."""

    name = "digits"
    input_shape = (1, 8, 8)
    poolings = ((MaxPool2d(2),),) * 2
    usual_widths = (16, 32)
    usual_gates = ("conv2",)

    def build(
        self, input_shape: Shape, classes: int, gates: Collection[str] = (), activation: str = "relu"
    ) -> Network:
        """The network for images of 8x8 pixels with one channel, and no others."""
        if tuple(input_shape) != self.input_shape:
            others = ", ".join(name for name in MODELS if name != "digits")
            raise InputError(
                f"model digits: expected 8x8 grey images, got images of shape {tuple(input_shape)}; "
                f"choose one of {others}{_channels_hint(input_shape)}"
            )
        return super().build(input_shape, classes, gates, activation)


def network(
    name: str,
    gates: Collection[str] | None = None,
    input_shape: Shape | None = None,
    classes: int = 10,
    **keys: Any,
) -> Network:
    """The model of that name; unless said otherwise, for the samples and with the gates usual for it."""
    model = MODELS[name](**keys)
    gates = model.usual_gates if gates is None else gates
    built: Network = model.build(input_shape or model.input_shape, classes, gates)
    return built


def mlp(
    sizes: Sequence[int] = (784, 100, 10), gates: Collection[str] = (), activation: str = "relu"
) -> Network:
    """The model `MLP` with these sizes, from inputs to classes."""
    one_of("mlp", "activation", activation, tuple(ACTIVATIONS))
    if len(sizes) < 2 or min(sizes) < 1:
        raise InputError(f"mlp: expected at least two positive sizes, got {tuple(sizes)}")
    last = len(sizes) - 1
    blocks: list[Block] = [(Flatten(),)]
    for i in range(1, last):
        blocks.append((Linear(f"fc{i}", sizes[i - 1], sizes[i]), ACTIVATIONS[activation]))
    blocks.append((Linear(f"fc{last}", sizes[last - 1], sizes[last], gain=1.0),))
    return Network("mlp", with_gates(blocks, gates), (sizes[0],))


def cnn3(
    input_shape: Shape = CNN3.input_shape,
    widths: Sequence[int] = CNN3.usual_widths,
    classes: int = 10,
    gates: Collection[str] = CNN3.usual_gates,
    activation: str = "relu",
) -> Network:
    """The model `CNN3`."""
    return CNN3([*widths]).build(input_shape, classes, gates, activation)


def cnn7(
    input_shape: Shape = CNN7.input_shape,
    widths: Sequence[int] = CNN7.usual_widths,
    classes: int = 10,
    gates: Collection[str] = CNN7.usual_gates,
    activation: str = "relu",
) -> Network:
    """The model `CNN7`."""
    return CNN7([*widths]).build(input_shape, classes, gates, activation)


def digits(
    widths: Sequence[int] = Digits.usual_widths,
    classes: int = 10,
    gates: Collection[str] = Digits.usual_gates,
    activation: str = "relu",
) -> Network:
    """The model `Digits`."""
    return Digits([*widths]).build(Digits.input_shape, classes, gates, activation)


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


def checked_names() -> tuple[str, ...]:
    """The networks that gradient checks and golden files are about: `residual`, and all models.

    Those left out are resnet20 with more blocks, and differences of so many parameters take hours.
    """
    return (*(name for name in MODELS if name not in ("resnet32", "resnet56")), "residual")
