"""MetaSNIP at a target node: prune the meta-model by sensitivity, then train what is kept.

The channel variant gives a network that skips closed channels. The weight variant is the paper's: its mask
has no structure, dense arithmetic multiplies the zeros as well, and no work is saved.

Source: mathematics.md §10 ([MG] section 5); Lee et al. 2018.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np

from refimpl.federated.adapt import Adapted, AdaptSettings, Personal, adapt
from refimpl.federated.local import Tally
from refimpl.federated.pruning.snip import is_weight, prune_channels, prune_weights
from refimpl.nn.network import Network
from refimpl.nn.objective import NetworkObjective
from refimpl.nn.task import CompiledObjective, NetworkTask


def _whole(
    network: Network, x: np.ndarray, y: np.ndarray, count: int
) -> Iterable[NetworkObjective | CompiledObjective]:
    """The loss on all samples, `count` times, with its gradient in theta."""
    return NetworkTask(network, x, y, train=("theta",)).draw(np.random.default_rng(0), count)


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
    chooser, *steps = _whole(network, x, y, 1 + settings.steps)
    choice, stage = Tally(), Tally()
    started = time.perf_counter()
    kept = prune_weights(network, chooser, w, keep)
    start = np.where(kept, w, w.dtype.type(0))
    between = time.perf_counter()
    choice.add(chooser)
    adapted, gradient = start.copy(), np.empty_like(w)
    for objective in steps:
        objective(adapted, gradient)
        gradient *= kept
        adapted -= w.dtype.type(settings.eta_theta) * gradient
        stage.add(objective)
    seconds = between - started, time.perf_counter() - between
    off = 1.0 - float(kept[is_weight(network)].mean())
    return Personal(network, start, Adapted(adapted, *seconds, choice.flops, stage.flops), True, off)
