"""Layers that make a usual mistake, to compute what it leads to. Source: mathematics.md §2.1. Derived."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refimpl.nn.layers import Arrays, Back, Flow, Mask
from refimpl.nn.pooling import MaxPool2d, PoolCache


@dataclass(frozen=True)
class LastMaxPool2d(MaxPool2d):
    """Max-pooling in which the last of equal maxima gets the gradient; it turns maps by 180 degrees."""

    def forward(self, params: Arrays, x: np.ndarray, flow: Flow) -> tuple[np.ndarray, Mask, PoolCache]:
        """Y = window maximum on open channels."""
        rows, cols = self._filled(self.output_shape(x.shape[1:])[1:])
        y, mask, cache = super().forward(params, _turned(x[:, :, :rows, :cols]), flow)
        return _turned(y), mask, PoolCache(x.shape, cache.where)

    def backward(
        self, dy: np.ndarray, cache: PoolCache, params: Arrays, grads: Arrays, back: Back
    ) -> np.ndarray | None:
        """Dx = dy at the winner of each window."""
        rows, cols = self._filled(dy.shape[2:])
        inner = PoolCache((*cache.shape[:2], rows, cols), cache.where)
        found = super().backward(_turned(dy), inner, params, grads, back)
        if found is None:
            return None
        dx = np.zeros(cache.shape, dtype=dy.dtype)
        dx[:, :, :rows, :cols] = _turned(found)
        return dx

    def _filled(self, windows: tuple[int, ...]) -> tuple[int, ...]:
        """The rows and columns that so many windows cover."""
        return tuple(
            (count - 1) * step + length
            for count, step, length in zip(windows, self.step, self.window, strict=True)
        )


def _turned(maps: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(maps[:, :, ::-1, ::-1])
