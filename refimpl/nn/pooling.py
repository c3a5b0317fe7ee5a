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
from refimpl.kernels.conv import or_all_on, output_size
from refimpl.nn.layers import Arrays, Back, Flow, Mask, Pair, Shape, pair
from refimpl.nn.layout import Parameter
from refimpl.nn.pointwise import as_maps


class PoolCache(NamedTuple):
    """Input shape, and where the maximum lay (empty for averages)."""

    shape: Shape
    where: np.ndarray


def _open_channels(flow: Flow) -> Mask:
    return flow.reads if flow.writes is None else flow.writes


class _Window:
    """Shared by the windowed pools: window, stride (default: the window), no padding, no parameters."""

    kernel_size: int | Pair
    stride: int | Pair | None

    @property
    def window(self) -> Pair:
        """Window height and width."""
        return pair(self.kernel_size)

    @property
    def step(self) -> Pair:
        """Vertical and horizontal stride."""
        return self.window if self.stride is None else pair(self.stride)

    def __post_init__(self) -> None:
        if min(*self.window, *self.step) < 1:
            raise InputError(
                f"{type(self).__name__}: window and stride must be at least 1, got {self.window}, {self.step}"
            )

    def parameters(self) -> tuple[Parameter, ...]:
        """None."""
        return ()

    def output_shape(self, shape: Shape) -> Shape:
        """(C,H,W) -> (C,P,Q); positions that do not fill a window are dropped."""
        if len(shape) != 3:
            raise InputError(f"{type(self).__name__}: expected an input of shape (C,H,W), got {shape}")
        rows, cols = output_size((shape[1], shape[2]), self.window, self.step, (0, 0))
        if rows < 1 or cols < 1:
            raise InputError(
                f"{type(self).__name__}: input {shape[1:]} is smaller than the window {self.window}"
            )
        return (shape[0], rows, cols)

    def _empty_output(self, x: np.ndarray) -> np.ndarray:
        return np.empty((x.shape[0], *self.output_shape(x.shape[1:])), dtype=x.dtype)


@dataclass(frozen=True)
class MaxPool2d(_Window):
    """Largest value of each window; the first one wins a tie."""

    kernel_size: int | Pair = 2
    stride: int | Pair | None = None
    keeps_zero: ClassVar[bool] = True

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, PoolCache]:
        """Y = window maximum on open channels."""
        mask = _open_channels(flow)
        y = self._empty_output(x)
        where = np.empty(y.shape, dtype=np.int32)
        pool.max_forward(x, self.window, self.step, or_all_on(mask), y, where)
        return y, mask, PoolCache(x.shape, where)

    def backward(
        self, dy: np.ndarray, cache: PoolCache, params: Arrays, grads: Arrays, back: Back
    ) -> np.ndarray | None:
        """Dx = dy at the winner of each window."""
        if not back.need_dx:
            return None
        dx = np.empty(cache.shape, dtype=dy.dtype)
        pool.max_backward(dy, cache.where, self.window, self.step, or_all_on(back.dy_mask), dx)
        return dx


@dataclass(frozen=True)
class AvgPool2d(_Window):
    """Mean of each window."""

    kernel_size: int | Pair = 2
    stride: int | Pair | None = None
    keeps_zero: ClassVar[bool] = True

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, PoolCache]:
        """Y = window mean on open channels."""
        mask = _open_channels(flow)
        y = self._empty_output(x)
        pool.average_forward(x, self.window, self.step, or_all_on(mask), y)
        return y, mask, PoolCache(x.shape, np.empty(0, dtype=np.int32))

    def backward(
        self, dy: np.ndarray, cache: PoolCache, params: Arrays, grads: Arrays, back: Back
    ) -> np.ndarray | None:
        """Dx = dy/area over each window."""
        if not back.need_dx:
            return None
        dx = np.empty(cache.shape, dtype=dy.dtype)
        pool.average_backward(dy, self.window, self.step, or_all_on(back.dy_mask), dx)
        return dx


@dataclass(frozen=True)
class GlobalAvgPool2d:
    """Mean over all pixels of a channel: (N,C,H,W) -> (N,C)."""

    keeps_zero: ClassVar[bool] = True

    def parameters(self) -> tuple[Parameter, ...]:
        """None."""
        return ()

    def output_shape(self, shape: Shape) -> Shape:
        """(C,H,W) -> (C,)."""
        if len(shape) != 3:
            raise InputError(f"GlobalAvgPool2d: expected an input of shape (C,H,W), got {shape}")
        return (shape[0],)

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, Shape]:
        """Y = channel means on open channels."""
        mask = _open_channels(flow)
        y = np.empty(x.shape[:2], dtype=x.dtype)
        activation.channel_means(as_maps(x), or_all_on(mask), y)
        return y, mask, x.shape

    def backward(
        self, dy: np.ndarray, cache: Shape, params: Arrays, grads: Arrays, back: Back
    ) -> np.ndarray | None:
        """Dx = dy/(H*W) at every pixel."""
        if not back.need_dx:
            return None
        dx = np.zeros(cache, dtype=dy.dtype)
        share = dy / dy.dtype.type(cache[2] * cache[3])
        activation.add_to_channels(share, or_all_on(back.dy_mask), as_maps(dx))
        return dx


@dataclass(frozen=True)
class Flatten:
    """(N,C,H,W) -> (N,C*H*W); the channel mask lives on as a mask over groups of H*W features."""

    keeps_zero: ClassVar[bool] = True

    def parameters(self) -> tuple[Parameter, ...]:
        """None."""
        return ()

    def output_shape(self, shape: Shape) -> Shape:
        """All dimensions in one."""
        return (math.prod(shape),)

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, Shape]:
        """A reshaped view."""
        return x.reshape(x.shape[0], -1), _open_channels(flow), x.shape

    def backward(
        self, dy: np.ndarray, cache: Shape, params: Arrays, grads: Arrays, back: Back
    ) -> np.ndarray | None:
        """A reshaped view."""
        return dy.reshape(cache) if back.need_dx else None
