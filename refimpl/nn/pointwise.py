"""Element-wise layers: ReLU, softplus and tanh (the smooth ones serve the theory's models).

Closed channels stay closed: ReLU and tanh map zero to zero, so a mask of the input is one of the output;
softplus does not, and closes a channel only where `flow.writes` says so.
Source: mathematics.md §2.1. Derived.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from refimpl.errors import InputError
from refimpl.kernels import activation
from refimpl.kernels.arrays import check_like, tidy, tidy_float, tidy_group_mask
from refimpl.kernels.checked import CheckedKernel
from refimpl.nn.layers import Arrays, Back, Flow, Layer, Mask, Shape
from refimpl.nn.layout import Parameter


def as_maps(x: np.ndarray) -> np.ndarray:
    """View (N,C,H,W) as (N,C,H*W) and (N,F) as (N,F,1)."""
    return x.reshape(*x.shape[:2], math.prod(x.shape[2:]))


class PointwiseCache(NamedTuple):
    """What the derivative is computed from (input or output), and the channels that were open."""

    kept: np.ndarray
    mask: Mask


def _apply(kernel: CheckedKernel, mask: Mask, *arrays: np.ndarray) -> np.ndarray:
    """Run `kernel(*arrays, mask, out)`; without a mask the arrays are seen as one long channel.

    The arrays, (N,C,...), are tidy and alike; the columns of a mask may stand for groups of features.
    """
    first = arrays[0]
    view: Shape = (1, 1, first.size)
    on = tidy_group_mask(kernel.who, "mask", mask, *first.shape[:2])
    if mask is not None:
        view = (*on.shape, first.size // max(1, on.size))
    out = np.empty(first.shape, dtype=first.dtype)
    kernel.kernel(*[array.reshape(view) for array in arrays], on, out.reshape(view))
    return out


def tidy_samples(who: str, x: np.ndarray) -> np.ndarray:
    """The samples as compiled code takes them; raises `InputError` unless they are floats (N,C,...)."""
    x = tidy_float(who, "x", x)
    if x.ndim < 2:
        raise InputError(f"{who}: expected samples of shape (N, C, ...), got {x.shape}")
    return x


def _derive(kernel: CheckedKernel, dy: np.ndarray, cache: PointwiseCache, back: Back) -> np.ndarray | None:
    """Dx by the kernel, where it is wanted."""
    if not back.need_dx:
        return None
    dy = tidy(dy)
    check_like(kernel.who, "dy", dy, cache.kept)
    return _apply(kernel, back.dy_mask, dy, cache.kept)


class _Pointwise:
    """Shared shape logic: no parameters, shape kept."""

    channelwise: ClassVar[bool] = True

    def parameters(self) -> tuple[Parameter, ...]:
        """None."""
        return ()

    def output_shape(self, shape: Shape) -> Shape:
        """The input's shape."""
        return shape


@dataclass(frozen=True)
class ReLU(_Pointwise):
    """max(x, 0), with derivative 0 at 0."""

    keeps_zero: ClassVar[bool] = True

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, PointwiseCache]:
        """Y = max(X, 0) on open channels."""
        mask = flow.reads if flow.writes is None else flow.writes
        y = _apply(activation.relu_forward, mask, tidy_samples("ReLU", x))
        return y, mask, PointwiseCache(y, mask)

    def backward(
        self, dy: np.ndarray, cache: PointwiseCache, params: Arrays, grads: Arrays, back: Back
    ) -> np.ndarray | None:
        """Dx = dy where y > 0."""
        return _derive(activation.relu_backward, dy, cache, back)


@dataclass(frozen=True)
class Softplus(_Pointwise):
    """log(1 + e**x)."""

    keeps_zero: ClassVar[bool] = False

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, PointwiseCache]:
        """Y = log(1 + e**X) on the channels of `flow.writes`."""
        x = tidy_samples("Softplus", x)
        y = _apply(activation.softplus_forward, flow.writes, x)
        return y, flow.writes, PointwiseCache(x, flow.writes)

    def backward(
        self, dy: np.ndarray, cache: PointwiseCache, params: Arrays, grads: Arrays, back: Back
    ) -> np.ndarray | None:
        """Dx = dy * sigmoid(x)."""
        return _derive(activation.softplus_backward, dy, cache, back)


@dataclass(frozen=True)
class Tanh(_Pointwise):
    """Hyperbolic tangent."""

    keeps_zero: ClassVar[bool] = True

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, PointwiseCache]:
        """Y = tanh(X) on open channels."""
        mask = flow.reads if flow.writes is None else flow.writes
        y = _apply(activation.tanh_forward, mask, tidy_samples("Tanh", x))
        return y, mask, PointwiseCache(y, mask)

    def backward(
        self, dy: np.ndarray, cache: PointwiseCache, params: Arrays, grads: Arrays, back: Back
    ) -> np.ndarray | None:
        """Dx = dy * (1 - y**2)."""
        return _derive(activation.tanh_backward, dy, cache, back)


ACTIVATIONS: dict[str, Layer] = {"relu": ReLU(), "softplus": Softplus(), "tanh": Tanh()}
