"""MetaSNIP at a target node: prune the meta-model by sensitivity, then train what is kept.

The channel variant gives a network that skips closed channels. The weight variant is the paper's: its mask
has no structure. Gradients of its convolutions multiply only kept weights; predictions multiply the zeros.

Source: mathematics.md §10 ([MG] section 5); Lee et al. 2018.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refimpl.errors import ConfigError
from refimpl.federated.adapt import Adapted, AdaptSettings, Personal, Target, adapt
from refimpl.federated.local import Tally
from refimpl.federated.methods.metagater import UngatedMetaGater
from refimpl.federated.pruning.snip import is_weight, prune_channels, prune_weights
from refimpl.nn.network import Network
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.task import CompiledObjective, NetworkTask
from refimpl.nn.weightmask import WeightMask
from refimpl.registry import METHODS, key

PRUNED = "before is the accuracy of the meta-model, pruned that of what pruning leaves, before gradient steps"


@METHODS.register("metasnip")
@dataclass(frozen=True)
class MetaSNIP(UngatedMetaGater):
    """The meta-model of MetaGater without gates; a target node prunes whole channels of it."""

    snip_keep: float = key(
        0.5,
        "share of gated channels (metasnip) or weights (metasnip-weights) kept",
        above=0.0,
        at_most=1.0,
        adapts=True,
    )
    trains_as = "metagater-ungated"
    prunes = "channels"
    note = PRUNED
    labels = {"gate ms": "prune ms"}  # noqa: RUF012 - a constant of the class

    @staticmethod
    def check(config: Any) -> None:
        """Raise `ConfigError` if lam is zero, or if no layer is named whose channels could be pruned."""
        UngatedMetaGater.check(config)
        if not config.gates:
            raise ConfigError(
                "config: metasnip prunes channels of the layers named by gates, and none is named; "
                "name some, or use metasnip-weights"
            )

    def personalise(self, target: Target) -> Personal:
        """Prune channels, then train what is kept."""
        network, w, x, y, settings = target.network, target.w, target.x, target.y, target.settings
        return adapt_channels(network, target.gated(), w, x, y, settings, self.snip_keep)


@METHODS.register("metasnip-weights")
@dataclass(frozen=True)
class MetaSNIPWeights(MetaSNIP):
    """The same meta-model; a target node prunes single weights of it."""

    prunes = "weights"
    beside = "metasnip"
    note = (
        f"{PRUNED}; its masks are unstructured: they save work in the gradients of convolutions only; "
        "metasnip prunes whole channels, which are always skipped"
    )
    check = UngatedMetaGater.check

    def personalise(self, target: Target) -> Personal:
        """Prune weights, then train those that are kept."""
        network, w, x, y, settings = target.network, target.w, target.x, target.y, target.settings
        return adapt_weights(network, w, x, y, settings, self.snip_keep)


def _whole(
    network: Network, x: np.ndarray, y: np.ndarray, count: int, weights: WeightMask | None = None
) -> Iterable[NetworkObjective | CompiledObjective]:
    """The loss on all samples, `count` times, with its gradient in theta."""
    task = NetworkTask(network, x, y, train=("theta",), weights=weights)
    return task.draw(np.random.default_rng(0), count)


def adapt_channels(
    plain: Network,
    gated: Network,
    w: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    settings: AdaptSettings,
    keep: float,
) -> Personal:
    """Close all but the best share `keep` of the gated layers' channels, then run stage II.

    w belongs to `plain`; the result belongs to `gated`, the same network with gates, which are constant here.
    """
    (objective,), tally = _whole(plain, x, y, 1), Tally()
    started = time.perf_counter()
    start = prune_channels(gated, objective, w, keep)
    seconds = time.perf_counter() - started
    tally.add(objective)
    adapted = adapt(gated, start, x, y, settings)
    adapted = adapted._replace(seconds_gate=seconds, flops_gate=tally.flops)
    return Personal(gated, start, adapted, pruned=True)


def adapt_weights(
    network: Network, w: np.ndarray, x: np.ndarray, y: np.ndarray, settings: AdaptSettings, keep: float
) -> Personal:
    """Set all but the best share `keep` of the weights to zero, then train those that are kept."""
    (chooser,), choice, stage = _whole(network, x, y, 1), Tally(), Tally()
    started = time.perf_counter()
    kept = prune_weights(network, chooser, w, keep)
    mask = WeightMask(network.layout, kept)
    start = mask.of(w)
    between = time.perf_counter()
    choice.add(chooser)
    adapted, gradient = start.copy(), np.empty_like(w)
    for objective in _whole(network, x, y, settings.steps, mask):
        objective(adapted, gradient)
        adapted -= w.dtype.type(settings.eta_theta) * gradient
        stage.add(objective)
    seconds = between - started, time.perf_counter() - between
    off = 1.0 - float(kept[is_weight(network)].mean())
    return Personal(network, start, Adapted(adapted, *seconds, choice.flops, stage.flops), True, off)
