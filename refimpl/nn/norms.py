"""Group normalisation, and batch normalisation whose statistics are frozen.

Training normalises with the statistics of the batch (`BatchNorm2d`), except under a gate: the statistics of a
batch would need the channels that a gate skips. Frozen statistics are parameters of their own, of the part
`stats`, which `calibrate` sets from data; they have no gradient. For inference `frozen` freezes all of a
network's. A sample's logits then no longer depend on the other samples of its batch.

Source: mathematics.md §2.5; Wu & He 2018, eq. 1-7 (group normalisation). Derived (backward).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from refimpl.errors import InputError
from refimpl.kernels import activation, norm, vector
from refimpl.kernels.arrays import tidy_mask
from refimpl.nn.context import Context, Gating
from refimpl.nn.layers import (
    Array,
    Arrays,
    BatchNorm2d,
    Block,
    Flow,
    Layer,
    Mask,
    Normalisation,
    NormCache,
)
from refimpl.nn.layout import Parameter
from refimpl.nn.network import Network
from refimpl.nn.plan import plan
from refimpl.nn.pointwise import as_maps
from refimpl.nn.run import run_forward


@dataclass(frozen=True)
class GroupNorm(Normalisation):
    """Normalises each sample's groups of neighbouring channels: x (N,C,H,W) -> same shape.

    `groups` must divide the channels.
    """

    groups: int = 1

    def __post_init__(self) -> None:
        if self.groups < 1 or self.channels % self.groups:
            raise InputError(f"{self.name}: {self.groups} groups do not divide {self.channels} channels")

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, NormCache]:
        """Y = weight * (X - mean)/std + bias, with the statistics of each group."""
        maps = self._enter(x)
        normalised, y = np.empty_like(maps), np.empty_like(maps)
        inverse_std = np.empty((len(maps), self.groups))
        norm.group_norm_forward(maps, *self._affine(params), self.eps, normalised, inverse_std, y)
        return y.reshape(np.shape(x)), None, NormCache(normalised, inverse_std, np.shape(x))

    def _backward(
        self, dy: Array, cache: NormCache, params: Arrays, mask: Mask, targets: tuple[Array, Array, Array]
    ) -> None:
        weight, _ = self._affine(params)
        norm.group_norm_backward(dy, cache.normalised, cache.inverse_std, weight, False, *targets)


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

    def statistics(self, params: Arrays) -> tuple[np.ndarray, np.ndarray, float]:
        """Mean and variance, and what is added to the variance."""
        return params[f"{self.name}.running_mean"], params[f"{self.name}.running_var"], self.eps

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, NormCache]:
        """Y = weight * (X - mean)/sqrt(var + eps) + bias on the channels of `flow.writes`."""
        maps = self._enter(x)
        y, mask = np.empty_like(maps), tidy_mask(self.name, "mask", flow.writes, *maps.shape[:2])
        norm.frozen_norm_forward(maps, *self._affine(params), *self.statistics(params), mask, y)
        return y.reshape(np.shape(x)), flow.writes, NormCache(maps, np.empty(0), np.shape(x))

    def _backward(
        self, dy: Array, cache: NormCache, params: Arrays, mask: Mask, targets: tuple[Array, Array, Array]
    ) -> None:
        weight, _ = self._affine(params)
        mask, statistics = tidy_mask(self.name, "dy_mask", mask, *dy.shape[:2]), self.statistics(params)
        norm.frozen_norm_backward(dy, cache.normalised, weight, *statistics, mask, False, *targets)


def frozen(network: Network) -> Network:
    """The network with frozen statistics in the place of those of the batch.

    Its w is the given network's followed by the statistics, which `calibrate` sets.
    """
    return replace(network, layers=_frozen(network.layers))


def _frozen(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers with frozen normalisations instead of those by batch, inside blocks too."""
    out: list[Layer] = []
    for layer in layers:
        if isinstance(layer, Block):
            branches = [name for name in ("body", "shortcut") if hasattr(layer, name)]
            inner = {name: _frozen(getattr(layer, name)) for name in branches}
            layer = replace(layer, **inner)  # type: ignore[type-var]
        elif isinstance(layer, BatchNorm2d):
            layer = FrozenNorm2d(layer.name, layer.channels, layer.eps)
        out.append(layer)
    return tuple(out)


def calibrate(network: Network, w: np.ndarray, x: np.ndarray, gating: Gating | None = None) -> np.ndarray:
    """A copy of w (d,) whose statistics are those of the samples x, taken as one batch.

    On x itself a network that `frozen` gave then computes what normalising with the batch does, up to
    rounding. A closed channel's statistics are those of what it would be. Gates decide by `gating` (None:
    `hard`). Raises `InputError` for vectors or samples that do not fit. Source: mathematics.md §2.5.
    """
    network.layout.check("calibrate", w)
    x, found = network.check_batch("calibrate", x, w.dtype), w.copy()
    views = network.layout.views(found)

    class Recording(FrozenNorm2d):
        def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, Any]:
            wide = as_maps(x).astype(np.float64)
            mean = batch_means(wide, np.ones_like(wide))
            centred = wide - mean[:, None]
            views[f"{self.name}.running_mean"][:] = mean
            views[f"{self.name}.running_var"][:] = batch_means(centred, centred)
            return super().forward(params, x, flow)

    context = Context(gating or Gating(), train=("phi",))  # then closed channels are computed as well
    steps = plan(network.layers, network.input_shape, context.routing._replace(dense=True))
    recording = [
        step._replace(layer=Recording(step.layer.name, step.layer.channels, step.layer.eps))
        if isinstance(step.layer, FrozenNorm2d)
        else step
        for step in steps
    ]
    run_forward(recording, views, x, context)
    return found


def batch_means(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean over samples and pixels of a * b for each channel, (C,), in a fixed order."""
    sums = np.empty(a.shape[:2], dtype=np.float64)
    activation.channel_products(as_maps(a), as_maps(b), sums)
    out = np.empty(a.shape[1], dtype=np.float64)
    vector.mean_of_rows(sums, np.full(len(a), 1.0 / (len(a) * as_maps(a).shape[2])), out)
    return out
