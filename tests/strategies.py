"""What hypothesis draws: structure and a seed. Numbers come from the seed.

Drawn floating-point values love zeros, ones and ties, which sit on the kinks of ReLU and pooling where
finite differences mean nothing; kinks have tests of their own.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from refimpl.nn.chain import Residual, chain_shape
from refimpl.nn.context import MODES, Context, Gating
from refimpl.nn.gate import Gated
from refimpl.nn.layers import BatchNorm2d, Conv2d, Layer, Linear, Mask
from refimpl.nn.network import Network, draw_gate_noise
from refimpl.nn.pointwise import ACTIVATIONS
from refimpl.nn.pooling import AvgPool2d, Flatten, GlobalAvgPool2d, MaxPool2d
from refimpl.nn.zoo import with_gates


def examples(count: int):
    """`count` examples, the same in every run: a suite that fails must fail again."""
    return settings(max_examples=count, deadline=None, derandomize=True)


seeds = st.integers(0, 2**32 - 1)
small = st.integers(1, 3)
pairs = st.tuples(small, small)
TRAINED = (("theta", "phi"), ("theta",), ("phi",))


@st.composite
def masks(draw, batch: int, channels: int) -> Mask:
    """None, all on, all off or mixed: (batch, channels) booleans."""
    kind = draw(st.sampled_from(("none", "on", "off", "mixed", "mixed")))
    if kind == "none":
        return None
    if kind == "mixed":
        return np.random.default_rng(draw(seeds)).random((batch, channels)) < 0.5
    return np.full((batch, channels), kind == "on")


class LayerCase(NamedTuple):
    """A layer on a batch of inputs of one shape, with masks."""

    layer: Layer
    shape: tuple[int, ...]
    batch: int
    reads: Mask
    writes: Mask
    seed: int


@st.composite
def conv_cases(draw) -> LayerCase:
    """Convolutions of odd shapes; every stride, padding and kernel size on its own in each direction."""
    kernel, stride = draw(pairs), draw(pairs)
    pad = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    groups, dilation = (
        draw(st.sampled_from((1, 1, 2, 3))),
        draw(st.sampled_from(((1, 1), (1, 1), (2, 1), (2, 3)))),
    )
    channels, filters, batch = groups * draw(small), groups * draw(small), draw(small)
    least = [max(1, (k - 1) * d + 1 - 2 * p) for k, d, p in zip(kernel, dilation, pad, strict=True)]
    size = tuple(low + draw(st.integers(0, 4)) for low in least)
    bias = draw(st.booleans())
    layer = Conv2d("conv", channels, filters, kernel, stride, pad, bias, dilation, groups)
    reads, writes = draw(masks(batch, channels)), draw(masks(batch, filters))
    return LayerCase(layer, (channels, *size), batch, reads, writes, draw(seeds))


@st.composite
def linear_cases(draw) -> LayerCase:
    """Linear layers whose input mask may stand for groups of features."""
    groups, size, outputs, batch = draw(small), draw(small), draw(small), draw(small)
    layer = Linear("fc", groups * size, outputs)
    reads, writes = draw(masks(batch, groups)), draw(masks(batch, outputs))
    return LayerCase(layer, (groups * size,), batch, reads, writes, draw(seeds))


@st.composite
def channelwise_cases(draw, layers: st.SearchStrategy[Layer]) -> LayerCase:
    """Layers that treat channels one by one: one mask for both sides."""
    channels, batch = draw(small), draw(small)
    shape = (channels, draw(st.integers(3, 7)), draw(st.integers(3, 7)))
    mask = draw(masks(batch, channels))
    return LayerCase(draw(layers), shape, batch, mask, mask, draw(seeds))


pools = st.builds(
    lambda kind, size, stride, pad: kind(
        size, stride, tuple(p * (k // 2) for p, k in zip(pad, size, strict=True))
    ),
    st.sampled_from((MaxPool2d, AvgPool2d)),
    pairs,
    st.none() | pairs,
    st.tuples(st.integers(0, 1), st.integers(0, 1)),
)
activations = st.sampled_from(tuple(ACTIVATIONS.values()))


@st.composite
def contexts(draw, modes: tuple[str, ...] = MODES, train: tuple[tuple[str, ...], ...] = TRAINED) -> Context:
    """Settings of one evaluation, without noise."""
    gating = Gating(
        draw(st.sampled_from(modes)),
        draw(st.sampled_from((0.5, 1.0, 2.0))),
        draw(st.sampled_from(("dense", "active"))),
        draw(st.booleans()),
    )
    return Context(gating, draw(st.sampled_from(train)))


@st.composite
def networks(draw, kinks: bool = True) -> Network:
    """Small classifiers: convolution blocks, perhaps a residual one, perhaps a hidden linear layer.

    Any subset of the weighted layers but the last is gated. Without `kinks` there is no max-pooling after
    a gate (where all channels are closed, everything behind is constant and ties) and no global average of
    a normalised map (a constant, whose gradient is pure rounding): finite differences mean nothing there.
    """
    names = (f"l{i}" for i in itertools.count(1))
    shape: tuple[int, ...] = (draw(small), draw(st.integers(5, 7)), draw(st.integers(5, 7)))
    input_shape, layers = shape, []
    for _ in range(draw(st.integers(1, 2))):
        for part in (_conv_block, _between):
            may_tie = kinks or not any(isinstance(layer, Gated) for layer in layers)
            more = part(draw, next(names), shape, may_tie)
            layers, shape = layers + more, chain_shape(more, shape)
    average = (kinks or not isinstance(layers[-1], BatchNorm2d)) and draw(st.booleans())
    layers.append(GlobalAvgPool2d() if average else Flatten())
    features = layers[-1].output_shape(shape)[0]
    if draw(st.booleans()):
        layers += _perhaps_gated(draw, (Linear(next(names), features, 4), draw(activations)))
        features = 4
    layers.append(Linear("out", features, 3))
    return Network("drawn", tuple(layers), input_shape)


def _perhaps_gated(draw, block: tuple[Layer, ...]) -> list[Layer]:
    """The block as it is, or, two times out of three, behind a gate."""
    name = block[0].name
    return list(with_gates([block], [name] if draw(st.sampled_from((True, True, False))) else []))


def _conv_block(draw, name: str, shape: tuple[int, ...], may_tie: bool) -> list[Layer]:
    """Convolution, activation, perhaps pooling; at least 2x2 remain if the input has as much."""
    filters, pad = draw(st.integers(2, 3)), draw(st.integers(0, 1))
    stride = draw(st.tuples(st.integers(1, 2), st.integers(1, 2))) if min(shape[1:]) >= 5 else 1
    kernel = 3 if min(shape[1:]) + 2 * pad >= 4 else 1
    block: list[Layer] = [Conv2d(name, shape[0], filters, kernel, stride, pad), draw(activations)]
    if min(chain_shape(block, shape)[1:]) >= 4 and draw(st.booleans()):
        maxima = (MaxPool2d(2), MaxPool2d(2, 1)) if may_tie else ()
        block.append(draw(st.sampled_from((AvgPool2d(2), *maxima))))
    return _perhaps_gated(draw, tuple(block))


def _between(draw, name: str, shape: tuple[int, ...], may_tie: bool) -> list[Layer]:
    """What may stand between two blocks: nothing, normalisation, a residual block with a gate inside."""
    kind = draw(st.sampled_from(("nothing", "pool", "norm", "residual", "projection")))
    if kind == "pool" and may_tie and min(shape[1:]) >= 2:
        return [MaxPool2d(2, 1)]
    if kind == "norm":
        return [BatchNorm2d(name, shape[0])]
    if kind in ("residual", "projection"):
        body = _perhaps_gated(draw, (Conv2d(name, shape[0], shape[0], 3, padding=1), draw(activations)))
        shortcut = () if kind == "residual" else (Conv2d(f"{name}s", shape[0], shape[0], 1, bias=False),)
        return [Residual(tuple(body), shortcut)]
    return []


class Sample(NamedTuple):
    """A point and a batch for a network."""

    w: np.ndarray
    x: np.ndarray
    y: np.ndarray
    context: Context


def sample(network: Network, context: Context, seed: int, batch: int = 3) -> Sample:
    """Numbers from the seed: about half of the channels end up closed. Noise is added where needed."""
    rng = np.random.default_rng(seed)
    w = 0.5 * rng.standard_normal(network.layout.size)
    w[network.layout.stats] = 0.5 + np.abs(w[network.layout.stats])  # a variance is not negative
    x = rng.standard_normal((batch, *network.input_shape))
    y = rng.integers(0, network.classes, batch)
    if context.gating.mode == "gumbel":
        context = Context(context.gating, context.train, draw_gate_noise(network, batch, rng))
    return Sample(w, x, y, context)
