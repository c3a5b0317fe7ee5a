"""MetaSNIP: an ungated meta-backbone, pruned at the target node by connection sensitivity.

The sensitivity of weight j is |w_j dL/dw_j|, the derivative of the loss with respect to a mask that
multiplies w_j, at the meta-model and on the node's adaptation data. If the products of all parameters of a
channel (kernel and bias) are added before taking the absolute value, the result is the derivative with
respect to a mask on that channel. Whole channels can be skipped by a processor.

Source: mathematics.md §10 ([MG] section 5); Lee et al. 2018, eq. 6. The channel variant is derived.
"""

from __future__ import annotations

import numpy as np

from refimpl.contracts import Objective
from refimpl.errors import DivergenceError, InputError, expect_numbers
from refimpl.nn.layers import Conv2d, Linear
from refimpl.nn.network import Network
from refimpl.optim.prox.contract import check_alike
from refimpl.shares import at_least


def best(scores: np.ndarray, count: int) -> np.ndarray:
    """Booleans (n,), true at the `count` highest scores (n,); of equal scores the lower index is kept.

    Raises `InputError` unless the scores are a 1-D array of real numbers, and `DivergenceError` if one is not
    finite: there is no order then.
    """
    if not isinstance(scores, np.ndarray) or scores.ndim != 1 or scores.dtype.kind not in "biuf":
        got = f"{scores.dtype} {scores.shape}" if isinstance(scores, np.ndarray) else type(scores).__name__
        raise InputError(f"pruning: expected scores as a 1-D array of real numbers, got {got}")
    if not np.isfinite(scores).all():
        raise DivergenceError(
            "pruning: a score is not finite, so nothing can be chosen; train at lower rates"
        )
    mask = np.zeros(scores.size, dtype=bool)
    mask[np.argsort(-scores, kind="stable")[:count]] = True
    return mask


def keep_top(scores: np.ndarray, keep: float) -> np.ndarray:
    """The `best` share `keep` of the scores (n,), rounded up."""
    expect_numbers("snip, share to keep", positive=True, keep=keep)
    if keep > 1:
        raise InputError(f"snip: the share to keep must lie in (0, 1], got {keep}")
    return best(scores, at_least(keep, scores.size))


def _gradient(objective: Objective, w: np.ndarray) -> np.ndarray:
    """The objective's gradient at w."""
    check_alike("snip", w=w)
    gradient = np.empty_like(w)
    objective(w, gradient)
    return gradient


def weight_scores(objective: Objective, w: np.ndarray) -> np.ndarray:
    """|w_j dL/dw_j| for every entry of w (d,)."""
    return np.abs(w * _gradient(objective, w))


def channel_scores(gated: Network, objective: Objective, w: np.ndarray) -> list[np.ndarray]:
    """|sum over the channel of w dL/dw|, one array (K,) for each gated layer of `gated`.

    w and objective belong to the ungated network; its backbone parameters have the same names.
    """
    products = w * _gradient(objective, w)
    if w.size != gated.layout.theta.stop:
        raise InputError(
            f"snip: w has {w.size} entries, the backbone of {gated.name} {gated.layout.theta.stop}; "
            "give the same network with gates"
        )
    scores = []
    for block in gated.gates:
        layer = block.body[0]
        if not isinstance(layer, (Conv2d, Linear)):
            raise InputError(
                f"snip: {block.gate.name} gates a {type(layer).__name__}, expected a weighted layer"
            )
        total = np.zeros(block.gate.out_channels)
        for parameter in layer.parameters():
            slot = gated.layout.by_name[parameter.name]  # theta comes first in both layouts: at one place
            rows = products[slot.start : slot.stop].reshape(block.gate.out_channels, -1)
            total += rows.sum(axis=1, dtype=np.float64)
        scores.append(np.abs(total))
    return scores


def prune_channels(gated: Network, objective: Objective, w: np.ndarray, keep: float) -> np.ndarray:
    """Parameters of `gated` with the backbone of w and constant gates, which open the globally best channels.

    A gate whose A2 is zero is open for every input if its b2 is (0, +1), and closed if it is (0, 0); so the
    channels of a pruned network are skipped and counted exactly as those of a gated one.
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
