"""MetaSNIP: an ungated meta-backbone, pruned at the target node by connection sensitivity.

The sensitivity of weight j is |w_j dL/dw_j|, the derivative of the loss in a mask multiplied onto w_j,
taken at the meta-model on the node's adaptation data. Summed over all that produces a channel (kernel
and bias) before taking the absolute value, it is the derivative in a mask on that channel; whole
channels are what a processor can skip.

Source: mathematics.md §10 ([MG] section 5); Lee et al. 2018, eq. 6. The channel variant is derived.
"""

from __future__ import annotations

import math

import numpy as np

from refimpl.errors import InputError
from refimpl.federated.local import Objective
from refimpl.nn.layers import Conv2d, Linear
from refimpl.nn.network import Network


def _check_share(keep: float) -> None:
    if not 0 < keep <= 1:
        raise InputError(f"snip: the share to keep must lie in (0, 1], got {keep}")


def keep_top(scores: np.ndarray, keep: float) -> np.ndarray:
    """Boolean mask of the ceil(keep * n) largest of n scores; ties go to the lower index."""
    _check_share(keep)
    count = math.ceil(keep * scores.size)
    mask = np.zeros(scores.size, dtype=np.bool_)
    mask[np.argsort(-scores, kind="stable")[:count]] = True
    return mask


def weight_scores(objective: Objective, w: np.ndarray) -> np.ndarray:
    """|w_j dL/dw_j| for every entry of w (d,)."""
    gradient = np.empty_like(w)
    objective(w, gradient)
    return np.abs(w * gradient)


def channel_scores(gated: Network, objective: Objective, w: np.ndarray) -> list[np.ndarray]:
    """|sum over the channel of w dL/dw|, one array (K,) for each gated layer of `gated`.

    w and objective belong to the ungated network; its backbone parameters have the same names.
    """
    gradient = np.empty_like(w)
    objective(w, gradient)
    products = w * gradient
    scores = []
    for block in gated.gates:
        layer = block.body[0]
        if not isinstance(layer, (Conv2d, Linear)):
            raise InputError(
                f"snip: {block.gate.name} gates a {type(layer).__name__}, expected a weighted layer"
            )
        total = np.zeros(block.gate.out_channels)
        for name in (f"{layer.name}.weight", f"{layer.name}.bias"):
            slot = gated.layout.by_name[name]  # theta comes first: same place in both layouts
            rows = products[slot.start : slot.stop].reshape(block.gate.out_channels, -1)
            total += rows.sum(axis=1, dtype=np.float64)
        scores.append(np.abs(total))
    return scores


def prune_channels(gated: Network, objective: Objective, w: np.ndarray, keep: float) -> np.ndarray:
    """Parameters of `gated` with the backbone of w and constant gates: the globally best channels open.

    A gate whose A2 is zero and whose b2 is (0, +1) is open, (0, 0) closed, for every input; so the pruned
    network is skipped and measured exactly as a gated one.
    """
    scores = channel_scores(gated, objective, w)
    kept = keep_top(np.concatenate(scores), keep)
    pruned = np.zeros(gated.layout.size, dtype=w.dtype)
    pruned[gated.layout.theta] = w
    views = gated.layout.views(pruned)
    start = 0
    for block, score in zip(gated.gates, scores, strict=True):
        views[f"{block.gate.name}.fc2.bias"][1::2] = kept[start : start + score.size]
        start += score.size
    return pruned


def is_weight(network: Network) -> np.ndarray:
    """Boolean mask over w: the entries of weights, as opposed to biases."""
    weights = np.zeros(network.layout.size, dtype=np.bool_)
    for slot in network.layout.slots:
        weights[slot.start : slot.stop] = slot.name.endswith(".weight")
    return weights


def prune_weights(network: Network, objective: Objective, w: np.ndarray, keep: float) -> np.ndarray:
    """Boolean mask over w: the globally best weights, and all biases (they are not connections)."""
    scores, weights = weight_scores(objective, w), is_weight(network)
    mask = ~weights
    mask[weights] = keep_top(scores[weights], keep)
    return mask
