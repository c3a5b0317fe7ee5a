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
from refimpl.nn.layers import Array, Arrays, Back, Flow, Gradient, Layer, Mask, Plain, Shape


def as_maps(x: np.ndarray) -> np.ndarray:
    """View (N,C,H,W) as (N,C,H*W) and (N,F) as (N,F,1)."""
    return x.reshape(*x.shape[:2], math.prod(x.shape[2:]))


class PointwiseCache(NamedTuple):
    """What the derivative is computed from (input or output), and the channels that were open."""

    kept: np.ndarray
    mask: Mask


def _apply(
    kernel: CheckedKernel, mask: Mask, arrays: tuple[np.ndarray, ...], numbers: tuple[float, ...]
) -> np.ndarray:
    """Run `kernel(*arrays, *numbers, mask, out)`; without a mask the arrays are seen as one long channel.

    The arrays, (N,C,...), are tidy and alike; the columns of a mask may stand for groups of features.
    """
    first = arrays[0]
    view: Shape = (1, 1, first.size)
    on = tidy_group_mask(kernel.who, "mask", mask, *first.shape[:2])
    if mask is not None:
        view = (*on.shape, first.size // max(1, on.size))
    out = np.empty(first.shape, dtype=first.dtype)
    kernel.kernel(*[array.reshape(view) for array in arrays], *numbers, on, out.reshape(view))
    return out


def tidy_samples(who: str, x: np.ndarray) -> np.ndarray:
    """The samples as compiled code takes them; raises `InputError` unless they are floats (N,C,...)."""
    x = tidy_float(who, "x", x)
    if x.ndim < 2:
        raise InputError(f"{who}: expected samples of shape (N, C, ...), got {x.shape}")
    return x


class Pointwise(Plain):
    """An activation: its kernels, and whether its derivative is computed from its input or its output."""

    channelwise: ClassVar[bool] = True
    from_output: ClassVar[bool] = False
    kernels: ClassVar[tuple[CheckedKernel, CheckedKernel]]
    numbers: tuple[float, ...] = ()  # further arguments of the kernels

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, PointwiseCache]:
        """Y on the channels wanted, or on the open ones where zero stays zero."""
        mask = flow.reads if flow.writes is None and self.keeps_zero else flow.writes
        x = tidy_samples(type(self).__name__, x)
        y = _apply(self.kernels[0], mask, (x,), self.numbers)
        return y, mask, PointwiseCache(y if self.from_output else x, mask)

    def backward(
        self, dy: Array, cache: PointwiseCache, params: Arrays, grads: Arrays, back: Back
    ) -> Gradient:
        """Dx = dy * f'(x)."""
        if not back.need_dx:
            return None
        dy, kernel = tidy(dy), self.kernels[1]
        check_like(kernel.who, "dy", dy, cache.kept)
        return _apply(kernel, back.dy_mask, (dy, cache.kept), self.numbers)


@dataclass(frozen=True)
class ReLU(Pointwise):
    """max(x, 0), with derivative 0 at 0."""

    keeps_zero: ClassVar[bool] = True
    kernels = (activation.relu_forward, activation.relu_backward)


@dataclass(frozen=True)
class LeakyReLU(Pointwise):
    """x where it is positive, else slope * x; its derivative at 0 is the slope."""

    slope: float = 0.01
    keeps_zero: ClassVar[bool] = True
    kernels = (activation.leaky_forward, activation.leaky_backward)

    @property
    def numbers(self) -> tuple[float, ...]:  # type: ignore[override]
        """The slope."""
        return (float(self.slope),)


@dataclass(frozen=True)
class Softplus(Pointwise):
    """log(1 + e**x), with derivative sigmoid(x)."""

    kernels = (activation.softplus_forward, activation.softplus_backward)


@dataclass(frozen=True)
class Tanh(Pointwise):
    """Hyperbolic tangent, with derivative 1 - y**2."""

    keeps_zero: ClassVar[bool] = True
    from_output: ClassVar[bool] = True
    kernels = (activation.tanh_forward, activation.tanh_backward)


ACTIVATIONS: dict[str, Layer] = {"relu": ReLU(), "softplus": Softplus(), "tanh": Tanh()}
