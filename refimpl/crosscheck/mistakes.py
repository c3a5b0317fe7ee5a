"""Layers that make a usual mistake, to compute what it gives. Source: mathematics.md §2.1, §2.2. Derived."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from refimpl.nn.gate import ChannelGate, Decide
from refimpl.nn.layers import Array, Arrays, Back, Flow, Gradient, Layer, Mask, Plain, Shape
from refimpl.nn.pooling import MaxPool2d, PoolCache


@dataclass(frozen=True)
class LastMaxPool2d(MaxPool2d):
    """Max-pooling in which the last of equal maxima gets the gradient."""

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, PoolCache]:
        """Y = window maximum on open channels."""
        y, mask, cache = super().forward(params, x, flow)
        edges = ((0, 0), (0, 0), *((pad, pad) for pad in self.pad))
        padded = np.pad(x, edges, constant_values=-np.inf)
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.window, axis=(2, 3))
        chosen = windows[:, :, :: self.step[0], :: self.step[1]].reshape(*y.shape, -1)
        last = chosen.shape[-1] - 1 - np.argmax(chosen[..., ::-1], axis=-1)
        return y, mask, cache._replace(where=(last.astype(np.int32),))


@dataclass(frozen=True)
class MeanOfAll(Plain):
    """One mean over all channels and pixels in place of each channel's own: (N,C,...) -> (N,C)."""

    def output_shape(self, shape: Shape) -> Shape:
        """One number for each channel."""
        return shape[:1]

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, Shape]:
        """The mean of a sample, once for each channel."""
        mean = x.reshape(len(x), -1).mean(axis=1, keepdims=True)
        return np.repeat(mean, x.shape[1], axis=1), None, x.shape

    def backward(self, dy: Array, cache: Shape, params: Arrays, grads: Arrays, back: Back) -> Gradient:
        """Every entry of a sample has the same share in all means."""
        share = dy.sum(axis=1) / dy.dtype.type(np.prod(cache[1:]))
        return np.broadcast_to(share.reshape(-1, *(1 for _ in cache[1:])), cache).copy()


@dataclass(frozen=True)
class BlindGate(ChannelGate):
    """A gate whose summary does not tell channels apart."""

    def layers(self, shape: Shape) -> tuple[Layer, ...]:
        """The gate's layers behind the mean over everything."""
        layers: tuple[Any, ...] = (MeanOfAll(), *self._mlp(), Decide(self.name))
        return layers
