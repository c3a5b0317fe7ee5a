"""Pooling and flattening. A closed channel stays closed through each of them.

Source: mathematics.md §2.1 (masks pass through pooling), §2.2 (global average pooling). Derived.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from refimpl.errors import InputError
from refimpl.kernels import activation, pool
from refimpl.kernels.arrays import check_axes, check_shape, output_size, tidy_float, tidy_mask
from refimpl.kernels.checked import CheckedKernel
from refimpl.nn.layers import Array, Arrays, Back, Flow, Gradient, Mask, Pair, Plain, Shape, Windowed
from refimpl.nn.pointwise import as_maps, tidy_samples


class PoolCache(NamedTuple):
    """Input shape, and where the maximum lay (nothing for averages)."""

    shape: Shape
    where: tuple[np.ndarray, ...]


def _open_channels(flow: Flow) -> Mask:
    return flow.reads if flow.writes is None else flow.writes


@dataclass(frozen=True)
class Window(Windowed, Plain):
    """Shared by the windowed pools: window, stride (default: the window), padding on each side."""

    kernel_size: int | Pair = 2
    stride: int | Pair | None = None
    padding: int | Pair = 0
    keeps_zero: ClassVar[bool] = True
    channelwise: ClassVar[bool] = True
    records: ClassVar[bool] = False  # whether the place of the winner is kept
    kernels: ClassVar[tuple[CheckedKernel, CheckedKernel]]

    def __post_init__(self) -> None:
        who = type(self).__name__
        if min(*self.window, *self.step) < 1:
            raise InputError(f"{who}: window and stride must be at least 1, got {self.window}, {self.step}")
        if not all(0 <= 2 * p <= size for p, size in zip(self.pad, self.window, strict=True)):
            raise InputError(f"{who}: padding must be 0 to half of the window {self.window}, got {self.pad}")

    def output_shape(self, shape: Shape) -> Shape:
        """(C,H,W) -> (C,P,Q); positions that do not fill a window are dropped."""
        if len(shape) != 3:
            raise InputError(f"{type(self).__name__}: expected an input of shape (C,H,W), got {shape}")
        rows, cols = output_size((shape[1], shape[2]), self.window, self.step, self.pad)
        if rows < 1 or cols < 1:
            raise InputError(
                f"{type(self).__name__}: input {shape[1:]} is smaller than the window {self.window}"
            )
        return (shape[0], rows, cols)

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, PoolCache]:
        """Y on open channels."""
        who = type(self).__name__
        x = tidy_float(who, "x", x)
        check_axes(who, "x", x, "NCHW")
        y = np.empty((x.shape[0], *self.output_shape(x.shape[1:])), dtype=x.dtype)
        mask = tidy_mask(who, "mask", _open_channels(flow), *x.shape[:2])
        where = (np.empty(y.shape, dtype=np.int32),) if self.records else ()
        self.kernels[0].kernel(x, self.window, self.step, self.pad, mask, y, *where)
        return y, _open_channels(flow), PoolCache(x.shape, where)

    def backward(self, dy: Array, cache: PoolCache, params: Arrays, grads: Arrays, back: Back) -> Gradient:
        """Dx on open channels."""
        if not back.need_dx:
            return None
        who, shape = type(self).__name__, cache.shape
        dy = tidy_float(who, "dy", dy)
        check_shape(who, "dy", dy, (shape[0], *self.output_shape(shape[1:])))
        mask, dx = tidy_mask(who, "dy_mask", back.dy_mask, *shape[:2]), np.empty(shape, dtype=dy.dtype)
        self.kernels[1].kernel(dy, *cache.where, self.window, self.step, self.pad, mask, dx)
        return dx


@dataclass(frozen=True)
class MaxPool2d(Window):
    """Largest value of each window, which gets the gradient; the first one wins a tie.

    kernel_size: that of a window; stride: step from window to window (None: windows touch); padding: pixels
    that are added on each side, which count as minus infinity, so they never win.
    """

    records: ClassVar[bool] = True
    kernels = (pool.max_forward, pool.max_backward)


@dataclass(frozen=True)
class AvgPool2d(Window):
    """Mean of each window, zeros of the padding included; the gradient is shared out over it."""

    kernels = (pool.average_forward, pool.average_backward)


@dataclass(frozen=True)
class GlobalAvgPool2d(Plain):
    """Mean over all pixels of a channel: (N,C,H,W) -> (N,C)."""

    keeps_zero: ClassVar[bool] = True
    channelwise: ClassVar[bool] = True

    def output_shape(self, shape: Shape) -> Shape:
        """(C,H,W) -> (C,)."""
        if len(shape) != 3:
            raise InputError(f"GlobalAvgPool2d: expected an input of shape (C,H,W), got {shape}")
        return (shape[0],)

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, Shape]:
        """Y = channel means on open channels."""
        x = tidy_float("GlobalAvgPool2d", "x", x)
        check_axes("GlobalAvgPool2d", "x", x, "NCHW")
        y = np.empty(x.shape[:2], dtype=x.dtype)
        mask = tidy_mask("GlobalAvgPool2d", "mask", _open_channels(flow), *y.shape)
        activation.channel_means.kernel(as_maps(x), mask, y)
        return y, _open_channels(flow), x.shape

    def backward(self, dy: Array, cache: Shape, params: Arrays, grads: Arrays, back: Back) -> Gradient:
        """Dx = dy/(H*W) at every pixel."""
        if not back.need_dx:
            return None
        dy = tidy_float("GlobalAvgPool2d", "dy", dy)
        check_shape("GlobalAvgPool2d", "dy", dy, cache[:2])
        dx, mask = np.empty(cache, dy.dtype), tidy_mask("GlobalAvgPool2d", "dy_mask", back.dy_mask, *dy.shape)
        activation.share_out.kernel(dy, mask, as_maps(dx))
        return dx


@dataclass(frozen=True)
class Flatten(Plain):
    """(N,C,H,W) -> (N,C*H*W); the channel mask lives on as a mask over groups of H*W features."""

    keeps_zero: ClassVar[bool] = True

    def output_shape(self, shape: Shape) -> Shape:
        """All dimensions in one."""
        return (math.prod(shape),)

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, Shape]:
        """A reshaped view."""
        x = tidy_samples("Flatten", x)
        return x.reshape(len(x), math.prod(x.shape[1:])), _open_channels(flow), x.shape

    def backward(self, dy: Array, cache: Shape, params: Arrays, grads: Arrays, back: Back) -> Gradient:
        """A reshaped view."""
        if not back.need_dx:
            return None
        dy = tidy_float("Flatten", "dy", dy)
        check_shape("Flatten", "dy", dy, (cache[0], math.prod(cache[1:])))
        return dy.reshape(cache)
