"""What meta-training under a mask owes: pruned weights of convolutions are not multiplied.

Source: mathematics.md §14.2 (cost), §9.
"""

from __future__ import annotations

import math

import numpy as np

from refimpl.nn.context import Routing
from refimpl.nn.layers import Conv2d
from refimpl.nn.network import Network
from refimpl.nn.plan import plan
from refimpl.nn.work import dense_work


def executed_share(network: Network, mask: np.ndarray | None) -> float:
    """The FLOPs of a gradient in theta under a mask (d,), as a share of those without one."""
    if mask is None:
        return 1.0
    spared = 0
    for step in plan(network.layers, network.input_shape, Routing(("theta",), gated=False)):
        if isinstance(step.layer, Conv2d):
            slot = network.layout.by_name[f"{step.layer.name}.weight"]
            passes = 1 + any(step.needs) + step.need_dw
            lost = int((~mask[slot.start : slot.stop]).sum())
            spared += 2 * lost * math.prod(step.result[1:]) * passes
    return 1 - spared / dense_work(network, 1, ("theta",)).total
