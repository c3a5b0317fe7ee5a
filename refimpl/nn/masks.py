"""What the gates of a model do at a node: whether their masks depend on the sample, and on its class.

Source: mathematics.md §6. Derived.
"""

from __future__ import annotations

import numpy as np

from refimpl.nn.context import Gating
from refimpl.nn.network import Network
from refimpl.nn.predict import open_channels


def node_mask(network: Network, w: np.ndarray, x: np.ndarray, gating: Gating) -> np.ndarray:
    """Which gated channels are open for samples x (n, ...), of all gates in order: bool (n, K)."""
    return np.concatenate(list(open_channels(network, w, x, gating).values()), axis=1)


def conditional_share(mask: np.ndarray) -> float:
    """The share of channels whose mask (n, K) differs between samples."""
    return float((mask.any(axis=0) & ~mask.all(axis=0)).mean())


def class_information(mask: np.ndarray, y: np.ndarray) -> float:
    """Mutual information of a channel's mask and the class in bits, the mean over channels.

    mask bool (n, K), y (n,). It is that of the n samples themselves, so chance alone gives a conditional
    channel about (classes - 1)/(2 n ln 2) bits.
    """
    share = [(y == label).mean() for label in np.unique(y)]
    opened = [mask[y == label].mean(axis=0) for label in np.unique(y)]
    within = sum(part * _entropy(one) for part, one in zip(share, opened, strict=True))
    return max(0.0, float(np.mean(_entropy(mask.mean(axis=0)) - within)))


def _entropy(p: np.ndarray) -> np.ndarray:
    """The entropy, in bits, of a coin that shows heads with probability p."""
    q = np.stack([p, 1 - p])
    return -(q * np.log2(q, out=np.zeros_like(q), where=q > 0)).sum(axis=0)


def frozen_gates(network: Network, w: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A copy of w (d,) whose gates open, for every input, what they open for most rows of the mask (n, K)."""
    frozen, start = w.copy(), 0
    views = network.layout.views(frozen)
    for gate in (block.gate for block in network.gates):
        most = 2 * mask[:, start : start + gate.out_channels].sum(axis=0) > len(mask)
        views[f"{gate.name}.fc2.weight"][:] = 0
        views[f"{gate.name}.fc2.bias"].reshape(-1, 2)[:] = np.stack([np.zeros_like(most), most], axis=1)
        start += gate.out_channels
    return frozen
