"""Residual networks: ResNet-12 of few-shot learning, and ResNet-20, -32 and -56 for images of 32x32 pixels.

Every convolution is without bias and followed by its normalisation `<convolution>.norm`, whose statistics are
those of the batch, or frozen ones under a gate (`normalised`). Where a residual block changes the channels or
the size of the image, its shortcut is a projection: a 1x1 convolution and its normalisation (option B of
He et al. 2016).

Source: He et al. 2016, sections 3.3 and 4.2; Oreshkin et al. 2018, appendix; Lee et al. 2019, section 4.1.
Derived: frozen statistics under a gate.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from refimpl.errors import one_of
from refimpl.nn.chain import Residual
from refimpl.nn.layers import Conv2d, Layer, Linear, Pair, Shape
from refimpl.nn.network import Network
from refimpl.nn.plan import every_layer
from refimpl.nn.pointwise import LeakyReLU, ReLU
from refimpl.nn.pooling import GlobalAvgPool2d, MaxPool2d
from refimpl.nn.zoo import Block, Images, features, gate_blocks, normalised
from refimpl.registry import MODELS

LEAKY = LeakyReLU(0.1)


@dataclass(frozen=True)
class ResNet(Images):
    """Convolutions and residual blocks, global average pooling and a linear layer `fc`.

    A model of this kind says what comes before the pooling (`trunk`).
    """

    def build(self, input_shape: Shape, classes: int, gates: Collection[str] = ()) -> Network:
        """The network for images of `input_shape` (channels, height, width)."""
        shape, widths = self.sizes(input_shape)
        trunk = tuple(self.trunk((shape[0], *widths), gates))
        head = gate_blocks([(GlobalAvgPool2d(),), (Linear("fc", widths[-1], classes, gain=1.0),)], gates)
        layers = (*trunk, *head)
        names = [layer.name for layer in every_layer(layers) if isinstance(layer, (Conv2d, Linear))]
        for name in gates:
            one_of(self.name, "layer", name, tuple(names))
        features(self.name, [trunk], shape)  # raises where the images are too small
        return Network(self.name, layers, shape)

    def trunk(self, channels: Sequence[int], gates: Collection[str]) -> Iterator[Layer]:
        """The layers before the pooling, for images with channels[0] channels and stages with the others."""
        raise NotImplementedError


def residual(
    name: str,
    body: Sequence[Block],
    ends: Pair,
    gates: Collection[str],
    stride: int = 1,
    projects: bool = True,
) -> Residual:
    """The blocks of a body that leads from `ends[0]` channels to `ends[1]`, and their shortcut."""
    shortcut = [normalised(f"{name}.shortcut", ends, gates, 1, stride)] if projects else []
    return Residual(gate_blocks(body, gates), gate_blocks(shortcut, gates))


@MODELS.register("resnet12")
class ResNet12(ResNet):
    """Four stages (64-128-256-512) of three 3x3 convolutions and a projected shortcut, each pooled 2x2.

    Activations are LeakyReLU(0.1): after the first two convolutions and after the sum. Layers are
    `stage1.conv1`, `stage1.conv2`, `stage1.conv3`, `stage1.shortcut`, `stage2.conv1`, ..., `fc`.
    """

    name = "resnet12"
    usual_widths = (64, 128, 256, 512)
    usual_gates = ("stage1.conv2", "stage2.conv2", "stage3.conv2", "stage4.conv2")

    def trunk(self, channels: Sequence[int], gates: Collection[str]) -> Iterator[Layer]:
        """Four stages."""
        for number, (before, width) in enumerate(pairwise(channels), start=1):
            name = f"stage{number}"
            body = [
                (*normalised(f"{name}.conv1", (before, width), gates), LEAKY),
                (*normalised(f"{name}.conv2", (width, width), gates), LEAKY),
                normalised(f"{name}.conv3", (width, width), gates),
            ]
            yield from (residual(name, body, (before, width), gates), LEAKY, MaxPool2d(2))


class DeepResNet(ResNet):
    """A 3x3 convolution, then three stages (16-32-64) of residual blocks of two 3x3 convolutions each.

    The first block of stages 2 and 3 has stride 2. Layers are `conv1`, `stage1.block1.conv1`,
    `stage1.block1.conv2`, ..., `stage2.block1.shortcut`, ..., `fc`. Widths are those of the stages; the first
    convolution has that of stage 1.
    """

    blocks: ClassVar[int]  # of each stage
    usual_widths = (16, 32, 64)

    def __init_subclass__(cls) -> None:
        """Every block has a gate on its first convolution."""
        places = [(stage, block) for stage in (1, 2, 3) for block in range(1, cls.blocks + 1)]
        cls.usual_gates = tuple(f"stage{stage}.block{block}.conv1" for stage, block in places)

    def trunk(self, channels: Sequence[int], gates: Collection[str]) -> Iterator[Layer]:
        """The first convolution and the stages."""
        colours, *widths = channels
        yield from gate_blocks([(*normalised("conv1", (colours, widths[0]), gates), ReLU())], gates)
        before = widths[0]
        for stage, width in enumerate(widths, start=1):
            for block in range(1, self.blocks + 1):
                name, stride = f"stage{stage}.block{block}", 2 if block == 1 < stage else 1
                body = [
                    (*normalised(f"{name}.conv1", (before, width), gates, stride=stride), ReLU()),
                    normalised(f"{name}.conv2", (width, width), gates),
                ]
                yield residual(name, body, (before, width), gates, stride, block == 1 < stage)
                yield ReLU()
                before = width


@MODELS.register("resnet20")
class ResNet20(DeepResNet):
    """Residual network of 20 layers for images of 32x32 pixels: 3 blocks a stage."""

    name, blocks = "resnet20", 3


@MODELS.register("resnet32")
class ResNet32(DeepResNet):
    """Residual network of 32 layers for images of 32x32 pixels: 5 blocks a stage."""

    name, blocks = "resnet32", 5


@MODELS.register("resnet56")
class ResNet56(DeepResNet):
    """Residual network of 56 layers for images of 32x32 pixels: 9 blocks a stage."""

    name, blocks = "resnet56", 9
