"""MetaSNIP at a target node: prune the meta-model by sensitivity, then step on what is kept.

The channel variant leaves a network that skips what it closed. The weight variant is the paper's: its
mask is unstructured, dense arithmetic multiplies the zeros as well, and nothing is saved.

Source: mathematics.md §10 ([MG] section 5); Lee et al. 2018.
"""

from __future__ import annotations

import time

import numpy as np

from refimpl.federated.adapt import Adapted, AdaptSettings, Personal, adapt, descend
from refimpl.nn.context import Context
from refimpl.nn.network import Network
from refimpl.nn.objective import NetworkObjective
from refimpl.pruning.snip import is_weight, prune_channels, prune_weights

THETA = Context(train=("theta",))


def adapt_channels(
    plain: Network,
    gated: Network,
    w: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    settings: AdaptSettings,
    keep: float,
) -> Personal:
    """Close all but the best share `keep` of the gated layers' channels, then stage II.

    w belongs to `plain`, the result to `gated`, the same network with gates (constant ones here).
    """
    started = time.perf_counter()
    objective = NetworkObjective(plain, x, y, THETA)
    start = prune_channels(gated, objective, w, keep)
    seconds, work = time.perf_counter() - started, objective.work
    adapted = adapt(gated, start, x, y, settings)
    return Personal(gated, start, adapted._replace(seconds_gate=seconds, work_gate=work))


def adapt_weights(
    network: Network, w: np.ndarray, x: np.ndarray, y: np.ndarray, settings: AdaptSettings, keep: float
) -> Personal:
    """Set all but the best share `keep` of the weights to zero, then step on what is kept."""
    started = time.perf_counter()
    objective = NetworkObjective(network, x, y, THETA)
    mask = prune_weights(network, objective, w, keep)
    start = np.where(mask, w, w.dtype.type(0))
    seconds, work = time.perf_counter() - started, objective.work
    adapted, started = start.copy(), time.perf_counter()
    rate, where = settings.eta_theta, network.layout.theta
    step_work = descend(objective, adapted, where, rate, settings.steps, settings.lam, mask)
    done = Adapted(adapted, seconds, time.perf_counter() - started, work, step_work)
    return Personal(network, start, done, 1.0 - float(mask[is_weight(network)].mean()))
