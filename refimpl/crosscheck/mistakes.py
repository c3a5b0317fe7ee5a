"""Layers that make a usual mistake, to compute what it leads to. Source: mathematics.md §2.1. Derived."""

from dataclasses import dataclass

import numpy as np

from refimpl.nn.layers import Arrays, Flow, Mask
from refimpl.nn.pooling import MaxPool2d, PoolCache


@dataclass(frozen=True)
class LastMaxPool2d(MaxPool2d):
    """Max-pooling in which the last of equal maxima gets the gradient."""

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, PoolCache]:
        """Y = window maximum on open channels."""
        y, mask, cache = super().forward(params, x, flow)
        edges = ((0, 0), (0, 0), *((pad, pad) for pad in self.pad))
        padded = np.pad(x, edges, constant_values=-np.inf)
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.window, axis=(2, 3))
        chosen = windows[:, :, :: self.step[0], :: self.step[1]].reshape(*y.shape, -1)
        last = chosen.shape[-1] - 1 - np.argmax(chosen[..., ::-1], axis=-1)
        return y, mask, cache._replace(where=(last.astype(np.int32),))
