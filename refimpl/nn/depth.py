"""Depth: the stages of a network, found in its layers, and its layers with fewer blocks in each stage.

A block is a residual block or, in a network without them, a convolution, gated or not. Normalisation and
activation behind a block belong to it. A stage begins at a block that changes the shape of the image, at the
first block and behind each pooling; so every further block of a stage keeps the shape, and can be left out.
The first convolution of a residual network, poolings and the head always stay. Where every stage is a single
residual block (ResNet-12), the convolutions inside that block are the blocks.

Source: mathematics.md §15.1. Reconstructed: the paper's abstract says only that depths vary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from refimpl.nn.chain import Residual, chain_shape
from refimpl.nn.gate import Gated
from refimpl.nn.layers import Conv2d, Layer, Shape
from refimpl.nn.pointwise import Pointwise
from refimpl.nn.pooling import Window


def places(layers: Sequence[Layer], shape: Shape) -> list[int]:
    """For each layer, which block of its stage it belongs to, counted from 1; 0 for one that always stays."""
    residual = any(isinstance(layer, Residual) for layer in layers)
    found, place, begins = [], 0, True
    for layer in layers:
        result = layer.output_shape(shape)
        first = layer.body[0] if isinstance(layer, Gated) else layer
        if isinstance(first, Residual if residual else Conv2d):
            own = first.output_shape(shape)
            place = 1 if begins or own != shape else place + 1
            begins = result != own  # a gated body may end in a pooling
        elif result != shape:
            place, begins = 0, True
        found.append(place)
        shape = result
    return found


def _enters(layers: Sequence[Layer], shape: Shape) -> bool:
    """Whether every stage is a single residual block, so that the blocks are the layers inside it."""
    return any(isinstance(layer, Residual) for layer in layers) and max(places(layers, shape)) == 1


def depths(layers: Sequence[Layer], shape: Shape) -> int:
    """The blocks of the longest stage; 0 for layers without stages."""
    if not _enters(layers, shape):
        return max(places(layers, shape), default=0)
    bodies = [
        (layer.body, chain_shape(layers[:at], shape))
        for at, layer in enumerate(layers)
        if isinstance(layer, Residual)
    ]
    return max(depths(*body) for body in bodies)


def shortened(layers: Sequence[Layer], shape: Shape, depth: int) -> tuple[Layer, ...]:
    """The layers with the first `depth` blocks of every stage; shorter stages stay as they are."""
    out: list[Layer] = []
    enters = _enters(layers, shape)
    for at, (layer, place) in enumerate(zip(layers, places(layers, shape), strict=True)):
        if isinstance(layer, Residual) and enters:
            out.append(replace(layer, body=_body(layer.body, chain_shape(layers[:at], shape), depth)))
        elif place <= depth:
            out.append(layer)
        elif isinstance(layer, Gated):  # what follows the stage still expects its pooling
            out += [inner for inner in layer.body if isinstance(inner, Window)]
    return tuple(out)


def _body(body: tuple[Layer, ...], shape: Shape, depth: int) -> tuple[Layer, ...]:
    """A shortened residual body, without the activation that stood in front of the first block left out."""
    kept = shortened(body, shape, depth)
    surplus = isinstance(kept[-1], Pointwise) and not isinstance(body[-1], Pointwise)
    return kept[:-1] if surplus else kept
