"""Masks on single weights: data that goes with an objective, as gating does, and not another network.

    mask = WeightMask(network.layout, kept)            # kept: bool (d,), False where w is pruned
    task = NetworkTask(network, x, y, weights=mask)    # its objectives, descents and Hessian-vector products
    objective = NetworkObjective(network, x, y, Context(train=("theta",), weights=mask))
    predict = Predictor(network, w, weights=mask)

An objective under a mask is the function w -> L(m * w), with m = 1 where `kept` and 0 elsewhere: what w
holds at pruned entries has no effect, its gradient there is exactly zero, and H v is m * H(m * w) (m * v). So
a descent from w returns m * w plus steps that never leave the mask. Make one mask and use it for all tasks:
then the kernels are prepared once.

Convolutions run on kernels that multiply only kept weights (`kernels/sparse.py`); in other layers zeros are
multiplied. Whether the forward pass and the input gradient use these kernels depends on the share of weights
that a layer keeps, and never changes bits. The weight gradient of a convolution that has lost a weight is
summed in the order of `plain.kept_weight_grad`, whatever the share. Convolutions with gated channels,
with groups or with a dilation, and those that keep all their weights, are computed as without a mask, from
m * w.

Source: mathematics.md §14.1 (learning under a mask). Derived.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refimpl.errors import InputError
from refimpl.nn.layout import Layout


@dataclass(frozen=True, eq=False)
class WeightMask:
    """Which weights are kept. Masks are compared by identity.

    layout: of the network's vector w; kept: bool (d,), whether an entry of w is kept; sparse_below: the share
    of kept weights below which a convolution's forward pass and input gradient use the sparse kernels; 0
    stands for never, and anything above 1 for always.
    """

    layout: Layout
    kept: np.ndarray
    sparse_below: float = 0.5

    def __post_init__(self) -> None:
        kept = np.asarray(self.kept)
        if kept.dtype != np.bool_ or kept.shape != (self.layout.size,):
            raise InputError(
                f"WeightMask: expected kept as booleans of shape ({self.layout.size},), got {kept.dtype} "
                f"{kept.shape}; pass mask != 0 of the network's layout"
            )
        kept = kept.copy()
        kept.flags.writeable = False
        object.__setattr__(self, "kept", kept)

    def of(self, w: np.ndarray) -> np.ndarray:
        """A copy of w (d,) that is zero where it is pruned."""
        return np.where(self.kept, w, w.dtype.type(0))

    def of_weight(self, name: str) -> np.ndarray | None:
        """Which entries of a parameter are kept, in its shape; None if all of them are."""
        slot = self.layout.by_name[name]
        kept = self.kept[slot.start : slot.stop]
        return None if kept.all() else kept.reshape(slot.shape)
