"""Element-wise layers: ReLU, softplus and tanh (the smooth ones serve the theory's models).

Closed channels stay closed: ReLU and tanh map zero to zero, so a mask of the input is one of the output;
softplus does not, and closes a channel only where `flow.writes` says so.
Source: mathematics.md §2.1. Derived.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from refimpl.kernels import activation
from refimpl.kernels.conv import or_all_on
from refimpl.nn.layers import Arrays, Back, Flow, Layer, Mask, Shape
from refimpl.nn.layout import Parameter


def as_maps(x: np.ndarray) -> np.ndarray:
    """View (N,C,H,W) as (N,C,H*W) and (N,F) as (N,F,1)."""
    return x.reshape(x.shape[0], x.shape[1], -1)


class PointwiseCache(NamedTuple):
    """What the derivative is computed from (input or output), and the channels that were open."""

    kept: np.ndarray
    mask: Mask


def _apply(kernel: Callable[..., Any], arrays: tuple[np.ndarray, ...], mask: Mask) -> np.ndarray:
    """Run `kernel(*arrays, mask, out)`; without a mask the arrays are seen as one long channel."""
    out = np.empty_like(arrays[0])
    if mask is None:
        views = [a.reshape(1, 1, -1) for a in (*arrays, out)]
    else:
        views = [a.reshape(*mask.shape, -1) for a in (*arrays, out)]
    kernel(*views[:-1], or_all_on(mask), views[-1])
    return out


class _Pointwise:
    """Shared shape logic: no parameters, shape kept."""

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
        y = _apply(activation.relu_forward, (x,), mask)
        return y, mask, PointwiseCache(y, mask)

    def backward(
        self, dy: np.ndarray, cache: PointwiseCache, params: Arrays, grads: Arrays, back: Back
    ) -> np.ndarray | None:
        """Dx = dy where y > 0."""
        return _apply(activation.relu_backward, (dy, cache.kept), back.dy_mask) if back.need_dx else None


@dataclass(frozen=True)
class Softplus(_Pointwise):
    """log(1 + e**x)."""

    keeps_zero: ClassVar[bool] = False

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, PointwiseCache]:
        """Y = log(1 + e**X) on the channels of `flow.writes`."""
        y = _apply(activation.softplus_forward, (x,), flow.writes)
        return y, flow.writes, PointwiseCache(x, flow.writes)

    def backward(
        self, dy: np.ndarray, cache: PointwiseCache, params: Arrays, grads: Arrays, back: Back
    ) -> np.ndarray | None:
        """Dx = dy * sigmoid(x)."""
        return _apply(activation.softplus_backward, (dy, cache.kept), back.dy_mask) if back.need_dx else None


@dataclass(frozen=True)
class Tanh(_Pointwise):
    """Hyperbolic tangent."""

    keeps_zero: ClassVar[bool] = True

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, PointwiseCache]:
        """Y = tanh(X) on open channels."""
        mask = flow.reads if flow.writes is None else flow.writes
        y = _apply(activation.tanh_forward, (x,), mask)
        return y, mask, PointwiseCache(y, mask)

    def backward(
        self, dy: np.ndarray, cache: PointwiseCache, params: Arrays, grads: Arrays, back: Back
    ) -> np.ndarray | None:
        """Dx = dy * (1 - y**2)."""
        return _apply(activation.tanh_backward, (dy, cache.kept), back.dy_mask) if back.need_dx else None


ACTIVATIONS: dict[str, Layer] = {"relu": ReLU(), "softplus": Softplus(), "tanh": Tanh()}
