"""Group normalisation, and batch normalisation whose statistics are frozen.

Training normalises with the statistics of the batch (`BatchNorm2d`), except under a gate: the statistics of a
batch would need the channels that a gate skips. Frozen statistics are parameters of their own, of the part
`stats`, which `calibrate` sets from data; they have no gradient. For inference `frozen` freezes all of a
network's. A sample's logits then no longer depend on the other samples of its batch, and predictions run the
`folded` network, which has no normalisation left behind a convolution.

Source: mathematics.md §2.5; Wu & He 2018, eq. 1-7 (group normalisation). Derived (backward).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, ClassVar

import numpy as np

from refimpl.errors import InputError, one_of
from refimpl.kernels import activation, norm, vector
from refimpl.kernels.arrays import tidy_mask
from refimpl.nn.context import Context, Gating
from refimpl.nn.gate import ChannelGate, Gated
from refimpl.nn.layers import (
    Array,
    Arrays,
    BatchNorm2d,
    Block,
    Conv2d,
    Flow,
    Layer,
    Mask,
    Normalisation,
    NormCache,
)
from refimpl.nn.layout import Parameter
from refimpl.nn.network import Network
from refimpl.nn.plan import every_layer, plan
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
        norm.group_norm_forward(maps, *self.affine(params), self.eps, normalised, inverse_std, y)
        return y.reshape(np.shape(x)), None, NormCache(normalised, inverse_std, np.empty(0), np.shape(x))

    def _backward(
        self, dy: Array, cache: NormCache, params: Arrays, mask: Mask, targets: tuple[Array, Array, Array]
    ) -> None:
        weight, _ = self.affine(params)
        norm.group_norm_backward(dy, cache.x, cache.inverse_std, weight, False, *targets)


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
        norm.frozen_norm_forward(maps, *self.affine(params), *self.statistics(params), mask, y)
        return y.reshape(np.shape(x)), flow.writes, NormCache(maps, np.empty(0), np.empty(0), np.shape(x))

    def _backward(
        self, dy: Array, cache: NormCache, params: Arrays, mask: Mask, targets: tuple[Array, Array, Array]
    ) -> None:
        weight, _ = self.affine(params)
        mask, statistics = tidy_mask(self.name, "dy_mask", mask, *dy.shape[:2]), self.statistics(params)
        norm.frozen_norm_backward(dy, cache.x, weight, *statistics, mask, False, *targets)


def frozen(network: Network) -> Network:
    """The network with frozen statistics in the place of those of the batch.

    Its w is the given network's followed by the statistics, which `calibrate` sets.
    """

    def each(chain: Sequence[Layer]) -> list[Layer]:
        return [
            FrozenNorm2d(one.name, one.channels, one.eps) if isinstance(one, BatchNorm2d) else one
            for one in chain
        ]

    return replace(network, layers=_exchanged(network.layers, each))


def _exchanged(
    chain: Sequence[Layer], exchange: Callable[[Sequence[Layer]], Sequence[Layer]]
) -> tuple[Layer, ...]:
    """What `exchange` makes of a chain, and of the chains inside its blocks."""
    out: list[Layer] = []
    for layer in exchange(chain):
        if isinstance(layer, Block):
            branches = [name for name in ("body", "shortcut") if hasattr(layer, name)]
            inner = {name: _exchanged(getattr(layer, name), exchange) for name in branches}
            layer = replace(layer, **inner)  # type: ignore[type-var]
        out.append(layer)
    return tuple(out)


SUMMARIES: dict[str, Callable[[str, int], Normalisation]] = {
    "normalised": partial(GroupNorm, part="phi"),
    "centred": partial(FrozenNorm2d, part="phi"),
}


def with_summaries(network: Network, kind: str) -> Network:
    """The network whose gates see their summaries `plain`, `normalised` or `centred` (mathematics.md §2.2c).

    The statistics of centred ones are parameters: mean 0 and variance 1 until a start sets them.
    """
    one_of("with_summaries", "kind", kind, ("plain", *SUMMARIES))
    if kind == "plain":
        return network

    def normed(gate: ChannelGate) -> ChannelGate:
        return replace(gate, norm=SUMMARIES[kind](f"{gate.name}.norm", gate.in_channels))

    def each(chain: Sequence[Layer]) -> list[Layer]:
        return [replace(one, gate=normed(one.gate)) if isinstance(one, Gated) else one for one in chain]

    return replace(network, layers=_exchanged(network.layers, each))


def without_gates(network: Network) -> Network:
    """The network with all channels open, and no gates."""

    def opened(chain: Sequence[Layer]) -> list[Layer]:
        return [one for layer in chain for one in (layer.body if isinstance(layer, Gated) else (layer,))]

    return replace(network, layers=_exchanged(network.layers, opened))


@lru_cache(maxsize=64)
def folded(network: Network) -> Network:
    """The network with every frozen normalisation right behind a convolution made a part of that convolution.

    It computes what the network does, up to rounding, with the parameters that `fold` gives. Predictions are
    made with it (`predict.py`), compiled or not.
    """
    return replace(network, layers=_exchanged(network.layers, _each_folded))


def _each_folded(chain: Sequence[Layer]) -> list[Layer]:
    """The layers of a chain without normalisations that are folded; their convolutions have a bias."""
    out: list[Layer] = []
    for layer in chain:
        if out and isinstance(layer, FrozenNorm2d) and isinstance(conv := out[-1], Conv2d):
            out[-1] = replace(conv, bias=True)
        else:
            out.append(layer)
    return out


def fold(network: Network, w: np.ndarray) -> np.ndarray:
    """The parameters of `folded(network)` that do what w (d,) does: computed in float64, rounded once.

    y = s (W x + b - mean) + beta with s = gamma/sqrt(var + eps) has the weights s W and the bias
    s (b - mean) + beta. Source: mathematics.md §2.5. Derived.
    """
    if network.layout.stats.start == network.layout.size:
        return w  # nothing is frozen
    goal, params = folded(network), network.layout.views(w)
    found, conv = {**params}, ""
    for layer in every_layer(network.layers):
        if isinstance(layer, FrozenNorm2d) and layer.parameters()[0].name not in goal.layout.by_name:
            gamma, beta = layer.affine(params)
            mean, variance, eps = layer.statistics(params)
            scale = gamma / np.sqrt(variance.astype(np.float64) + eps)
            found[f"{conv}.weight"] = found[f"{conv}.weight"] * scale[:, None, None, None]
            found[f"{conv}.bias"] = (found.get(f"{conv}.bias", 0.0) - mean) * scale + beta
        elif isinstance(layer, Conv2d):
            conv = layer.name
    return goal.layout.from_arrays({name: found[name] for name in goal.layout.by_name}, w.dtype.name)


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
