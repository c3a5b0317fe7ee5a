"""Group normalisation, and batch normalisation whose statistics are frozen.

Training normalises with the statistics of the batch (`BatchNorm2d`). For inference `frozen` makes a network
whose statistics are parameters of their own, of the part `stats`, and `calibrate` sets them from data; they
have no gradient. A sample's logits then no longer depend on the other samples of its batch.

Source: mathematics.md §2.5; Wu & He 2018, eq. 1-7 (group normalisation). Derived (backward).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np

from refimpl.errors import InputError
from refimpl.kernels import activation, norm, vector
from refimpl.kernels.arrays import check_like, tidy_float, tidy_mask
from refimpl.nn.context import Context
from refimpl.nn.layers import (
    Array,
    Arrays,
    Back,
    BatchNorm2d,
    Block,
    Flow,
    Gradient,
    Layer,
    Mask,
    Normalisation,
)
from refimpl.nn.layout import Parameter
from refimpl.nn.network import Network
from refimpl.nn.plan import plan
from refimpl.nn.pointwise import as_maps
from refimpl.nn.run import run_forward


class NormCache(NamedTuple):
    """The input, or what was made of it, and 1/std where it was computed."""

    x: np.ndarray
    normalised: np.ndarray
    inverse_std: np.ndarray


@dataclass(frozen=True)
class GroupNorm(Normalisation):
    """Normalises each sample's groups of neighbouring channels: x (N,C,H,W) -> same shape.

    `groups` must divide the channels.
    """

    groups: int = 1

    def __post_init__(self) -> None:
        if self.groups < 1 or self.channels % self.groups:
            raise InputError(f"{self.name}: {self.groups} groups do not divide {self.channels} channels")

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, Any]:
        """Y = weight * (X - mean)/std + bias, with the statistics of each group."""
        maps = self._enter(x)
        normalised, y = np.empty_like(maps), np.empty_like(maps)
        inverse_std = np.empty((len(maps), self.groups))
        weight, bias = params[f"{self.name}.weight"], params[f"{self.name}.bias"]
        norm.group_norm_forward(maps, weight, bias, self.eps, normalised, inverse_std, y)
        y = y.reshape(np.shape(x))
        return y, None, NormCache(y, normalised, inverse_std)

    def backward(self, dy: Array, cache: NormCache, params: Arrays, grads: Arrays, back: Back) -> Gradient:
        """Gradients of scale and shift, and dx through the statistics."""
        dy = tidy_float(self.name, "dy", dy)
        check_like(self.name, "dy", dy, cache.x)
        dx, weight = np.empty_like(cache.normalised), params[f"{self.name}.weight"]
        targets = self._gradients(grads, back, dy)
        norm.group_norm_backward(
            as_maps(dy), cache.normalised, cache.inverse_std, weight, False, *targets, dx
        )
        return dx.reshape(dy.shape) if back.need_dx else None


@dataclass(frozen=True)
class FrozenNorm2d(Normalisation):
    """Batch normalisation with the statistics `running_mean` and `running_var` (C,) of w.

    It treats each channel by itself, so it may stand inside a gated body, and closed channels are skipped.
    """

    channelwise: ClassVar[bool] = True

    def parameters(self) -> tuple[Parameter, ...]:
        """Scale and shift, and the statistics: mean 0 and variance 1."""
        return (
            *super().parameters(),
            Parameter(f"{self.name}.running_mean", (self.channels,), "stats"),
            Parameter(f"{self.name}.running_var", (self.channels,), "stats", fill=(1.0,)),
        )

    def _statistics(self, params: Arrays) -> tuple[np.ndarray, np.ndarray, float]:
        return params[f"{self.name}.running_mean"], params[f"{self.name}.running_var"], self.eps

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, Any]:
        """Y = weight * (X - mean)/sqrt(var + eps) + bias on the channels of `flow.writes`."""
        maps = self._enter(x)
        y, mask = np.empty_like(maps), tidy_mask(self.name, "mask", flow.writes, *maps.shape[:2])
        weight, bias = params[f"{self.name}.weight"], params[f"{self.name}.bias"]
        norm.frozen_norm_forward(maps, weight, bias, *self._statistics(params), mask, y)
        y = y.reshape(np.shape(x))
        return y, flow.writes, NormCache(y, maps, maps)

    def backward(self, dy: Array, cache: NormCache, params: Arrays, grads: Arrays, back: Back) -> Gradient:
        """Gradients of scale and shift, and dx; the statistics have none."""
        dy = tidy_float(self.name, "dy", dy)
        check_like(self.name, "dy", dy, cache.x)
        maps, dx = as_maps(dy), np.empty_like(cache.normalised)
        mask = tidy_mask(self.name, "dy_mask", back.dy_mask, *maps.shape[:2])
        targets = self._gradients(grads, back, dy)
        weight, statistics = params[f"{self.name}.weight"], self._statistics(params)
        norm.frozen_norm_backward(maps, cache.normalised, weight, *statistics, mask, False, *targets, dx)
        return dx.reshape(dy.shape) if back.need_dx else None


def frozen(network: Network) -> Network:
    """The network with frozen statistics in the place of those of the batch.

    Its w is the given network's followed by the statistics, which `calibrate` sets.
    """
    return replace(network, layers=_exchanged(network.layers, BatchNorm2d, FrozenNorm2d))


def _exchanged(
    layers: Sequence[Layer], old: type[Normalisation], new: type[Normalisation]
) -> tuple[Layer, ...]:
    """The layers with every normalisation of one kind made one of the other, inside blocks too."""
    out: list[Layer] = []
    for layer in layers:
        if isinstance(layer, Block):
            inner = {
                name: _exchanged(getattr(layer, name), old, new)
                for name in ("body", "shortcut")
                if hasattr(layer, name)
            }
            layer = replace(layer, **inner)  # type: ignore[type-var]
        elif isinstance(layer, Normalisation) and type(layer) is old:
            layer = cast(Layer, new(layer.name, layer.channels, layer.eps))
        out.append(layer)
    return tuple(out)


def calibrate(network: Network, w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A copy of w (d,) whose statistics are those of the samples x, taken as one batch.

    network: one that `frozen` gave. On x itself it then computes what normalising with the batch does, up to
    rounding. Raises `InputError` for vectors or samples that do not fit. Source: mathematics.md §2.5.
    """
    network.layout.check("calibrate", w)
    x, found = network.check_batch("calibrate", x, w.dtype), w.copy()
    views = network.layout.views(found)

    class Recording(BatchNorm2d):
        def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, Any]:
            y, mask, cache = super().forward(params, x, flow)
            views[f"{self.name}.running_mean"][:] = batch_means(x, np.ones_like(x))
            views[f"{self.name}.running_var"][:] = cache.inverse_std**-2.0 - self.eps
            return y, mask, cache

    layers, context = _exchanged(network.layers, FrozenNorm2d, Recording), Context()
    run_forward(plan(layers, network.input_shape, context.routing), views, x, context)
    return found


def batch_means(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean over samples and pixels of a * b for each channel, (C,), in a fixed order."""
    sums = np.empty(a.shape[:2], dtype=np.float64)
    activation.channel_products(as_maps(a), as_maps(b), sums)
    out = np.empty(a.shape[1], dtype=np.float64)
    vector.mean_of_rows(sums, np.full(len(a), 1.0 / (len(a) * as_maps(a).shape[2])), out)
    return out
